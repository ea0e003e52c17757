"""PyTorch's training throughput on ResNet-50, with synthetic data. Prints one JSON line.

    python bench/peers/train_throughput.py --resolution 224 --batch 16 --steps 10 --threads 2 [--compile] [--nchw]
    python bench/peers/train_throughput.py --device cuda --amp fp16 --resolution 224 --batch 256 --steps 50 [--compile]

channels_last, SGD with momentum, cross entropy; the normalised batch stays on the device, so neither loader nor upload
is measured. On a GPU: autocast with a GradScaler (fp16), cudnn.benchmark, TF32 wherever f32 is left, the fused optimiser
(--optimiser foreach for the other), and no synchronisation but those that PyTorch itself makes; the clock runs over all steps
between two torch.cuda.synchronize(). Warm-up steps are not counted; images_per_second is batch / median step on the CPU, all
images / all seconds on a GPU.
"""

import argparse
import json
import os
import statistics
import time


def peak_memory_mb():
    """VmHWM: the most memory that this process ever held, Linux."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def add_arguments(parser):
    """What a step is; step_profile.py and step_memory.py take the same."""
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--amp", default="fp32", choices=["fp32", "fp16", "bf16"], help="autocast to this")
    parser.add_argument("--optimiser", default="fused", choices=["fused", "foreach"], help="SGD's form, on a GPU")
    modes = ["default", "reduce-overhead"]
    parser.add_argument("--compile", nargs="?", const="default", choices=modes, help="torch.compile the model, in this mode")
    parser.add_argument("--nchw", action="store_true", help="default layout in place of channels_last")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0:
        parser.error("--steps wants at least 1 and --warmup at least 0")
    return args


def network():
    """torchvision's where it is installed, else the same network from peer.py; and which."""
    try:
        import torchvision

        return torchvision.models.resnet50(weights=None), f"torchvision {torchvision.__version__}"
    except ImportError:
        import peer

        return peer.network("resnet50", 1000), "bench/peers/peer.py"


def stepper(args, torch):
    """A function that runs one training step."""
    import peer

    torch.manual_seed(0)
    on_gpu = args.device == "cuda"
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        peer.set_tf32(True)
    layout = torch.contiguous_format if args.nchw else torch.channels_last
    model, source = network()
    model = model.train().to(args.device, memory_format=layout)
    form = {args.optimiser: True} if on_gpu else {}
    rule = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, **form)
    scaler = torch.amp.GradScaler(args.device, enabled=args.amp == "fp16")
    run = torch.compile(model, mode=args.compile) if args.compile else model
    images = torch.randn(args.batch, 3, args.resolution, args.resolution, device=args.device)
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(0, 1000, (args.batch,), device=args.device)

    def step():
        rule.zero_grad(set_to_none=True)
        with peer.autocast(args.device, args.amp):
            loss = torch.nn.functional.cross_entropy(run(images), labels)
        scaler.scale(loss).backward()
        scaler.step(rule)
        scaler.update()

    return step, source


def measure(args, torch, step):
    """Milliseconds of a step: median, 95th percentile, least; and images a second."""

    def timed():
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start) * 1000

    for _ in range(args.warmup):
        step()
    if args.device == "cpu":
        times = sorted(timed() for _ in range(args.steps))
        seconds = statistics.median(times) / 1000 * args.steps
    else:
        torch.cuda.synchronize()
        start = time.perf_counter()
        times = sorted(timed() for _ in range(args.steps))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
    latency = {"median": statistics.median(times), "p95": p95, "min": times[0]}
    return {key: round(value, 3) for key, value in latency.items()}, args.batch * args.steps / seconds


def main():
    args = arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    step, source = stepper(args, torch)
    latency, rate = measure(args, torch, step)
    record = {
        "program": "pytorch",
        "images_per_second": round(rate, 3),
        "latency_ms": latency,
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "resolution": args.resolution,
        "batch": args.batch,
        "steps": args.steps,
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "amp": args.amp,
        "layout": "nchw" if args.nchw else "channels_last",
        "compile": args.compile or False,
        "load_1min": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "network": source},
    }
    if args.device == "cuda":
        record["device_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        record["versions"]["cudnn"] = torch.backends.cudnn.version()
    print(json.dumps(record))


if __name__ == "__main__":
    main()
