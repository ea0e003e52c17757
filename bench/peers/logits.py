"""Our compiled CPU model's logits against PyTorch's, on photographs.

    python bench/peers/logits.py [--weights model.safetensors] --photographs FILE.tar [--calibrate DIR|TAR]
                                 [--resolution 224] [--images 100]

The same pixels for everybody: PIL's bilinear resize of the shorter side and a crop from the middle, u8. Ours is the example
`logits` on the file that `engine export --format cpu` makes of the weights (`cargo build --release --example logits` first);
PyTorch runs them eagerly in fp32. "Relative" is max |a - b| / max |b| over the logits of an image; printed are the worst
image and the mean, and for how many images the likeliest class is the same. Without --weights, random ones of the same size.
Needs torch, numpy, pillow.
"""

import argparse
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
import torch
from infer_model import network_input, random_weights, read_safetensors, write_safetensors
from infer_worker import torch_network
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Where the issue names one: the largest relative difference to PyTorch's fp32.
WANTED = {"fp32-direct": 1e-4, "fp32": 1e-3}


def photographs(path, count):
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive if m.name.lower().endswith((".jpeg", ".jpg"))), key=lambda m: m.name)
        for member in members[:count]:
            yield Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")


def pixels(image, side):
    """As evaluation does it: the shorter side to 256 for 224."""
    scale = round(side * 256 / 224) / min(image.size)
    image = image.resize([max(side, round(size * scale)) for size in image.size], Image.BILINEAR)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)), np.uint8)


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)


def ours(args, folder, images):
    """By name: logits [n, classes]."""
    command = [args.engine, "export", "--checkpoint", args.weights, "--format", "cpu", "--output", folder / "model"]
    if args.calibrate:
        command += ["--int8", "--calibrate", args.calibrate, "--calibration-images", "128"]
    run(*command)
    (folder / "pixels").write_bytes(images.tobytes())
    run(args.logits, folder / "model", folder / "pixels", args.resolution, folder)
    read = lambda file: np.frombuffer(file.read_bytes(), np.float32).reshape(len(images), -1)
    return {name: read(file) for name in ("fp32-direct", "fp32", "bf16", "int8") if (file := folder / f"{name}.f32").exists()}


def torch_logits(network, images):
    with torch.inference_mode():
        return torch.cat([network(x) for x in torch.from_numpy(network_input(images)).split(1)]).double().numpy()


def compare(name, got, want):
    relative = np.abs(got - want).max(1) / np.abs(want).max(1)
    same = int((got.argmax(1) == want.argmax(1)).sum())
    limit = WANTED.get(name)
    verdict = "" if limit is None else f"  {'within' if relative.max() <= limit else 'NOT WITHIN'} {limit:g}"
    print(f"{name:12} worst {relative.max():.2e}, mean {relative.mean():.2e}, same class {same}/{len(got)}{verdict}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=pathlib.Path)
    parser.add_argument("--photographs", type=pathlib.Path, required=True)
    parser.add_argument("--calibrate", type=pathlib.Path, help="without it there is no int8")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--engine", type=pathlib.Path, default=ROOT / "target/release/engine")
    parser.add_argument("--logits", type=pathlib.Path, default=ROOT / "target/release/examples/logits")
    args = parser.parse_args()
    images = np.stack([pixels(image, args.resolution) for image in photographs(args.photographs, args.images)])
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if args.weights is None:
            args.weights = folder / "random.safetensors"
            write_safetensors(args.weights, random_weights(0))
        logits = ours(args, folder, images)
        network = torch_network(torch, read_safetensors(args.weights)).eval()
    want = torch_logits(network, images)
    print(f"{args.weights.name}, {len(images)} photographs at {args.resolution} px, torch {torch.__version__}")
    print(f"logits up to {np.abs(want).max():.3g}; relative difference to PyTorch's in fp32:")
    for name, got in logits.items():
        compare(name, got.astype(np.float64), want)


if __name__ == "__main__":
    main()
