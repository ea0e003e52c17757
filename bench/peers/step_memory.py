"""How much memory PyTorch's training step takes on a GPU, by batch, and the largest batch that fits. One JSON line.

    python bench/peers/step_memory.py --device cuda --amp fp16 --resolution 224 --batches 32,64,128,256 [--gibibytes 15.7] [--compile]

`--gibibytes`: PyTorch is held to this much (torch.cuda.set_per_process_memory_fraction), so that a large card answers for one
of 16 GB. The step is that of train_throughput.py. By batch: the most that was allocated (max_memory_allocated) and reserved; an
image's share is the slope between the two largest batches that fit. The largest batch is found by doubling and halving, in
multiples of --multiple. What `engine plan` says of the engine needs no card.
"""

import argparse
import gc
import json

import train_throughput


def measure(args, torch, batch):
    """MiB allocated and reserved at most by two steps; None where they do not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = None
    try:
        step, _ = train_throughput.stepper(argparse.Namespace(**{**vars(args), "batch": batch}), torch)
        for _ in range(2):
            step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return None
    finally:
        del step
        gc.collect()
        torch.cuda.empty_cache()
        if args.compile:
            torch._dynamo.reset()
    return [round(bytes / 2**20, 1) for bytes in (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())]


def largest(fits, first, multiple):
    """The largest multiple of `multiple` that fits; 0 where none does. By doubling from `first`, then halving."""
    low, high = 0, max(first // multiple, 1)
    while fits(high * multiple):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * multiple) else (low, middle)
    return low * multiple


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    train_throughput.add_arguments(parser)
    parser.add_argument("--batches", default="32,64,128,256")
    parser.add_argument("--gibibytes", type=float, help="hold PyTorch to this much of the card")
    parser.add_argument("--multiple", type=int, default=8)
    args = parser.parse_args()
    if args.device != "cuda":
        parser.error("memory is measured on a GPU: --device cuda")
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    if args.gibibytes:
        torch.cuda.set_per_process_memory_fraction(min(args.gibibytes * 2**30 / total, 1.0))
    rows = {}
    for batch in sorted(int(text) for text in args.batches.split(",")):
        rows[batch] = measure(args, torch, batch)
        print(f"batch {batch}: " + ("does not fit" if rows[batch] is None else "{} MiB allocated, {} reserved".format(*rows[batch])))
    fitting = [batch for batch, row in rows.items() if row]
    slope = None
    if len(fitting) > 1:
        few, many = fitting[-2:]
        slope = round((rows[many][0] - rows[few][0]) / (many - few), 2)

    def fits(batch):
        if batch not in rows:
            rows[batch] = measure(args, torch, batch)
        return rows[batch] is not None

    most = largest(fits, fitting[-1] if fitting else args.multiple, args.multiple)
    record = {
        "program": "pytorch",
        "device": torch.cuda.get_device_name(),
        "gibibytes": args.gibibytes or round(total / 2**30, 2),
        "resolution": args.resolution,
        "amp": args.amp,
        "compile": args.compile,
        "allocated_mebibytes": {str(batch): row[0] for batch, row in sorted(rows.items()) if row},
        "mebibytes_an_image": slope,
        "largest_batch": most,
        "versions": {"torch": torch.__version__},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
