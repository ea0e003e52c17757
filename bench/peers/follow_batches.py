"""Trains PyTorch in f32 and f64 on the very batches, weights and rates that `engine` trained on, and compares losses.

    engine data batches --config C --count 20 -o batches.safetensors
    python bench/peers/follow_batches.py --batches batches.safetensors --checkpoint initial.safetensors \\
        --metrics metrics.jsonl --weight-decay 1e-4 --label-smoothing 0.1

`batches` holds `images` u8 [count, n, h, w, 3] and `labels` i64 [count, n]; `checkpoint` has torchvision's names, all of
them (engine's own `optim.*`, `ema.*` and `engine.*` are passed over). Rates and engine's losses come from its metrics.jsonl (lines of kind
"step", keys loss and lr), or from --lr-file, a JSON list of one rate a step, or from --lr with --warmup-steps and --total-steps (linear
(t + 1) / warmup, then half a cosine to 0). Weight decay falls on convolution and linear weights, engine's default;
--decay-everything is torchvision's V1 recipe.

Prints step, losses and differences from f64; the exit status is 1 when engine's largest difference exceeds 3 times that
of PyTorch's f32 (over --steps steps), and when a loss is not finite.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"))
import formula
import networks
from peer import engine_steps


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", required=True)
    parser.add_argument("--checkpoint", required=True, help="initial weights, safetensors")
    parser.add_argument("--metrics", type=pathlib.Path, help="engine's metrics.jsonl: losses, and rates unless given")
    parser.add_argument("--lr-file", type=pathlib.Path, help="JSON list of rates, one a step")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--warmup-steps", type=int, default=0)
    parser.add_argument("--total-steps", type=int, help="the schedule's length; constant rate without it")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--curve", action="store_true", help="go on in f32 through all batches and compare means of 20")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--nesterov", action="store_true")
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--decay-everything", action="store_true")
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--factor", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def rates(args, logged, count):
    if args.lr_file:
        values = json.loads(args.lr_file.read_text())
    elif args.lr is not None:
        if args.total_steps:
            values = networks.warmup_cosine(args.total_steps, args.warmup_steps, args.lr)
        else:
            values = [args.lr * min(1.0, (t + 1) / max(args.warmup_steps, 1)) for t in range(count)]
    elif logged and all("lr" in line for line in logged[:count]):
        values = [line["lr"] for line in logged]
    else:
        sys.exit("no learning rate: give --metrics with lr in its lines, --lr-file or --lr")
    if len(values) < count:
        sys.exit(f"{len(values)} learning rates for {count} steps")
    return values[:count]


def build(state, dtype):
    classes = state["fc.weight"].shape[0]
    tiny = "layer3.0.conv1.weight" not in state
    model = networks.Tiny() if tiny else torchvision.models.resnet50(weights=None, num_classes=classes)
    state = {k: v for k, v in state.items() if not k.startswith(("optim.", "ema.", "engine."))}
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict({**counters, **state}, strict=True)
    return model.to(dtype).train()


def train(args, state, batches, lr, dtype):
    model = build(state, dtype)
    decayed = [p for p in model.parameters() if args.decay_everything or p.dim() > 1]
    others = [p for p in model.parameters() if not args.decay_everything and p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    rule = torch.optim.SGD(groups, lr=0.0, momentum=args.momentum, nesterov=args.nesterov)
    losses = []
    for step, rate in enumerate(lr):
        pixels = formula.normalise(batches["images"][step].numpy())
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(dtype)
        for group in rule.param_groups:
            group["lr"] = rate
        rule.zero_grad()
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(
            logits, batches["labels"][step], label_smoothing=args.label_smoothing
        )
        loss.backward()
        rule.step()
        losses.append(loss.item())
    return losses


def print_curve(engine, single):
    print(f"{'steps':>9} {'engine':>9} {'torch f32':>9}   mean loss of 20 steps")
    for start in range(0, len(engine) - 19, 20):
        means = [float(np.mean(losses[start : start + 20])) for losses in (engine, single)]
        print(f"{start:4}-{start + 19:<4} {means[0]:9.4f} {means[1]:9.4f}")


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    batches, state = load_file(args.batches), load_file(args.checkpoint)
    logged = engine_steps(args.metrics) if args.metrics else []
    available = min(args.steps, batches["images"].shape[0])
    count = min(available, len(logged)) if args.metrics else available
    if count == 0:
        sys.exit("nothing to follow: no batches, or no lines of kind step in the metrics")
    if count < args.steps:
        print(f"only {count} of {args.steps} steps are there", file=sys.stderr)
    everything = min(batches["images"].shape[0], len(logged)) if args.curve else count
    lr = rates(args, logged, everything)
    engine = [line["loss"] for line in logged[:everything]] or [math.nan] * everything
    exact = train(args, state, batches, lr[:count], torch.float64)
    single_curve = train(args, state, batches, lr, torch.float32)
    single = single_curve[:count]

    print(f"{'step':>4} {'lr':>10} {'engine':>12} {'torch f32':>12} {'torch f64':>12} {'|engine-f64|':>13} {'|f32-f64|':>11}")
    for t in range(count):
        a, b = abs(engine[t] - exact[t]), abs(single[t] - exact[t])
        print(f"{t:4} {lr[t]:10.3e} {engine[t]:12.8f} {single[t]:12.8f} {exact[t]:12.8f} {a:13.3e} {b:11.3e}")
    f32 = max(abs(a - b) for a, b in zip(single, exact))
    if not logged:
        print(f"largest |f32-f64| {f32:.3e}; no engine losses to compare")
        return
    if args.curve:
        print_curve(engine, single_curve)
    ours = float(np.max(np.abs(np.array(engine[:count]) - np.array(exact))))
    # An f32 loss is known to half a unit in its last place, whoever computes it.
    floor = max(f32, float(np.spacing(np.float32(max(exact)))) / 2)
    ratio = ours / floor
    print(f"largest |engine-f64| {ours:.3e}, |f32-f64| {f32:.3e}, ratio {ratio:.2f} (limit {args.factor})")
    if not math.isfinite(ratio) or ratio > args.factor:
        sys.exit(1)


if __name__ == "__main__":
    main()
