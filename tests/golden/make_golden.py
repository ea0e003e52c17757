"""Records PyTorch's, torchvision's, timm's and Pillow's numbers for the tests in Rust.

    python tests/golden/make_golden.py [--only tiny,ops,...]     # four minutes on two busy cores

Every file is JSON with floats that round-trip exactly; README.md beside this script has their schema and formula.py the
formula that fills weights, images and labels.
"""

import argparse
import json
import os
import pathlib

import augment
import freeze
import images
import mixing
import networks
import ops
import PIL
import recipe
import schedules
import timm
import torch
import torchvision

# The numbers in the batches' names were picked for few ReLU inputs near 0 (README.md).
TINY_SGD = dict(arch="resnet-tiny", case="tiny32.sgd", n=8, size=32, rates=networks.warmup_cosine(10, 3, 0.01))
RECORDS = {
    "tiny32": lambda: networks.record_step("resnet-tiny", "tiny32", 4, 32, activations=True),
    "resnet50_64": lambda: networks.record_step("resnet50", "resnet50_64.0", 4, 64),
    "resnet50_224": lambda: networks.record_step("resnet50", "resnet50_224.5", 2, 224),
    "tiny32_sgd": lambda: networks.record_sgd(**TINY_SGD, nesterov=False),
    "tiny32_sgd_nesterov": lambda: networks.record_sgd(**TINY_SGD, nesterov=True),
    "resnet50_64_sgd": lambda: networks.record_sgd("resnet50", "resnet50_64.sgd.24", 4, 64, [0.001, 0.002, 0.001], False),
    "schedules": schedules.record,
    "images": images.record,
    "ops": ops.record,
    "augment": augment.record,
    "recipe": recipe.record,
    "recipe_schedules": recipe.record_schedules,
    "tiny32_freeze": freeze.record,
    "mixing": mixing.record,
    "tiny32_recipe": lambda: recipe.record_run("tiny32.recipe"),
}
# Recorded where the engine has left the pixels of photographs (README.md).
PHOTOGRAPHS = os.environ.get("ENGINE_PHOTOGRAPHS")
if PHOTOGRAPHS:
    RECORDS["photographs"] = lambda: augment.record_photographs(PHOTOGRAPHS)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names among " + ", ".join(RECORDS))
    chosen = parser.parse_args().only
    names = chosen.split(",") if chosen else RECORDS
    torch.set_num_threads(2)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__, "pillow": PIL.__version__}
    folder = pathlib.Path(__file__).parent
    for name in names:
        record = {"versions": versions, **RECORDS[name]()}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(record, separators=(",", ":")) + "\n")
        print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
