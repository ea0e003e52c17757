"""The page: a picture goes in, five classes come out, and where in the picture they come from.

    python3 app.py [--model model.engine] [--classify BINARY] [--run DIR] [--examples DIR]

All work on pictures is done by the binary `classify`; no picture of a visitor is decoded in Python.
"""

import argparse
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from classifier import Classifier, Refused, Unavailable
from settings import HERE, LIMIT_SECONDS, MAX_PIXELS


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default=os.environ.get("MODEL", HERE / "model.engine"),
        type=Path,
        help="the model file that `engine export --format cpu` wrote",
    )
    parser.add_argument(
        "--classify",
        default=os.environ.get("CLASSIFY"),
        type=Path,
        help="the binary; default: beside app.py, then target/release, then PATH",
    )
    parser.add_argument(
        "--run",
        default=os.environ.get("RUN", HERE),
        type=Path,
        help="folder with logs.md and curve.svg of the training",
    )
    parser.add_argument(
        "--examples",
        default=os.environ.get("EXAMPLES", HERE / "examples"),
        type=Path,
        help="folder with example pictures; where there is none, some are drawn",
    )
    parser.add_argument("--port", default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)), type=int)
    return parser.parse_args()


def binary(wanted):
    """The program that may be run: uploads to a Space lose the bit that says so."""
    found = [wanted] if wanted else [HERE / "classify", HERE.parent / "target/release/classify"]
    on_path = shutil.which("classify")
    path = next((path for path in found if path.is_file()), on_path and Path(on_path))
    if not path:
        sys.exit(
            f"app.py: there is no binary classify ({', '.join(map(str, found))}, PATH): "
            "cargo build --release --bin classify makes it"
        )
    if not os.access(path, os.X_OK):
        try:
            path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        except OSError:
            path = Path(shutil.copy(path, Path(tempfile.mkdtemp()) / "classify"))
            path.chmod(0o755)
    return path


def start(args):
    """The classifier; its process reads the model while Python reads its libraries."""
    command = [binary(args.classify), "--model", args.model, "--stdio", "--max-pixels", MAX_PIXELS]
    try:
        return Classifier(command, LIMIT_SECONDS)
    except Unavailable as error:
        sys.exit(f"app.py: {error}")


def main():
    args = parse()
    classifier = start(args)
    # After the start: their libraries take longer to read than the model.
    import page
    from answers import Answers

    try:
        described = classifier.describe()
    except (Refused, Unavailable) as error:
        sys.exit(f"app.py: {error}")
    os.environ["GRADIO_SERVER_PORT"] = str(args.port)
    blocks = page.build(described, Answers(classifier), args.run, args.examples)
    page.serve(blocks)


if __name__ == "__main__":
    main()
