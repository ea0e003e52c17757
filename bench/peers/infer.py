"""ResNet-50 on this CPU: ours and its peers on the same weights, pixels, batch and threads, in turns.

    python bench/peers/infer.py [--batch 1] [--threads 1 2] [--precision fp32 bf16 int8] [--rounds 5] [--seconds 2]
                                [--isa avx2] [--peers onnxruntime openvino torch tract rten] [--raw FILE]

Without --weights, random ones: speed does not depend on them. Each peer is a process that stays, loads once, and is stopped
(SIGSTOP) while it is not its turn, so that threads that spin disturb nobody; ours is `engine bench infer`, once a turn, on the
model file of the same weights. A round times everybody for --seconds, in an order that changes. Printed: milliseconds of a
run, minimum and median of all rounds; on one thread also what a run takes of the core (other programs do not count there);
ratios to ours (above 1: ours is faster); peak memory; first answer; what the peer chose to run.

--isa avx2 gives ours `--isa avx2` and the peers ONEDNN_MAX_CPU_ISA=AVX2; the kernels printed are the proof. Needs
bench/peers/requirements.txt; a peer that is not installed is left out by name. tract and rten: bench/peers/rust, whose binary INFER_PEER may name.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUST_PEERS = pathlib.Path(os.environ.get("INFER_PEER", HERE / "rust/target/release/infer-peer"))
# Which precisions a peer has a network for.
PRECISIONS = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "torch": ("fp32", "bf16"),
    "tract": ("fp32",),
    "rten": ("fp32",),
}


class Models:
    """Files of one network, made when they are first wanted."""

    def __init__(self, engine, folder, weights, calibrate):
        self.engine, self.folder, self.calibrate = engine, folder, calibrate
        folder.mkdir(parents=True, exist_ok=True)
        self.weights = weights or folder / "random.safetensors"
        if not self.weights.exists():
            run(sys.executable, HERE / "infer_model.py", "weights", self.weights)

    def ours(self):
        model = self.folder / "model.engine"
        if not model.exists():
            photographs = self.calibrate or self.folder / "synth"
            if not photographs.exists():
                run(self.engine, "data", "synth", photographs, "--train-per-class", "4", "--val-per-class", "1", "--size", "256")
            command = [self.engine, "export", "--checkpoint", self.weights, "--format", "cpu", "--output", model]
            run(*command, "--int8", "--calibrate", photographs, "--calibration-images", "32", "--verify-images", "8")
        return model

    def onnx(self, precision, batch):
        model = self.folder / f"{'int8' if precision == 'int8' else 'fp32'}-b{batch}.onnx"
        if not model.exists():
            command = [sys.executable, HERE / "infer_model.py", "onnx", "--weights", self.weights]
            run(*command, "--output", self.folder, "--batch", str(batch))
        return model


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)


class Peer:
    """A worker that is loaded, stopped, and goes on for its turns."""

    def __init__(self, name, precision, model, batch, threads, isa):
        self.name = name
        arguments = [precision, str(model), str(batch), str(threads)]
        if name in ("tract", "rten"):
            command = [str(RUST_PEERS), name, *arguments]
        else:
            command = [sys.executable, str(HERE / "infer_worker.py"), name, *arguments]
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
        environment["RTEN_NUM_THREADS"] = str(threads)
        if isa == "avx2":
            environment["ONEDNN_MAX_CPU_ISA"] = "AVX2"
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.ready = self.read()
        self.ms, self.cpu = [], []
        self.process.send_signal(signal.SIGSTOP)

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def turn(self, seconds):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        answer = self.read()
        self.process.send_signal(signal.SIGSTOP)
        self.ms += answer["ms"]
        self.cpu.append(answer["cpu_ms"])

    def finish(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        memory = self.read()["peak_memory_mb"]
        self.process.wait()
        kernels = ", ".join(f"{count} {kind}" for kind, count in sorted(self.ready["kernels"].items(), key=lambda k: -k[1]))
        return {
            "name": f"{self.name} {self.ready['version']}",
            "ms": self.ms,
            "cpu_ms": self.cpu,
            "peak_memory_mb": memory,
            "load_ms": self.ready["load_ms"],
            "kernels": kernels,
            "logits": self.ready["logits"],
        }


class Ours:
    def __init__(self, engine, precision, model, batch, threads, isa):
        self.command = [str(engine), "bench", "infer", "--json", "--model", str(model), "--batch", str(batch)]
        self.command += ["--threads", str(threads), "--precision", precision, "--isa", isa]
        self.answers = []

    def turn(self, seconds):
        done = subprocess.run([*self.command, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True, check=True)
        self.answers.append(json.loads(done.stdout))

    def finish(self):
        last = self.answers[-1]
        return {
            "name": "engine",
            # Each turn gives its minimum and median.
            "ms": [answer["latency_ms"][key] for answer in self.answers for key in ("min", "median")],
            "cpu_ms": [answer["cpu_ms"] for answer in self.answers if "cpu_ms" in answer],
            "medians": [answer["latency_ms"]["median"] for answer in self.answers],
            "peak_memory_mb": max(answer["peak_memory_mb"] for answer in self.answers),
            "load_ms": min(answer["load_ms"] for answer in self.answers),
            "kernels": f"{last['device']} {last['precision']}, {100 * max(a['share_of_peak'] for a in self.answers):.0f} % of peak",
        }


def is_there(name):
    if name in ("tract", "rten"):
        return RUST_PEERS.exists()
    return importlib.util.find_spec(name) is not None


def compare(models, precision, batch, threads, args):
    """One table: everybody in this precision, batch and number of threads."""
    players = [Ours(args.engine, precision, models.ours(), batch, threads, args.isa)]
    for name in args.peers:
        if precision not in PRECISIONS[name] or not is_there(name):
            continue
        model = models.weights if name == "torch" else models.onnx(precision, batch)
        try:
            players.append(Peer(name, precision, model, batch, threads, args.isa))
        except RuntimeError as error:
            print(f"left out: {error}")
    loads = []
    for number in range(args.rounds):
        for player in players[number % len(players) :] + players[: number % len(players)]:
            player.turn(args.seconds)
            loads.append(os.getloadavg()[0])
    rows = [player.finish() for player in players]
    print(f"\n{precision}, batch {batch}, {threads} threads, {args.isa}; load {min(loads):.1f} to {max(loads):.1f}")
    print(f"{'':24} {'min ms':>9} {'ratio':>6} {'median':>9} {'ratio':>6} {'core ms':>9} {'ratio':>6} {'MB':>6} {'first':>7}")
    # A turn's core time is an average; the fastest turn is the least disturbed.
    figures = lambda row: (
        min(row["ms"]),
        statistics.median(row.get("medians", row["ms"])),
        min(row["cpu_ms"]) if threads == 1 and row["cpu_ms"] else float("nan"),
    )
    base = figures(rows[0])
    for row in rows:
        cells = "".join(f" {value:9.2f} {value / own:6.2f}" for value, own in zip(figures(row), base))
        print(f"{row['name']:24}{cells} {row['peak_memory_mb']:6.0f} {row['load_ms']:7.0f}")
    for row in rows:
        print(f"  {row['name']}: {row['kernels']}", flush=True)
    if args.raw:
        with open(args.raw, "a") as file:
            what = {"precision": precision, "batch": batch, "threads": threads, "isa": args.isa, "loads": loads}
            file.write(json.dumps(what | {"rows": rows}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--peers", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--isa", default="auto", choices=["auto", "avx2"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--weights", type=pathlib.Path, help="a safetensors state dict of resnet50")
    parser.add_argument("--calibrate", type=pathlib.Path, help="photographs for int8; without it, drawn shapes: speed alone")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "target/peers", help="folder for the files made here")
    parser.add_argument("--engine", type=pathlib.Path, default=ROOT / "target/release/engine")
    parser.add_argument("--raw", help="file that gets every figure, a line of JSON a table")
    args = parser.parse_args()
    missing = [name for name in args.peers if not is_there(name)]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")
    args.engine = args.engine.resolve()
    models = Models(args.engine, args.models, args.weights, args.calibrate)
    for precision in args.precision:
        if args.isa == "avx2" and precision == "bf16":
            continue
        for batch in args.batch:
            for threads in args.threads:
                compare(models, precision, batch, threads, args)


if __name__ == "__main__":
    main()
