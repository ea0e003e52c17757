"""torchvision's PIL path, images per CPU-second: decode, RandomResizedCrop(224), flip. Prints one JSON line.

    python bench/peers/loader_torchvision.py --data DIR|TAR [--size 224] [--passes 5] [--limit N] [--auto randaugment]

The files are read into memory first; one thread; each pass takes every image once and is timed in CPU time of the
process. The median pass is the result. The crop is returned as a u8 array, which is what a trainer uploads.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import tarfile
import time

SUFFIXES = (".jpg", ".jpeg", ".png")


def read(data, limit):
    """The encoded images, in the order of their names."""
    path = pathlib.Path(data)
    if path.is_dir():
        names = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        return [p.read_bytes() for p in names[: limit or None]]
    with tarfile.open(path) as tar:
        members = sorted((m for m in tar if m.isfile() and m.name.lower().endswith(SUFFIXES)), key=lambda m: m.name)
        return [tar.extractfile(m).read() for m in members[: limit or None]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder or a tar of images")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--limit", type=int, default=0, help="first N images; 0 = all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--auto", default="none", choices=["none", "randaugment", "trivialaugment"], help="policy on top, bilinear")
    args = parser.parse_args()

    import numpy as np
    import PIL
    import torch
    import torchvision
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    files = read(args.data, args.limit)
    if not files:
        parser.error(f"{args.data}: no {', '.join(SUFFIXES)} files")
    bilinear = transforms.InterpolationMode.BILINEAR
    policy = {
        "none": [],
        "randaugment": [transforms.RandAugment(interpolation=bilinear)],
        "trivialaugment": [transforms.TrivialAugmentWide(interpolation=bilinear)],
    }[args.auto]
    augment = transforms.Compose([transforms.RandomResizedCrop(args.size), transforms.RandomHorizontalFlip(), *policy])

    def one_pass():
        cpu, wall = time.process_time(), time.perf_counter()
        for data in files:
            np.asarray(augment(Image.open(io.BytesIO(data)).convert("RGB")))
        return time.process_time() - cpu, time.perf_counter() - wall

    one_pass()
    times = [one_pass() for _ in range(args.passes)]
    rates = sorted(len(files) / cpu for cpu, _ in times)
    record = {
        "program": "torchvision-pil",
        "images_per_cpu_second": round(statistics.median(rates), 1),
        "fastest_pass": round(rates[-1], 1),
        "slowest_pass": round(rates[0], 1),
        "images_per_second": round(statistics.median(len(files) / wall for _, wall in times), 1),
        "images": len(files),
        "passes": args.passes,
        "size": args.size,
        "auto": args.auto,
        "load_1min": os.getloadavg()[0],
        "versions": {"torchvision": torchvision.__version__, "pillow": PIL.__version__, "numpy": np.__version__},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
