"""Runs a command up to a deadline, and measures it: lines with their times, CPU time, memory of the process or of the card."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field

STOPPED = 75  # engine's exit code for "run me again"; torch_train.py has the same
DEVICE_FAILED = 70


@dataclass
class Outcome:
    status: int
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    # (seconds since the start, line) of standard output.
    lines: list = field(default_factory=list)


def card_memory_mb():
    """What is in use on the first card; 0 where there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()[0])
    except (OSError, IndexError, ValueError):
        return 0.0


class CardMemory:
    """The most that was in use on the card beyond what was before, looked at twice a second."""

    def __init__(self):
        self.before = self.most = card_memory_mb()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        while not self.over.wait(0.5):
            self.most = max(self.most, card_memory_mb())

    def finish(self):
        self.over.set()
        self.thread.join()
        return self.most - self.before


def execute(command, log, seconds, grace=5.0, card=False, on_line=None):
    """Standard output and error go to the file `log` too. After `seconds - grace`, and on Ctrl-C, the command is asked to stop;
    after `seconds` it is killed. `on_line(process, outcome)` sees what has come by then, with each line of standard output."""
    memory, began = CardMemory() if card else None, time.monotonic()
    outcome = Outcome(0, 0.0, 0.0, 0.0)
    with open(log, "a") as file:
        file.write(f"$ {' '.join(map(str, command))}\n")
        file.flush()
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=file, text=True)
        ends = [(max(seconds - grace, 0.1), signal.SIGTERM), (seconds, signal.SIGKILL)]
        # Not process.terminate(): it may reap the process, whose resources wait4 is to tell.
        timers = [threading.Timer(after, os.kill, (process.pid, number)) for after, number in ends]
        for timer in timers:
            timer.daemon = True
            timer.start()
        for line in lines_of(process):
            outcome.seconds = time.monotonic() - began
            outcome.lines.append((outcome.seconds, line.rstrip("\n")))
            file.write(line)
            file.flush()
            if on_line:
                on_line(process, outcome)
        # A process that keeps on without its output is still killed in time.
        timers[0].cancel()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = outcome.status = os.waitstatus_to_exitcode(status)
        timers[1].cancel()
    outcome.seconds = time.monotonic() - began
    outcome.cpu_seconds = usage.ru_utime + usage.ru_stime
    outcome.peak_memory_mb = memory.finish() if memory else usage.ru_maxrss / 1024
    return outcome


def lines_of(process):
    """Standard output to its end; Ctrl-C asks the process to stop, and what it says then is read too."""
    while True:
        try:
            line = process.stdout.readline()
        except KeyboardInterrupt:
            os.kill(process.pid, signal.SIGTERM)
            continue
        if not line:
            return
        yield line


def last_words(log):
    """The last line of a log that says something."""
    with open(log, errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else "nothing was said"
