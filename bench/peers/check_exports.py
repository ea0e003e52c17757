"""Loads exported .pth and safetensors files into torchvision, strictly, and compares its answers with `engine predict`.

    python bench/peers/check_exports.py --engine ENGINE --checkpoint CHECKPOINT --pictures DIR|TAR FILE...

Each file must load with `load_state_dict(strict=True)`, a .pth through `torch.load(weights_only=True)`, and give the
engine's log-probabilities within 1e-4, relative, with the same first class on every picture. Needs torch, torchvision,
safetensors and Pillow (requirements.txt here); tests/interop does the same for ONNX.
"""

import json
import pathlib
import struct
import sys
import tempfile
import zipfile

import torch
import torchvision

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "interop"))
import pictures

FP32 = 1e-4


def load(path):
    """(state dict, what the file says of its network)."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            metadata = json.loads(file.read(length))["__metadata__"]
        return load_file(path), json.loads(metadata["engine.model"])
    with zipfile.ZipFile(path) as archive:
        said = json.loads(archive.read("archive/extra/engine.model"))
    return torch.load(path, map_location="cpu", weights_only=True), said


def main():
    parser = pictures.parser(__doc__)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    failures = 0
    for path in args.files:
        state, said = load(path)
        classes = len(said["classes"])
        model = getattr(torchvision.models, said["arch"])(weights=None, num_classes=classes)
        model.load_state_dict(state, strict=True)
        model.eval()
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            paths, images = pictures.prepare(args.pictures, folder, said, args.count)
            want = pictures.engine(args.engine, args.checkpoint, paths, classes)
            logits = torch.cat([model(part) for part in torch.from_numpy(images).split(16)])
            same, relative = pictures.compare(pictures.log_softmax(logits.numpy()), want)
        is_good = same == 1 and relative <= FP32
        failures += not is_good
        print(f"{'ok' if is_good else 'FAILED'}: {path} in torch {torch.__version__}, torchvision "
              f"{torchvision.__version__}, strictly: {100 * same:.2f} % the same class on {len(paths)} pictures, "
              f"log-probabilities within {relative:.1e}")
    sys.exit(failures != 0)


main()
