"""PyTorch's CPU training throughput on torchvision's ResNet-50, with synthetic data. Prints one JSON line.

    python bench/peers/train_throughput.py --resolution 224 --batch 16 --steps 10 --threads 2 [--compile] [--nchw]

fp32, channels_last, SGD with momentum, cross entropy; the batch stays in memory, so no loader is measured. Warm-up
steps are not counted; images_per_second is batch / median step.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--nchw", action="store_true", help="default layout in place of channels_last")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0:
        parser.error("--steps wants at least 1 and --warmup at least 0")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    import torch
    import torchvision

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    layout = torch.contiguous_format if args.nchw else torch.channels_last
    model = torchvision.models.resnet50(weights=None).train().to(memory_format=layout)
    rule = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    run = torch.compile(model) if args.compile else model
    images = torch.randn(args.batch, 3, args.resolution, args.resolution).contiguous(memory_format=layout)
    labels = torch.randint(0, 1000, (args.batch,))

    def step():
        start = time.perf_counter()
        rule.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        rule.step()
        return (time.perf_counter() - start) * 1000

    for _ in range(args.warmup):
        step()
    times = sorted(step() for _ in range(args.steps))
    median = statistics.median(times)
    p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
    record = {
        "program": "pytorch",
        "images_per_second": round(args.batch / median * 1000, 3),
        "latency_ms": {"median": round(median, 3), "p95": round(p95, 3), "min": round(times[0], 3)},
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "resolution": args.resolution,
        "batch": args.batch,
        "steps": args.steps,
        "threads": args.threads,
        "layout": "nchw" if args.nchw else "channels_last",
        "compile": args.compile,
        "load_1min": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
