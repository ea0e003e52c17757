#!/usr/bin/env python3
"""engine beside PyTorch: the same recipe, pictures and seeds, to the end of training. --help says the rest."""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tarfile
import time

import child
import figures
import recipe as recipes
import results
from recipe import HERE, SCALES

ROOT = HERE.parents[1]
PEERS = ROOT / "bench" / "peers"
PARTS = ("machine", "paired", "compile", "train", "resume", "judge")
USAGE = """
Parts, in this order (--parts A,B runs some):
  machine  what this runs on
  paired   step losses on engine's own batches, weights and rates, beside two runs of PyTorch  (bench/peers/follow_amp.py)
  compile  whether torch.compile pays over the whole training                                  (bench/peers/train_throughput.py)
  train    engine and PyTorch in turns, seed after seed
  resume   engine killed with SIGKILL inside an epoch and resumed: the same bytes
  judge    top-1, learning rates, time to the same accuracy, waiting for data; tables and curves

Nothing runs longer than --minutes: trainings are stopped with a checkpoint, and the same command goes on. Results of
trainings that have ended are kept in FOLDER and not repeated, also on another machine. $ENGINE is the binary (default:
target/release/engine), $PYTHON the Python with PyTorch and torchvision (default: the one that runs this).
Exit: 0 all passed, 1 something failed, 2 wrong command line, 70 no card, 75 time is up: run the same command again.
"""


class TimeIsUp(Exception):
    pass


class Failed(Exception):
    pass


class Run:
    """One recipe at one scale: where things are, what is left of the time, what was found."""

    def __init__(self, args):
        self.recipe, self.scale_name, self.scale = args.recipe, args.scale, SCALES[args.scale]
        self.file = HERE / f"{args.recipe}.toml"
        self.settings = self.scale["set"]
        self.tables = recipes.load(self.file, self.settings)
        name = f"{args.recipe}-{args.scale}"
        self.folder, self.out, self.scratch = args.folder, args.folder / name, args.scratch / name
        for folder in (self.out, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + 60 * args.minutes
        self.engine = os.environ.get("ENGINE", str(ROOT / "target/release/engine"))
        self.python = os.environ.get("PYTHON", sys.executable)
        self.on_card = self.scale["device"] == "cuda"
        self.data = self.subset(args.data)
        self.verdicts = []

    def left(self):
        return self.deadline - time.monotonic()

    def say(self, passed, part, began, text):
        """A line of the table; `passed` None is neither: nothing was judged."""
        word = {True: "PASS", False: "FAIL", None: "--"}[passed]
        self.verdicts.append(word)
        print(f"{word:<5} {part:<9} {time.monotonic() - began:5.0f} s  {text}", flush=True)

    def subset(self, data):
        """The tar of the first classes alone, where not all are wanted."""
        classes = self.scale["classes"]
        if classes == 0:
            return data
        path = self.scratch.parent / f"first-{classes}.tar"
        if not path.exists():
            part = path.with_suffix(".part")
            with tarfile.open(data) as source, tarfile.open(part, "w") as to:
                files = [member for member in source if member.isfile() and member.name.count("/") >= 3]
                kept = sorted({member.name.split("/")[-2] for member in files})[:classes]
                for member in files:
                    if member.name.split("/")[-2] in kept:
                        to.addfile(member, source.extractfile(member))
            part.replace(path)
        return path

    def common(self, *more):
        """What engine and torch_train.py are both told."""
        sets = [word for setting in [*self.settings, *more] for word in ("--set", setting)]
        return [*sets, "--data", self.data]

    def engine_train(self, output, *more):
        precision = {"fp16": "fp16", "bf16": "bf16", "fp32": "fp32"}[self.scale["amp"]]
        device = ["--device", self.scale["device"], "--set", f"device.precision={precision}"]
        algorithms = ["--set", f"device.algorithms=file:{self.scratch / 'algorithms.json'}"] if self.on_card else []
        return [self.engine, "train", "--config", self.file, *self.common(*more), "--output", output, *device, *algorithms]

    def torch_train(self, output, *more):
        flags = ["--device", self.scale["device"], "--amp", self.scale["amp"], "--workers", self.scale["workers"]]
        if self.compiles():
            flags.append("--compile")
        return [self.python, HERE / "torch_train.py", "--recipe", self.file, *self.common(*more), "--output", output, *flags]

    def compiles(self):
        path = self.out / "compile.json"
        return path.exists() and json.loads(path.read_text())["pays"]

    def must(self, name, command, seconds=300):
        """Runs a step of a part; its output is the last line of a failure."""
        log = self.out / f"{name}.txt"
        log.unlink(missing_ok=True)
        if self.left() < 5:
            raise TimeIsUp
        outcome = child.execute(command, log, min(seconds, self.left()))
        if outcome.status != 0:
            if self.left() < 5:
                raise TimeIsUp
            raise Failed(f"exit {outcome.status}: {child.last_words(log)}")
        return outcome


def machine(run, began):
    def answer(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()
        except OSError:
            return ""

    versions = "import torch, torchvision, PIL; print('torch', torch.__version__, 'torchvision', torchvision.__version__, 'Pillow', PIL.__version__, 'cudnn', torch.backends.cudnn.version())"
    card = answer("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    processor = [line.split(":")[1].strip() for line in answer("lscpu").splitlines() if line.startswith("Model name")]
    lines = [
        f"commit {answer('git', 'rev-parse', 'HEAD')}",
        answer(run.engine, "--version"),
        answer(run.python, "-c", versions),
        f"{os.cpu_count()} cores, {' '.join(processor) or platform.processor()}; load {os.getloadavg()[0]:.1f}",
        f"card: {card or 'none'}",
        f"Python {platform.python_version()}, {platform.platform()}",
    ]
    (run.out / "machine.txt").write_text("\n".join(lines) + "\n")
    run.say(None, "machine", began, f"{card or lines[3]}; {lines[2]}")


def paired(run, began):
    """Both programs from the same weights on the same batches at the same rates."""
    steps, batch = run.scale["paired"], run.tables["data"]["batch"]
    short = ["epochs=1", "schedule.warmup_epochs=0.5", f"data.limit={steps * batch}"]
    weights, batches, output = (run.scratch / name for name in ("init.safetensors", "batches.safetensors", "paired"))
    optim, loss = run.tables["optim"], run.tables["loss"]
    scaled = ["device.loss_scale=1024"] if run.on_card else []
    # write-initial takes the number of classes from the data, and its seed from the recipe.
    write = [run.python, HERE / "torch_train.py", "--recipe", run.file, *run.common(), "--device", "cpu"]
    run.must("paired-weights", [*write, "--write-initial", weights])
    count = ["--count", steps, "-o", batches]
    run.must("paired-batches", [run.engine, "data", "batches", "--config", run.file, *run.common(*short), *count])
    begin = ["--init", weights, "--resume", "none"]
    run.must("paired-engine", [*run.engine_train(output, *short, *scaled), *begin])
    follow = [run.python, PEERS / "follow_amp.py", "--batches", batches, "--checkpoint", weights]
    follow += ["--metrics", output / "metrics.jsonl", "--steps", steps, "--device", run.scale["device"], "--amp", run.scale["amp"]]
    follow += ["--momentum", optim["momentum"], "--weight-decay", optim["weight_decay"], "--decay", optim["decay"]]
    try:
        run.must("paired", [*follow, "--label-smoothing", loss["label_smoothing"]])
        passed = True
    except Failed:
        passed = False
    run.say(passed, "paired", began, child.last_words(run.out / "paired.txt"))


def compile_pays(run, began):
    """Seconds that compiled steps save over a whole training against those that compiling takes."""
    path = run.out / "compile.json"
    if not run.scale["compile"]:
        run.say(None, "compile", began, "not tried at this scale")
        return
    if not path.exists():
        data = run.tables["data"]
        bench = [run.python, PEERS / "train_throughput.py", "--device", run.scale["device"], "--amp", run.scale["amp"]]
        bench += ["--batch", data["batch"], "--resolution", data["resolution"], "--steps", 30]
        took = {name: run.must(f"compile-{name}", [*bench, *flags], 150) for name, flags in (("eager", []), ("compiled", ["--compile"]))}
        rates = {name: json.loads(outcome.lines[-1][1])["images_per_second"] for name, outcome in took.items()}
        images = run.tables["epochs"] * results_images(run)
        saved = images / rates["eager"] - images / rates["compiled"]
        cost = took["compiled"].seconds - took["eager"].seconds
        path.write_text(json.dumps({**rates, "saved_seconds": saved, "compile_seconds": cost, "pays": saved > cost}) + "\n")
    said = json.loads(path.read_text())
    text = f"eager {said['eager']:.0f}, compiled {said['compiled']:.0f} images/s; saves {said['saved_seconds']:.0f} s a training, costs {said['compile_seconds']:.0f} s: "
    run.say(None, "compile", began, text + ("taken" if said["pays"] else "not taken"))


def results_images(run):
    """Training images in the data."""
    with tarfile.open(run.data) as tar:
        return sum(member.isfile() and "/train/" in member.name for member in tar)


def train(run, began):
    """Seed after seed, so that what there is when time is up can be compared."""
    done = 0
    for seed in range(run.scale["seeds"]):
        for program in results.PROGRAMS:
            done += train_one(run, program, seed)
    run.say(True, "train", began, f"{2 * run.scale['seeds']} trainings of {run.tables['epochs']} epochs have ended, {done} of them now")


def train_one(run, program, seed):
    """Goes on with a training, or begins it; 0 where it has ended before."""
    path = run.out / f"{program}-seed{seed}.json"
    if path.exists():
        return 0
    output = run.scratch / f"{program}-seed{seed}"
    output.mkdir(exist_ok=True)
    grace = run.scale["grace"]
    if run.left() < 2 * grace:
        raise TimeIsUp
    make = run.engine_train if program == "engine" else run.torch_train
    log = run.out / f"{program}-seed{seed}.txt"
    outcome = child.execute(make(output, f"seed={seed}"), log, run.left(), grace, card=run.on_card)
    kept = output / "attempts.jsonl"
    with open(kept, "a") as file:
        file.write(json.dumps(results.attempt(outcome)) + "\n")
    if outcome.status == child.STOPPED or (outcome.status < 0 and run.left() < 5):
        raise TimeIsUp
    if outcome.status != 0:
        raise Failed(f"{program}, seed {seed}: exit {outcome.status}: {child.last_words(log)}")
    attempts = [json.loads(line) for line in kept.read_text().splitlines()]
    workers = run.scale["workers"] if program == "pytorch" else os.cpu_count()
    what = dict(recipe=run.recipe, scale=run.scale_name, program=program, seed=seed)
    found = results.result(attempts, results.steps(output / "metrics.jsonl"), run.tables["data"]["batch"], workers)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**what, **found}, indent=1) + "\n")
    part.replace(path)
    # Checkpoints of 100 MB and more; nothing needs them any longer.
    subprocess.run(["rm", "-rf", output], check=True)
    return 1


def resume(run, began):
    """Three short epochs, killed in the second."""
    batch, folders = run.tables["data"]["batch"], [run.scratch / "whole", run.scratch / "cut"]
    subprocess.run(["rm", "-rf", *folders], check=True)
    short = ["epochs=3", "schedule.warmup_epochs=1", f"data.limit={8 * batch}", "checkpoint.every_steps=3", "checkpoint.every_epochs=1"]
    whole, cut = (run.engine_train(folder, *short) for folder in folders)
    steps = run.must("resume-whole", whole).lines
    ends = [seconds for seconds, line in steps if line.startswith("epoch:")]

    def kill(process, line):
        if line.startswith("epoch: 1 "):
            time.sleep((ends[1] - ends[0]) / 2)
            process.kill()

    log = run.out / "resume-cut.txt"
    log.unlink(missing_ok=True)
    killed = child.execute(cut, log, run.left(), on_line=kill)
    reached = sum(line.startswith("epoch:") for _, line in killed.lines)
    if killed.status >= 0 or reached != 1:
        run.say(False, "resume", began, f"the kill did not fall into epoch 2: exit {killed.status} after {reached} epochs")
        return
    run.must("resume-again", cut)
    names = [folder / "checkpoints" / "last.safetensors" for folder in folders]
    same = names[0].read_bytes() == names[1].read_bytes()
    text = "killed with SIGKILL inside epoch 2 of 3 and resumed: "
    run.say(same, "resume", began, text + ("the same bytes" if same else "OTHER bytes than the uninterrupted run"))


def judge(run, began):
    figures.write(run.folder)
    found = results.read(run.folder)
    engine, pytorch = (found.get((run.recipe, run.scale_name, program), []) for program in results.PROGRAMS)
    if not engine or not pytorch:
        run.say(None, "top1", began, "nothing to compare yet")
        return
    count, wanted = min(len(engine), len(pytorch)), run.scale["seeds"]
    passed, text = results.judge_top1(engine, pytorch)
    run.say(passed if count == wanted else None, "top1", began, text + f"; {count} of {wanted} seeds")
    run.say(*with_part(results.judge_rates(engine[0], pytorch[0]), "rates", began))
    passed, text = results.judge_time(engine, pytorch, run.scale["time_ratio"])
    run.say(passed if run.scale["time_ratio"] else None, "time", began, text)
    run.say(*with_part(results.judge_loader(engine), "loader", began))
    gain = results.judge_gain(found, run.scale_name)
    if gain:
        run.say(*with_part(gain, "gain", began))
    print((run.folder / f"table-{run.scale_name}.md").read_text())


def with_part(verdict, part, began):
    passed, text = verdict
    return passed, part, began, text


STEPS = dict(zip(PARTS, (machine, paired, compile_pays, train, resume, judge)))


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, choices=recipes.NAMES)
    parser.add_argument("--scale", required=True, choices=list(SCALES))
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B")
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything (8.5)")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT.parent / "shared/data/tiny-imagenet-30.tar")
    parser.add_argument("--scratch", type=pathlib.Path, default=ROOT / "target/parity", help="checkpoints of unfinished trainings")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="default: bench/runs/<date>-parity")
    args = parser.parse_args()
    args.parts = args.parts.split(",")
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"--parts {part}: no such part; --help lists them")
    if not args.data.is_file():
        parser.error(f"--data {args.data}: no such file; a tar with train/ and val/ of class folders is wanted")
    args.folder = args.folder or ROOT / "bench/runs" / f"{time.strftime('%Y-%m-%d')}-parity"
    return args


def main():
    args = arguments()
    if SCALES[args.scale]["device"] == "cuda" and child.card_memory_mb() == 0 and not has_card():
        print("nvidia-smi finds no card: --scale cpu is the part that needs none", file=sys.stderr)
        return 70
    run = Run(args)
    if not os.access(run.engine, os.X_OK):
        print(f"{run.engine}: no such program; cargo build --release, or set ENGINE", file=sys.stderr)
        return 2
    print(f"{args.recipe} at {args.scale}; raw output in {run.out}", flush=True)
    for part in args.parts:
        began = time.monotonic()
        try:
            STEPS[part](run, began)
        except TimeIsUp:
            judge(run, began)
            print(f"time is up after {args.minutes:g} minutes in part {part}: the same command goes on")
            return 75
        except Failed as error:
            run.say(False, part, began, str(error))
    failed = run.verdicts.count("FAIL")
    print(f"{failed} FAILED; raw output in {run.out}" if failed else "all passed")
    return 1 if failed else 0


def has_card():
    try:
        return subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
