"""From what a training said to its result, and from results to the comparison. Standard library alone."""

import json
import math
import re
import statistics

PROGRAMS = ("engine", "pytorch")
EPOCH = re.compile(r"^epoch: (\d+) .*train_loss: ([\d.]+|nan) .*val_loss: ([\d.]+|nan) .*val_top1: ([\d.]+)%")
RATES = 100  # learning rates of a training that its result keeps


def attempt(outcome):
    """What an attempt of a training leaves: its epochs with the seconds since it began, and what it took."""
    epochs = []
    for seconds, line in outcome.lines:
        if match := EPOCH.match(line):
            number, train, val, top1 = match.groups()
            marks = dict(train_loss=float(train), val_loss=float(val), val_top1=float(top1))
            epochs.append(dict(epoch=int(number), seconds=round(seconds, 3), **marks))
    took = dict(seconds=outcome.seconds, cpu_seconds=outcome.cpu_seconds, peak_memory_mb=outcome.peak_memory_mb)
    return {**took, "epochs": epochs}


def steps(path):
    """A metrics.jsonl's lines of kind "step", one a step: the last one written."""
    lines = (json.loads(line) for line in path.read_text().splitlines() if line.startswith("{"))
    by_number = {line["step"]: line for line in lines if line.get("kind") == "step"}
    return [by_number[number] for number in sorted(by_number)]


def result(attempts, logged, batch, workers):
    """All attempts of a training that has ended as one: seconds add up, start-up of each included."""
    epochs, before = {}, 0.0
    for one in attempts:
        for epoch in one["epochs"]:
            epochs[epoch["epoch"]] = {**epoch, "seconds": round(before + epoch["seconds"], 3)}
        before += one["seconds"]
    last_of_epoch = {line["epoch"]: line for line in logged}
    images = batch * len(logged) / len(last_of_epoch)
    stride = max(1, len(logged) // RATES)
    return {
        "epochs": [epochs[number] for number in sorted(epochs)],
        "seconds": round(before, 2),
        "attempts": len(attempts),
        "images_per_second": round(throughput(attempts, images), 2),
        "peak_memory_mb": round(max(one["peak_memory_mb"] for one in attempts), 1),
        "wait": round(statistics.mean(line["clock"]["wait"] for line in last_of_epoch.values()), 5),
        "cores": round(sum(one["cpu_seconds"] for one in attempts) / before, 2),
        "workers": workers,
        "rates": [line["lr"] for line in logged[::stride]],
    }


def throughput(attempts, images):
    """Images of training a second, validation and checkpoints included, the first epoch of each attempt left out."""
    spans = [
        later["seconds"] - earlier["seconds"]
        for one in attempts
        for earlier, later in zip(one["epochs"], one["epochs"][1:])
    ]
    # Lines that were read together, on a machine too busy to read them in time, are 0 s apart.
    if sum(spans) > 0:
        return images * len(spans) / sum(spans)
    return images / attempts[0]["epochs"][0]["seconds"]


def read(folder):
    """{(recipe, scale, program): results in the order of their seeds}."""
    found = {}
    for path in sorted(folder.glob("*/*-seed*.json")):
        one = json.loads(path.read_text())
        found.setdefault((one["recipe"], one["scale"], one["program"]), []).append(one)
    for results in found.values():
        results.sort(key=lambda one: one["seed"])
    return found


def final(results):
    return [one["epochs"][-1]["val_top1"] for one in results]


def spread(values):
    """Standard deviation of a sample; 0 of one value, whose spread is not known."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def error(values):
    return spread(values) / math.sqrt(len(values))


def common_accuracy(both):
    """The largest whole per cent that every training of both programs reaches at some epoch."""
    return math.floor(min(max(epoch["val_top1"] for epoch in one["epochs"]) for results in both for one in results))


def seconds_to(one, accuracy):
    return next(epoch["seconds"] for epoch in one["epochs"] if epoch["val_top1"] >= accuracy)


def mean_seconds_to(ones, accuracy):
    return statistics.mean(seconds_to(one, accuracy) for one in ones)


def judge_top1(engine, pytorch):
    """The criterion: means differ by at most two standard errors and by at most 1.0 point, or engine is higher."""
    ours, theirs = final(engine), final(pytorch)
    difference = statistics.mean(ours) - statistics.mean(theirs)
    allowed = 2 * math.hypot(error(ours), error(theirs))
    alone = len(ours) == 1 or len(theirs) == 1
    within = abs(difference) <= 1.0 and (alone or abs(difference) <= allowed)
    known = "one seed, whose spread is not known" if alone else f"two standard errors {allowed:.2f}"
    means = f"engine {statistics.mean(ours):.2f} %, PyTorch {statistics.mean(theirs):.2f} %"
    text = f"{means}: {difference:+.2f} points ({known})"
    return difference > 0 or within, text


def judge_gain(found, scale):
    """What `mixed` adds to `plain` in both programs: differences that differ by at most two standard errors."""
    gains = []
    for program in PROGRAMS:
        plain, mixed = (final(found.get((recipe, scale, program), [])) for recipe in ("plain", "mixed"))
        if len(plain) < 2 or len(mixed) < 2:
            return None
        gains.append((statistics.mean(mixed) - statistics.mean(plain), math.hypot(error(plain), error(mixed))))
    (ours, a), (theirs, b) = gains
    allowed = 2 * math.hypot(a, b)
    apart = abs(ours - theirs)
    text = f"mixed - plain: engine {ours:+.2f}, PyTorch {theirs:+.2f} points: {apart:.2f} apart"
    return apart <= allowed, f"{text} (two standard errors {allowed:.2f})"


def judge_rates(engine, pytorch):
    """Learning rates by step, as a share of the largest; PyTorch's schedulers multiply their way along in f64."""
    largest = max(engine["rates"])
    apart = max(abs(a - b) for a, b in zip(engine["rates"], pytorch["rates"]))
    same = len(engine["rates"]) == len(pytorch["rates"]) and apart <= 1e-9 * largest
    return same, f"{len(engine['rates'])} learning rates over the training: at most {apart / largest:.1e} of the largest apart"


def judge_time(engine, pytorch, wanted):
    accuracy = common_accuracy([engine, pytorch])
    ours, theirs = mean_seconds_to(engine, accuracy), mean_seconds_to(pytorch, accuracy)
    text = f"to {accuracy} %: engine {ours:.0f} s, PyTorch {theirs:.0f} s, ratio {theirs / ours:.2f}"
    return theirs / ours >= wanted, text + (f" (goal {wanted})" if wanted else "")


def judge_loader(engine):
    share = max(one["wait"] for one in engine)
    cores = statistics.mean(one["cores"] for one in engine)
    return share < 0.02, f"engine waits for data {100 * share:.2f} % of the time, {cores:.1f} cores busy in all"
