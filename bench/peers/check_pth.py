"""Loads an export as everybody else would, strictly, and answers one formula image.

    python bench/peers/check_pth.py model.pth [--resolution 224] [--compare logits.json] [--tolerance 1e-4]
    python bench/peers/check_pth.py model.safetensors

A .pth goes through torch.load(weights_only=True), a .safetensors through safetensors.torch; then torchvision's resnet50
with the classes of fc.weight takes it with load_state_dict(strict=True). The image is `images_u8("check", 1, N)` of
tests/golden/formula.py. Prints one JSON line: top-1 index, the logits' SHA-256 (f32, little endian), norm and largest.
`--compare` takes a JSON file with the engine's logits for the same image, a list or {"logits": [...]}; the exit status is 1
when max|a - b| / max|b| exceeds the tolerance, and where loading fails.
"""

import argparse
import hashlib
import json
import pathlib
import sys

import torch
import torchvision

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"))
import formula


def load(path):
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--compare", type=pathlib.Path, help="JSON with the engine's logits for the same image")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--logits", type=pathlib.Path, help="write PyTorch's logits here, as JSON")
    parser.add_argument("--image", type=pathlib.Path, help="write the formula image here (PNG), for `engine predict`")
    args = parser.parse_args()

    state = load(args.model)
    if "fc.weight" not in state:
        sys.exit(f"{args.model}: no fc.weight among its {len(state)} entries; a state dict of torchvision's resnet50 is wanted")
    model = torchvision.models.resnet50(weights=None, num_classes=state["fc.weight"].shape[0])
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        sys.exit(f"{args.model}: {error}")
    pixels = formula.images_u8("check", 1, args.resolution)
    if args.image:
        from PIL import Image

        Image.fromarray(pixels[0]).save(args.image)
    images = torch.from_numpy(formula.normalise(pixels)).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        logits = model.eval()(images)[0]
    values = logits.numpy().astype("<f4")
    record = {
        "model": args.model.name,
        "tensors": len(state),
        "classes": values.size,
        "top1": int(logits.argmax()),
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        "norm": float(logits.double().norm()),
        "max": float(logits.max()),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }
    if args.logits:
        args.logits.write_text(json.dumps({"logits": values.tolist()}) + "\n")
    status = 0
    if args.compare:
        other = json.loads(args.compare.read_text())
        other = torch.tensor(other["logits"] if isinstance(other, dict) else other, dtype=torch.float64).flatten()
        if other.numel() != logits.numel():
            sys.exit(f"{args.compare}: {other.numel()} logits, {args.model} gives {logits.numel()}")
        record["relative"] = float((other - logits.double()).abs().max() / logits.double().abs().max())
        record["same_top1"] = int(other.argmax()) == record["top1"]
        status = 0 if record["relative"] <= args.tolerance else 1
    print(json.dumps(record))
    sys.exit(status)


if __name__ == "__main__":
    main()
