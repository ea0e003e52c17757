#!/usr/bin/env python3
"""engine beside PyTorch: the same recipe, pictures and seeds, to the end of training."""

import argparse
import json
import os
import pathlib
import signal
import sys
import tarfile
import time

import child
import parts
import recipe as recipes
from recipe import HERE, ROOT, SCALES

USAGE = """
parts, in this order (--parts A,B runs some):
  machine  what this runs on
  paired   step losses on engine's own batches, weights and rates, beside runs of PyTorch      (bench/peers/follow_amp.py)
  compile  whether torch.compile pays over the whole training                                  (bench/peers/train_throughput.py)
  train    engine and PyTorch in turns, seed after seed
  resume   engine killed with SIGKILL inside an epoch and resumed: the same bytes
  judge    top-1, learning rates, time to the same accuracy, waiting for data; tables and curves

Nothing runs longer than --minutes: trainings are stopped with a checkpoint, and the same command goes on. Results of
trainings that have ended stay in FOLDER and are not repeated, also on another machine; nor are paired and resume once they
have passed. $ENGINE is the binary (default:
target/release/engine), $PYTHON the Python with PyTorch and torchvision (default: the one that runs this).
Exit: 0 all passed, 1 something failed, 2 wrong command line, 70 no card or a failing one, 75 time is up: run it again.
"""


class Run:
    """One recipe at one scale: where things are, what is left of the time, what was found."""

    def __init__(self, args):
        self.recipe, self.scale_name, self.scale = args.recipe, args.scale, SCALES[args.scale]
        self.file, self.settings = HERE / f"{args.recipe}.toml", self.scale["set"]
        self.tables = recipes.load(self.file, self.settings)
        name = f"{args.recipe}-{args.scale}"
        self.folder, self.out, self.scratch = args.folder, args.folder / name, args.scratch / name
        for folder in (self.out, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + 60 * args.minutes
        self.engine, self.python = args.engine, os.environ.get("PYTHON", sys.executable)
        self.on_card = self.scale["device"] == "cuda"
        self.data = subset(args.data, self.scale["classes"], args.scratch)
        self.failed = 0

    def left(self):
        return self.deadline - time.monotonic()

    def say(self, passed, part, began, text):
        """A line of the table; with `passed` None nothing was judged."""
        self.failed += passed is False
        word = {True: "PASS", False: "FAIL", None: "--"}[passed]
        print(f"{word:<5} {part:<9} {time.monotonic() - began:5.0f} s  {text}", flush=True)

    def common(self, *more):
        """What engine and torch_train.py are both told."""
        sets = [word for setting in [*self.settings, *more] for word in ("--set", setting)]
        return [*sets, "--data", self.data]

    def short(self):
        """Settings for epochs of `paired` steps."""
        return [f"data.limit={self.scale['paired'] * self.tables['data']['batch']}"]

    def engine_train(self, output, *more):
        settings = [*more, f"device.precision={self.scale['amp']}"]
        command = [self.engine, "train", "--config", self.file, *self.common(*settings)]
        return [*command, "--output", output, "--device", self.scale["device"]]

    def torch_train(self, output, *more):
        flags = ["--device", self.scale["device"], "--amp", self.scale["amp"], "--workers", self.scale["workers"]]
        path = self.out / "compile.json"
        mode = json.loads(path.read_text())["taken"] if path.exists() else None
        flags += ["--compile", mode] if mode else []
        command = [self.python, HERE / "torch_train.py", "--recipe", self.file, *self.common(*more)]
        return [*command, "--output", output, *flags]

    def may(self, name, command, seconds=600):
        """Runs a step of a part, which may fail."""
        log = self.out / f"{name}.txt"
        log.unlink(missing_ok=True)
        if self.left() < 5:
            raise parts.TimeIsUp
        return child.execute(command, log, min(seconds, self.left()))

    def must(self, name, command, seconds=600):
        """Runs a step of a part."""
        outcome = self.may(name, command, seconds)
        self.judge_exit(outcome, self.out / f"{name}.txt")
        return outcome

    def judge_exit(self, outcome, log, who=""):
        if outcome.status == child.STOPPED or (outcome.status < 0 and self.left() < 5):
            raise parts.TimeIsUp
        if outcome.status != 0:
            raise parts.Failed(outcome.status, f"{who}exit {outcome.status}: {child.last_words(log)}")


def subset(data, classes, folder):
    """A tar of the first classes alone, where not all are wanted."""
    if classes == 0:
        return data
    path = folder / f"first-{classes}.tar"
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


def arguments():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=USAGE, formatter_class=formatter)
    parser.add_argument("--recipe", required=True, choices=recipes.NAMES)
    parser.add_argument("--scale", required=True, choices=list(SCALES), help="scales.toml")
    parser.add_argument("--parts", default=",".join(parts.PARTS), metavar="A,B")
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything (8.5)")
    data, scratch = ROOT.parent / "shared/data/tiny-imagenet-30.tar", ROOT / "target/parity"
    parser.add_argument("--data", type=pathlib.Path, default=data, help="a tar with train/ and val/ of class folders")
    parser.add_argument("--scratch", type=pathlib.Path, default=scratch, help="unfinished trainings (target/parity)")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="results (bench/runs/<date>-parity)")
    args = parser.parse_args()
    args.parts = args.parts.split(",")
    for part in args.parts:
        if part not in parts.PARTS:
            parser.error(f"--parts {part}: no such part; --help lists them")
    if not tarfile_is_there(args.data):
        parser.error(f"--data {args.data}: no such tar file; one with train/ and val/ of class folders is wanted")
    args.folder = args.folder or ROOT / "bench/runs" / f"{time.strftime('%Y-%m-%d')}-parity"
    args.engine = os.environ.get("ENGINE", str(ROOT / "target/release/engine"))
    if not os.access(args.engine, os.X_OK):
        parser.error(f"{args.engine}: no such program; cargo build --release, or set ENGINE")
    return args


def tarfile_is_there(path):
    return path.is_file() and tarfile.is_tarfile(path)


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if SCALES[args.scale]["device"] == "cuda" and not parts.answer("nvidia-smi", "--list-gpus"):
        print("nvidia-smi finds no card; --scale cpu needs none", file=sys.stderr)
        return child.DEVICE_FAILED
    try:
        args.scratch.mkdir(parents=True, exist_ok=True)
        run = Run(args)
    except (OSError, tarfile.TarError) as error:
        print(f"cannot begin: {error}", file=sys.stderr)
        return 1
    if run.on_card:
        parts.find_libraries(run.python)
    print(f"{args.recipe} at {args.scale}; raw output in {run.out}", flush=True)
    for part in args.parts:
        began = time.monotonic()
        try:
            parts.PARTS[part](run, began)
        except (parts.TimeIsUp, KeyboardInterrupt):
            parts.judge(run, began)
            print(f"time is up in part {part}: the same command goes on")
            return child.STOPPED
        except parts.Failed as error:
            run.say(False, part, began, str(error))
            if error.status == child.DEVICE_FAILED:
                return child.DEVICE_FAILED
    print(f"{run.failed} FAILED; raw output in {run.out}" if run.failed else "all passed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
