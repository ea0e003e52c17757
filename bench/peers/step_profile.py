"""PyTorch's training step, kernel by kernel, in the kinds of `engine bench step --profile`. Prints a table and one JSON line.

    python bench/peers/step_profile.py --device cuda --amp fp16 --batch 256 --resolution 224 [--compile] [--beside profile.json]

The step is that of train_throughput.py. torch.profiler gives each kernel's time and the operator that launched it; a kernel
is sorted by its own name where that says what it does, else by its operator; a gradient of a convolution whose name says
neither which is counted as dgrad. `--beside` prints the sums of an engine's
profile (the JSON of `engine bench step --profile --json`) in the next column. On the CPU operators take the place of kernels.
"""

import argparse
import json
import sys

import train_throughput

KINDS = ["input", "conv-forward", "conv-dgrad", "conv-wgrad", "norm-forward", "norm-backward", "pool", "loss", "update", "ranks", "other"]

# In the name of a kernel or an operator, in this order: the first that is found says the kind. "backward" alone cannot, since
# Inductor's fused kernels name everything that they do.
NAMES = [
    ("conv-wgrad", ["wgrad", "bwd_weight", "backward_weight", "bwdfilter", "convolve_common_engine_float_nhwc_wgrad"]),
    ("conv-dgrad", ["dgrad", "bwd_data", "backward_data", "bwddata"]),
    ("ranks", ["nccl"]),
    ("update", ["fused_sgd", "fusedsgd", "multi_tensor", "multitensor", "foreach", "_amp_", "optimizer", "optimiser"]),
    ("loss", ["softmax", "nll_loss", "cross_entropy", "addmm", "linear", "aten::mm"]),
    ("pool", ["max_pool", "avg_pool", "maxpool", "avgpool", "adaptive", "low_memory_max_pool"]),
    ("norm-backward", ["batch_norm_backward", "batchnormbackward", "bn_bw", "bnbw", "threshold_backward", "batch_norm_elementwise_backward", "norm_bwd"]),
    ("norm-forward", ["batch_norm", "batchnorm", "bn_fw", "bnfw", "relu", "clamp_min", "welford", "aten::add_"]),
    ("conv-forward", ["cudnn_convolution", "mkldnn_convolution", "fprop", "implicit_convolve", "aten::convolution_overrideable"]),
]


def kind(name, operator, backward):
    """Of a kernel by its name, of the operator that launched it where the name is of a general kind (gemm, elementwise)."""
    name, operator = name.lower(), operator.lower()
    if "triton" in name and "batch_norm" in name:
        # Names of Inductor's kernels list what is fused; those of the backward graph have its operators.
        return "norm-backward" if backward or "backward" in name else "norm-forward"
    for text in (name, operator):
        for found, parts in NAMES:
            if any(part in text for part in parts):
                return found
        if "convolution_backward" in operator:
            # A matrix product for a 1x1, or both gradients at once: the name does not say which.
            return "conv-dgrad"
    if backward and operator in ("aten::add", "aten::add_"):
        return "norm-backward"
    return "other"


def kernels(events, on_gpu):
    """(name, operator, backward, microseconds) of every kernel of a profiled step."""
    found = []
    for event in events:
        operator = event.name
        backward = "backward" in operator.lower() or in_backward(event)
        if on_gpu:
            for kernel in event.kernels:
                found.append((kernel.name, operator, backward, kernel.duration))
        elif event.self_cpu_time_total > 0 and operator.startswith("aten::"):
            found.append((operator, operator, backward, event.self_cpu_time_total))
    return found


def in_backward(event):
    """Whether autograd's engine launched it."""
    parent = event.cpu_parent
    while parent is not None:
        if "autograd::engine" in parent.name or "Backward" in parent.name:
            return True
        parent = parent.cpu_parent
    return False


def profile(args, torch):
    step, source = train_throughput.stepper(args, torch)
    for _ in range(max(args.warmup, 1)):
        step()
    on_gpu = args.device == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    wait()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(args.steps):
            step()
        wait()
    return kernels(profiler.events(), on_gpu), source


def sums(found, steps):
    """Launches and milliseconds of a step by kind, and every kernel by name."""
    by_kind = {name: [0, 0.0] for name in KINDS}
    by_name = {}
    for name, operator, backward, microseconds in found:
        which = kind(name, operator, backward)
        by_kind[which][0] += 1
        by_kind[which][1] += microseconds / 1e3
        row = by_name.setdefault((which, name), [0, 0.0])
        row[0] += 1
        row[1] += microseconds
    kinds = [
        {"kind": name, "launches": round(count / steps, 1), "milliseconds": round(ms / steps, 4)}
        for name, (count, ms) in by_kind.items()
        if count
    ]
    named = [
        {"kind": which, "kernel": name, "launches": round(count / steps, 1), "microseconds": round(us / steps, 2)}
        for (which, name), (count, us) in by_name.items()
    ]
    return sorted(kinds, key=lambda row: -row["milliseconds"]), sorted(named, key=lambda row: -row["microseconds"])


def engines(path):
    """Milliseconds by kind of an engine's profile, whose JSON is the file's last line."""
    with open(path) as file:
        lines = [line for line in file.read().splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{path}: no JSON object; engine bench step --profile --json writes one")
    return {row["kind"]: row["milliseconds"] for row in json.loads(lines[-1])["kinds"]}


def table(kinds, named, beside):
    ours = engines(beside) if beside else {}
    print("launches   pytorch ms   engine ms  kind")
    known = {row["kind"]: row for row in kinds}
    for name in KINDS:
        row = known.get(name)
        if row is None and name not in ours:
            continue
        theirs = f"{row['milliseconds']:>12.3f}" if row else f"{'-':>12}"
        own = f"{ours[name]:>11.3f}" if name in ours else f"{'-':>11}"
        print(f"{row['launches'] if row else 0:>8} {theirs} {own}  {name}")
    print(f"{'':>8} {sum(row['milliseconds'] for row in kinds):>12.3f} {sum(ours.values()):>11.3f}  all, one after another\n")
    print("launches           us  kernel (kind)")
    for row in named:
        print(f"{row['launches']:>8} {row['microseconds']:>12.1f}  {row['kernel'][:150]} ({row['kind']})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    train_throughput.add_arguments(parser)
    parser.add_argument("--beside", help="an engine's profile")
    args = parser.parse_args()
    import torch

    found, source = profile(args, torch)
    if not found:
        sys.exit("the profiler saw no kernel: is this PyTorch built with Kineto and CUPTI?")
    kinds, named = sums(found, args.steps)
    table(kinds, named, args.beside)
    record = {
        "program": "pytorch",
        "batch": args.batch,
        "resolution": args.resolution,
        "amp": args.amp,
        "compile": args.compile,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "network": source},
        "sum_milliseconds": round(sum(row["milliseconds"] for row in kinds), 4),
        "kinds": kinds,
        "kernels": named,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
