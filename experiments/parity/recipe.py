"""A recipe's file and the settings on top of it, as both programs read them. Standard library alone."""

import copy
import pathlib
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCALES = tomllib.loads((HERE / "scales.toml").read_text())
NAMES = ("plain", "mixed")


def load(path, settings=()):
    """The file's tables, with `key=value` settings on top: `data.batch=64`, in TOML's notation."""
    recipe = tomllib.loads(pathlib.Path(path).read_text())
    for setting in settings:
        key, _, value = setting.partition("=")
        *tables, last = key.split(".")
        table = recipe
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = tomllib.loads(f"value = {value}")["value"]
    return recipe


class Reader:
    """Takes keys out of a recipe one by one; what is left over was not understood."""

    def __init__(self, recipe):
        self.left = copy.deepcopy(recipe)

    def take(self, key, default=None):
        *tables, last = key.split(".")
        table = self.left
        for name in tables:
            table = table.get(name, {})
        return table.pop(last, default)

    def insist(self, key, value):
        """For what is done one way here."""
        found = self.take(key, value)
        if found != value:
            raise SystemExit(f"{key} is {found!r}; torch_train.py knows {value!r}")

    def finish(self):
        left = [f"{table}.{key}" for table, keys in self.left.items() if isinstance(keys, dict) for key in keys]
        left += [key for key, value in self.left.items() if not isinstance(value, dict)]
        if left:
            raise SystemExit(f"torch_train.py does not know {', '.join(left)}: its training would not be this recipe's")
