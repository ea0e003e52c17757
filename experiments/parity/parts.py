"""The parts of run.py, each a function of the run and of when it began."""

import json
import os
import platform
import shutil
import signal
import subprocess
import tarfile
import time

import child
import figures
import results
from recipe import HERE, ROOT

PEERS = ROOT / "bench" / "peers"
VERSIONS = """import torch, torchvision, PIL
print("torch", torch.__version__, "torchvision", torchvision.__version__, "Pillow", PIL.__version__, end=" ")
print("cudnn", torch.backends.cudnn.version())
"""


class TimeIsUp(Exception):
    pass


class Failed(Exception):
    """`status` is the exit code of what failed."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def answer(*command):
    """What a command says, or nothing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()
    except OSError:
        return ""


# Folders nvidia/*/lib of a Python's packages that hold this library.
FOLDERS = """import glob, site, sys
roots = site.getsitepackages() + [path for path in sys.path if path.endswith("-packages")]
found = [f.rsplit("/", 1)[0] for root in roots for f in glob.glob(root + "/nvidia/*/lib/" + sys.argv[1] + ".so*")]
print(*dict.fromkeys(found), sep=":")
"""


def find_libraries(python):
    """cuBLAS and cuDNN that pip alone has installed are shown to the loader, as bench/gpu.sh does."""
    known = answer("ldconfig", "-p") or answer("/sbin/ldconfig", "-p")
    for library in ("libcublas", "libcudnn"):
        folders = "" if f"{library}.so" in known else answer(python, "-c", FOLDERS, library)
        paths = [path for path in (os.environ.get("LD_LIBRARY_PATH"), folders) if path]
        os.environ["LD_LIBRARY_PATH"] = ":".join(paths)


def once(part):
    """A part that takes minutes of a card and has passed stays so at the next call; the file that says it can be removed."""

    def run_once(run, began):
        note = run.out / f"{part.__name__}-passed.txt"
        if note.exists():
            run.say(True, part.__name__, began, f"in an earlier call: {note.read_text().strip()}")
        else:
            passed, text = part(run)
            run.say(passed, part.__name__, began, text)
            if passed:
                note.write_text(text + "\n")

    return run_once


def machine(run, began):
    card = answer("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    processor = [line.split(":")[1].strip() for line in answer("lscpu").splitlines() if line.startswith("Model name")]
    torch = answer(run.python, "-c", VERSIONS)
    host = f"{os.cpu_count()} cores, {' '.join(processor) or platform.processor()}; load {os.getloadavg()[0]:.1f}"
    lines = [f"commit {answer('git', 'rev-parse', 'HEAD')}", answer(run.engine, "--version"), torch, host]
    lines += [f"card: {card or 'none'}", f"Python {platform.python_version()}, {platform.platform()}"]
    (run.out / "machine.txt").write_text("\n".join(lines) + "\n")
    run.say(None, "machine", began, f"{card or host}; {torch}")


def paired(run):
    """Both programs from the same weights on the same batches at the same rates; whether they agree, and in words."""
    steps = run.scale["paired"]
    weights, batches, output = (run.scratch / name for name in ("init.safetensors", "batches.safetensors", "paired"))
    short = [*run.short(), "epochs=1", "schedule.warmup_epochs=0.5"]
    scaled = ["device.loss_scale=1024"] if run.on_card else []
    write = [run.python, HERE / "torch_train.py", "--recipe", run.file, *run.common(), "--device", "cpu"]
    run.must("paired-weights", [*write, "--write-initial", weights])
    dump = [run.engine, "data", "batches", "--config", run.file, *run.common(*short)]
    run.must("paired-batches", [*dump, "--count", steps, "-o", batches])
    run.must("paired-engine", [*run.engine_train(output, *short, *scaled), "--init", weights, "--resume", "none"])
    optim, loss = run.tables["optim"], run.tables["loss"]
    follow = [run.python, PEERS / "follow_amp.py", "--batches", batches, "--checkpoint", weights, "--steps", steps]
    follow += ["--metrics", output / "metrics.jsonl", "--device", run.scale["device"], "--amp", run.scale["amp"]]
    follow += ["--momentum", optim["momentum"], "--weight-decay", optim["weight_decay"], "--decay", optim["decay"]]
    follow += ["--runs", run.scale["paired_runs"]]
    outcome = run.may("paired", [*follow, "--label-smoothing", loss["label_smoothing"]])
    return outcome.status == 0, child.last_words(run.out / "paired.txt")


def compile_pays(run, began):
    """Seconds that compiled steps save over a whole training against those that compiling takes, for each mode."""
    path = run.out / "compile.json"
    if not run.scale["compile"]:
        run.say(None, "compile", began, "not tried at this scale")
        return
    if not path.exists():
        path.write_text(json.dumps(compiled_rates(run)) + "\n")
    said = json.loads(path.read_text())
    tried = [f"{mode} {one['images_per_second']:.0f} ({one['gain_seconds']:+.0f} s)" for mode, one in said["tried"].items()]
    compiled = ", ".join(tried) or "none works"
    text = f"eager {said['eager']:.0f} images/s, compiled: {compiled}; taken: {said['taken'] or 'eager'}"
    run.say(None, "compile", began, text)


def compiled_rates(run):
    data = run.tables["data"]
    bench = [run.python, PEERS / "train_throughput.py", "--device", run.scale["device"], "--amp", run.scale["amp"]]
    bench += ["--batch", data["batch"], "--resolution", data["resolution"], "--steps", 30]
    eager = run.must("compile-eager", bench, 60)
    rate = json.loads(eager.lines[-1][1])["images_per_second"]
    images, tried = run.tables["epochs"] * training_images(run.data), {}
    for mode in ("default", "reduce-overhead"):
        outcome = run.may(f"compile-{mode}", [*bench, "--compile", mode], 150)
        if outcome.status == 0:
            compiled = json.loads(outcome.lines[-1][1])["images_per_second"]
            gain = images / rate - images / compiled - (outcome.seconds - eager.seconds)
            tried[mode] = {"images_per_second": compiled, "gain_seconds": round(gain, 1)}
    best = max(tried, key=lambda mode: tried[mode]["gain_seconds"], default=None)
    return {"eager": rate, "tried": tried, "taken": best if best and tried[best]["gain_seconds"] > 0 else None}


def training_images(path):
    with tarfile.open(path) as tar:
        return sum(member.isfile() and "/train/" in member.name for member in tar)


def train(run, began):
    """Seed after seed, so that what there is when time is up can be compared."""
    done = 0
    for seed in range(run.scale["seeds"]):
        for program in results.PROGRAMS:
            done += train_one(run, program, seed)
    every = f"{2 * run.scale['seeds']} trainings of {run.tables['epochs']} epochs have ended"
    run.say(True, "train", began, f"{every}, {done} of them now")


def train_one(run, program, seed):
    """Goes on with a training, or begins it; 0 where it has ended before."""
    path = run.out / f"{program}-seed{seed}.json"
    if path.exists():
        return 0
    output, grace = run.scratch / f"{program}-seed{seed}", run.scale["grace"]
    output.mkdir(exist_ok=True)
    if run.left() < 2 * grace:
        raise TimeIsUp
    attempts = sorted(output.glob("attempt-*.json"))
    here = output / f"attempt-{len(attempts):03}.json"

    def keep(_, outcome):
        here.write_text(json.dumps(results.attempt(outcome)) + "\n")

    log = run.out / f"{program}-seed{seed}.txt"
    make = run.engine_train if program == "engine" else run.torch_train
    outcome = child.execute(make(output, f"seed={seed}"), log, run.left(), grace, card=run.on_card, on_line=keep)
    keep(None, outcome)
    run.judge_exit(outcome, log, f"{program}, seed {seed}: ")
    finish(run, path, output, program, seed)
    return 1


def finish(run, path, output, program, seed):
    """The training's result, in place of its folder."""
    attempts = [json.loads(one.read_text()) for one in sorted(output.glob("attempt-*.json"))]
    workers = run.scale["workers"] if program == "pytorch" else os.cpu_count()
    what = dict(recipe=run.recipe, scale=run.scale_name, program=program, seed=seed)
    found = results.result(attempts, results.steps(output / "metrics.jsonl"), run.tables["data"]["batch"], workers)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**what, **found}, indent=1) + "\n")
    part.replace(path)
    shutil.rmtree(output)


def resume(run):
    """Three short epochs, killed in the second; whether they end alike, and in words."""
    folders = [run.scratch / "whole", run.scratch / "cut"]
    steps = run.scale["paired"]
    short = [*run.short(), "epochs=3", "schedule.warmup_epochs=1", "checkpoint.every_epochs=1"]
    short.append(f"checkpoint.every_steps={max(steps // 3, 1)}")
    algorithms = [f"device.algorithms=file:{run.scratch / 'algorithms.json'}"] if run.on_card else []
    whole, cut = (run.engine_train(folder, *short, *algorithms) for folder in folders)
    shutil.rmtree(folders[0], ignore_errors=True)
    ends = [seconds for seconds, line in run.must("resume-whole", whole).lines if line.startswith("epoch:")]
    reached = kill_in_second_epoch(run, cut, folders[1], (ends[1] - ends[0]) / 2)
    if reached != 1:
        return False, f"the kill did not fall into epoch 2: {reached} epochs had ended"
    run.must("resume-again", cut)
    names = [folder / "checkpoints" / "last.safetensors" for folder in folders]
    same = names[0].read_bytes() == names[1].read_bytes()
    said = "the same bytes" if same else "OTHER bytes than the uninterrupted run"
    return same, f"killed with SIGKILL inside epoch 2 of 3 and resumed: {said}"


def kill_in_second_epoch(run, command, folder, after):
    """SIGKILL `after` seconds from the end of epoch 1; how many epochs had ended. Tried again where the epoch was over."""

    def kill(process, outcome):
        if outcome.lines[-1][1].startswith("epoch: 1 "):
            time.sleep(after)
            os.kill(process.pid, signal.SIGKILL)

    reached = None
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        log = run.out / "resume-cut.txt"
        log.unlink(missing_ok=True)
        killed = child.execute(command, log, run.left(), on_line=kill)
        reached = sum(line.startswith("epoch:") for _, line in killed.lines)
        if reached == 1 and killed.status < 0:
            break
        after /= 2
    return reached


def judge(run, began):
    figures.write(run.folder)
    found = results.read(run.folder)
    engine, pytorch = (found.get((run.recipe, run.scale_name, program), []) for program in results.PROGRAMS)
    if not engine or not pytorch:
        run.say(None, "top1", began, "nothing to compare yet")
        return
    count, wanted = min(len(engine), len(pytorch)), run.scale["seeds"]
    passed, text = results.judge_top1(engine, pytorch)
    run.say(passed if count == wanted else None, "top1", began, f"{text}; {count} of {wanted} seeds")
    passed, text = results.judge_rates(engine[0], pytorch[0])
    run.say(passed, "rates", began, text)
    passed, text = results.judge_time(engine, pytorch, run.scale["time_ratio"])
    run.say(passed if run.scale["time_ratio"] else None, "time", began, text)
    passed, text = results.judge_loader(engine)
    run.say(passed, "loader", began, text)
    if gain := results.judge_gain(found, run.scale_name):
        run.say(gain[0], "gain", began, gain[1])
    print((run.folder / f"table-{run.scale_name}.md").read_text(), flush=True)


PARTS = {
    "machine": machine,
    "paired": once(paired),
    "compile": compile_pays,
    "train": train,
    "resume": once(resume),
    "judge": judge,
}
