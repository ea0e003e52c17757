"""Gradio, imported without the stubs for editors that it makes of every component's source each time: a third of the
import, and most of what a visitor waits for after the Space woke up.

It makes none where a component has no source file (`create_or_modify_pyi` in its `component_meta.py`), so while it is
imported none has.
"""

import inspect
import os

# Nobody is told that the page was started.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def no_source(_):
    raise OSError("no stubs are wanted")


kept, inspect.getfile = inspect.getfile, no_source
try:
    import gradio
finally:
    inspect.getfile = kept

__all__ = ["gradio"]
