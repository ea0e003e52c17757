"""One training step's loss and every gradient: the engine's, PyTorch's in mixed precision, both against PyTorch in f64.

    engine check --dump DIR --device cuda --precision fp16
    python bench/peers/step_parity.py --dump DIR --device cuda --amp fp16

DIR has `weights.safetensors` and `step.safetensors` (see `engine check --help`). Distances are ||a - b|| / ||b|| of each
gradient. The exit status is 1 when one of the engine's exceeds --factor times PyTorch's own (`--amp fp32`: PyTorch's f32
without TF32), where both count as at least one rounding of the storage type.
"""

import argparse
import math
import pathlib
import sys

import torch

import peer


def step(state, tensors, device, dtype, precision, smoothing, scale):
    """Loss and gradients by name, in f64 on the CPU."""
    model = peer.load(state).to(device, dtype, memory_format=torch.channels_last)
    images = peer.normalise(tensors["images"], device).to(dtype)
    labels = tensors["labels"].to(device)
    with peer.autocast(device, precision):
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.to(dtype), labels, label_smoothing=smoothing)
    (loss * scale).backward()
    return loss.item(), {name: p.grad.double().cpu() / scale for name, p in model.named_parameters()}


def distance(a, b):
    norm = b.norm().item()
    return (a - b).norm().item() / norm if norm else a.norm().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dump", type=pathlib.Path, required=True, help="the folder of engine check --dump")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--amp", default="fp16", choices=["fp16", "bf16", "tf32", "fp32"])
    parser.add_argument("--factor", type=float, default=3.0)
    parser.add_argument("--rows", type=int, default=8, help="gradients to print, the largest ratios first")
    args = parser.parse_args()

    state, _ = peer.read_safetensors(args.dump / "weights.safetensors")
    tensors, metadata = peer.read_safetensors(args.dump / "step.safetensors")
    smoothing, scale = float(metadata["label_smoothing"]), float(metadata["loss_scale"])
    peer.set_tf32(args.amp == "tf32")
    exact_loss, exact = step(state, tensors, args.device, torch.float64, "fp32", smoothing, 1.0)
    own_loss, own = step(state, tensors, args.device, torch.float32, args.amp, smoothing, scale)

    least = peer.ROUNDOFF[args.amp]
    rows = []
    for name, gradient in exact.items():
        ours, theirs = distance(tensors["grad." + name].double(), gradient), distance(own[name], gradient)
        rows.append((ours / max(theirs, least), ours, theirs, name))
    loss = tensors["loss"].item()
    ours, theirs = (abs(value - exact_loss) / exact_loss for value in (loss, own_loss))
    rows.append((ours / max(theirs, least), ours, theirs, "loss"))
    rows = [(math.inf if math.isnan(row[0]) else row[0], *row[1:]) for row in rows]
    rows.sort(reverse=True)

    print(f"engine: {metadata['device']}, {metadata['precision']}; torch {torch.__version__}, {args.amp}, {args.device}")
    print(f"loss: engine {loss:.7f}, torch {own_loss:.7f}, f64 {exact_loss:.7f}")
    print(f"{'ratio':>7} {'engine':>9} {'torch':>9}  distance from f64 of")
    for ratio, ours, theirs, name in rows[: args.rows]:
        print(f"{ratio:7.2f} {ours:9.2e} {theirs:9.2e}  {name}")
    middle = sorted(row[0] for row in rows)[len(rows) // 2]
    verdict = "within" if rows[0][0] <= args.factor else "ABOVE"
    print(f"{len(rows)} compared: ratio at most {rows[0][0]:.2f} ({rows[0][3]}), median {middle:.2f}; {verdict} {args.factor}")
    sys.exit(0 if rows[0][0] <= args.factor else 1)


if __name__ == "__main__":
    main()
