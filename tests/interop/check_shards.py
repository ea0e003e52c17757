"""Reads what `engine data pack` wrote with Python's webdataset, and compares it with the summary beside it.

    pip install webdataset pillow
    python tests/interop/check_shards.py SHARDS
"""

import json
import pathlib
import sys

import webdataset


def main():
    folder = pathlib.Path(sys.argv[1])
    classes = (folder / "classes.txt").read_text().splitlines()
    for split in json.loads((folder / "packed.json").read_text())["splits"]:
        shards = sorted(str(path) for path in folder.glob(f"{split['name']}-*.tar"))
        assert len(shards) == split["shards"], (len(shards), split)
        samples = webdataset.WebDataset(shards, shardshuffle=False).decode("pil")
        images, keys = 0, set()
        for sample in samples:
            picture = next(sample[kind] for kind in ("jpg", "png", "webp") if kind in sample)
            picture.load()
            assert 0 <= sample["cls"] < len(classes), sample["__key__"]
            keys.add(sample["__key__"])
            images += 1
        assert images == len(keys) == split["images"], (images, len(keys), split)
        print(f"{split['name']}: {images} pictures in {len(shards)} shards, as packed.json says")


main()
