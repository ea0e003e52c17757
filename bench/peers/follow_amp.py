"""The engine's losses beside two trainings by PyTorch in mixed precision, on the same batches, weights and rates.

    python bench/peers/follow_amp.py --write-initial init.safetensors --classes 10
    engine data batches --config C --count 50 -o batches.safetensors
    engine train --config C --init init.safetensors --output run --set device.loss_scale=1024
    python bench/peers/follow_amp.py --batches batches.safetensors --checkpoint init.safetensors \\
        --metrics run/metrics.jsonl --device cuda --amp fp16 --nesterov --label-smoothing 0.1

The two trainings (or --runs of them) differ in their first weights by one rounding of the storage type, at random: that is
as much as two correct programs differ in before the first step. Their spread is the largest distance of two of them over all
steps; the engine's distance is the largest, over all steps, to the nearest of them. A ReLU on the edge of 0 is enough to part two
correct programs by 1e-4 in a step, and they part further from then on: more runs know better how far. Batches of a recipe
that mixes images say how, and are mixed here. The exit status is 1 when the distance exceeds the spread (or, where that is
smaller, one rounding of the loss).
"""

import argparse
import math
import pathlib
import sys

import torch

import peer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write-initial", type=pathlib.Path, help="write torchvision-like first weights here, and end")
    parser.add_argument("--arch", default="resnet50", choices=["resnet50", "resnet-tiny"])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=pathlib.Path)
    parser.add_argument("--checkpoint", type=pathlib.Path)
    parser.add_argument("--metrics", type=pathlib.Path, help="the engine's metrics.jsonl: losses and rates")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=2, help="trainings by PyTorch")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--amp", default="fp16", choices=["fp16", "bf16", "fp32"])
    parser.add_argument("--loss-scale", type=float, default=1024.0)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--nesterov", action="store_true")
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--decay", default="weights", choices=["weights", "unnormalised", "all"])
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    args = parser.parse_args()
    if not args.write_initial and not (args.batches and args.checkpoint and args.metrics):
        parser.error("--batches, --checkpoint and --metrics are wanted, or --write-initial")
    return args


def perturbed(state, roundoff, seed):
    """Weights moved by up to one rounding."""
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor):
        return tensor * (1 + roundoff * (2 * torch.rand(tensor.shape, generator=generator) - 1))

    return {name: tensor if "running" in name else moved(tensor) for name, tensor in state.items()}


def batch(args, batches, step, classes):
    """Normalised images and targets of a step, mixed where the batches say how."""
    images, labels = peer.normalise(batches["images"][step], args.device), batches["labels"][step].to(args.device)
    if "partners" not in batches:
        return images, labels
    return peer.mixed(images, labels, [batches[key][step] for key in ("partners", "lambdas", "regions")], classes)


def train(args, state, batches, rates):
    """The loss of every step."""
    model = peer.load(state).to(args.device, memory_format=torch.channels_last)
    rule = peer.sgd(model, args.momentum, args.nesterov, args.weight_decay, args.decay)
    scaler = torch.amp.GradScaler(args.device, init_scale=args.loss_scale, enabled=args.amp == "fp16")
    losses = []
    for step, rate in enumerate(rates):
        for group in rule.param_groups:
            group["lr"] = rate
        rule.zero_grad(set_to_none=True)
        images, targets = batch(args, batches, step, model.fc.out_features)
        with peer.autocast(args.device, args.amp):
            logits = model(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), targets, label_smoothing=args.label_smoothing)
        scaler.scale(loss).backward()
        scaler.step(rule)
        scaler.update()
        losses.append(loss.detach())
    return [loss.item() for loss in losses]


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    if args.write_initial:
        model = peer.network(args.arch, args.classes)
        state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
        peer.write_safetensors(args.write_initial, state)
        return
    peer.set_tf32(False)
    (batches, _), (state, _) = peer.read_safetensors(args.batches), peer.read_safetensors(args.checkpoint)
    logged = peer.engine_steps(args.metrics)
    count = min(args.steps, batches["images"].shape[0], len(logged))
    if count == 0:
        sys.exit("nothing to follow: no batches, or no lines of kind step in the metrics")
    rates = [line["lr"] for line in logged[:count]]
    engine = [line["loss"] for line in logged[:count]]
    roundoff = peer.ROUNDOFF[args.amp]
    starts = [state] + [perturbed(state, roundoff, args.seed + run) for run in range(1, args.runs)]
    runs = [train(args, start, batches, rates) for start in starts]

    print(f"torch {torch.__version__}, {args.amp}, {args.device}; {count} steps, {args.runs} runs of PyTorch")
    print(f"{'step':>4} {'lr':>10} {'engine':>9} {'PyTorch':>9} {'apart':>9} {'nearest':>9}")
    distance = spread = 0.0
    for step, (ours, *theirs) in enumerate(zip(engine, *runs)):
        apart, near = max(theirs) - min(theirs), min(abs(ours - one) for one in theirs)
        print(f"{step:4} {rates[step]:10.3e} {ours:9.5f} {theirs[0]:9.5f} {apart:9.2e} {near:9.2e}")
        spread, distance = max(spread, apart), max(distance, near if math.isfinite(near) else math.inf)
    allowed = max(spread, roundoff * max(runs[0]))
    verdict = "within" if distance <= allowed else "OUTSIDE"
    print(f"{count} steps: engine at most {distance:.2e} from the nearest run, runs {spread:.2e} apart: {verdict} the spread")
    sys.exit(0 if distance <= allowed else 1)


if __name__ == "__main__":
    main()
