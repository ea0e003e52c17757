"""What the tests of the page share: a running Space, pictures for it, and its processes."""

import base64
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
APP = HERE.parent / "app.py"
sys.path.insert(0, str(HERE.parent))
START_SECONDS = 90


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Space:
    """`app.py` as it runs on a host. MODEL and CLASSIFY in the environment say with what."""

    def __init__(self, *arguments, **environment):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.begin = time.monotonic()
        self.popen = subprocess.Popen(
            [sys.executable, APP, "--port", str(self.port), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        self._wait()

    def _wait(self):
        while time.monotonic() - self.begin < START_SECONDS:
            if self.popen.poll() is not None:
                raise SystemExit(f"the Space ended: {self.popen.stdout.read().decode(errors='replace')}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self.url, timeout=5).close()
                self.started_seconds = time.monotonic() - self.begin
                return
            time.sleep(0.05)
        raise SystemExit(f"the Space did not answer within {START_SECONDS} s")

    def classifier(self):
        """The process id of the binary."""
        children = Path(f"/proc/{self.popen.pid}/task").glob("*/children")
        for pid in {pid for task in children for pid in task.read_text().split()}:
            with contextlib.suppress(OSError):
                if b"--stdio" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return int(pid)
        return None

    def close(self):
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.popen.stdout.close()


def memory(pid, field="VmRSS"):
    """Of a process, in megabytes; VmHWM is the most that it ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def cpu_seconds(pid):
    """That a process has worked, whatever else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drawing(width=480, height=360):
    """A picture of our own whose four corners differ in colour."""
    image = Image.new("RGB", (width, height), (214, 206, 190))
    draw = ImageDraw.Draw(image)
    half = (width // 2, height // 2)
    for (x, y), colour in {
        (0, 0): (190, 60, 50),
        (1, 0): (60, 140, 80),
        (0, 1): (50, 80, 180),
        (1, 1): (230, 190, 60),
    }.items():
        draw.rectangle(
            (x * half[0] + 20, y * half[1] + 20, x * half[0] + half[0] - 20, y * half[1] + half[1] - 20), colour
        )
    draw.ellipse((half[0] - 60, half[1] - 60, half[0] + 60, half[1] + 60), (250, 250, 245))
    return image


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(image, kind="JPEG", **options):
    """`image` as a camera held on its side stores it: orientation 6, to be turned to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), kind, exif=exif, **options)


def seen(answer):
    """What the network saw, of an answer of the API."""
    found = answer["explanation"]["seen"]
    return Image.frombytes("RGB", (found["width"], found["height"]), base64.b64decode(found["rgb"]))


def distance(a, b):
    """Mean difference of two pictures in grey levels."""
    pairs = list(zip(a.tobytes(), b.tobytes(), strict=True))
    return sum(abs(x - y) for x, y in pairs) / len(pairs)
