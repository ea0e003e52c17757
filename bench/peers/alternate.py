"""Runs two benchmark commands in turns and compares what they report, so that both see the same machine at the same time.

    python bench/peers/alternate.py --rounds 3 \\
        --ours "target/release/engine bench train --batch 16 --resolution 224 --steps 3 --json" \\
        --peer "python bench/peers/train_throughput.py --batch 16 --resolution 224 --steps 3"

Each command prints one JSON object on its last line of stdout. `--key` picks the figure (images_per_second); the table ends
with the medians, their ratio and the peak memory. `--raw FILE` keeps every object.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys


def run(command):
    """The object on the last line of the command's output."""
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        sys.exit(f"exit {done.returncode} from: {command}")
    return json.loads(lines[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--key", default="images_per_second")
    parser.add_argument("--raw", help="file that gets every object, one a line")
    args = parser.parse_args()

    print(f"{'round':>6} {'ours':>10} {'peer':>10} {'ratio':>6} {'load':>6}")
    rows = []
    for number in range(1, args.rounds + 1):
        ours, peer = run(args.ours), run(args.peer)
        rows.append((ours, peer))
        a, b = ours[args.key], peer[args.key]
        print(f"{number:6} {a:10.2f} {b:10.2f} {a / b:6.2f} {os.getloadavg()[0]:6.1f}", flush=True)
    middle = [statistics.median(row[side][args.key] for row in rows) for side in (0, 1)]
    print(f"median {middle[0]:10.2f} {middle[1]:10.2f} {middle[0] / middle[1]:6.2f}   {args.key}")
    memory = [max(row[side].get("peak_memory_mb", 0.0) for row in rows) for side in (0, 1)]
    print(f"memory {memory[0]:10.0f} {memory[1]:10.0f}          MB at most")
    if args.raw:
        with open(args.raw, "a") as file:
            for ours, peer in rows:
                file.write(json.dumps({"ours": ours, "peer": peer}) + "\n")


if __name__ == "__main__":
    main()
