"""How long a visitor waits, and how much memory that takes.

    MODEL=model.engine CLASSIFY=target/release/classify python3 measure.py [ROUNDS]

Starts the page, asks it through its API, and prints a table. The machine's load is in the first line: on a busy machine
take the smallest of several runs.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from gradio_client import Client, handle_file
from PIL import Image

import space


def photograph(megapixels):
    """Like one of a camera: smooth in the large, fine grain, four by three."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    size = (width, width * 3 // 4)

    def channel(scale):
        large = Image.effect_noise((24, 18), 90).resize(size, Image.Resampling.BICUBIC)
        return Image.blend(large, Image.effect_noise(size, 40), scale)

    return space.encoded(Image.merge("RGB", [channel(0.12) for _ in range(3)]), "JPEG", quality=88)


def line(what, values):
    print(f"  {what:38} least {min(values):8.1f}   median {statistics.median(values):8.1f}   most {max(values):8.1f}")


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {time.strftime('%Y-%m-%d %H:%M')}")
    folder = tempfile.TemporaryDirectory()
    small, large = Path(folder.name, "small.jpg"), Path(folder.name, "large.jpg")
    small.write_bytes(space.encoded(space.drawing(), "JPEG"))
    large.write_bytes(photograph(12))
    print(f"the photograph: 12 megapixels, {large.stat().st_size / 1e6:.1f} MB")
    starts, firsts, worked = [], [], []
    for at in range(min(3, rounds)):
        running = space.Space()
        client = Client(running.url, verbose=False, analytics_enabled=False)
        client.predict(handle_file(small), "fp32", api_name="/classify")
        starts.append(running.started_seconds)
        firsts.append(time.monotonic() - running.begin)
        worked.append(space.cpu_seconds(running.popen.pid) + space.cpu_seconds(running.classifier()))
        if at < min(3, rounds) - 1:
            running.close()
    line("start to page, s", starts)
    line("start to first answer, s", firsts)
    line("of which both processes worked, s", worked)
    pid = running.classifier()
    print(f"  memory of the binary, MB: {space.memory(pid):.1f} after a small picture in fp32")
    for precision in ("fp32", "int8"):
        spent = {"decode": [], "run": [], "all": []}
        for _ in range(rounds):
            begin = time.monotonic()
            answer = client.predict(handle_file(large), precision, api_name="/classify")
            spent["all"].append(1000 * (time.monotonic() - begin))
            for part in ("decode", "run"):
                spent[part].append(answer["milliseconds"][part])
        print(f"{precision}, {answer['cpu_path']}: {rounds} times the photograph, ms")
        line("reading it", spent["decode"])
        line("network", spent["run"])
        line("upload to answer, through the client", spent["all"])
        print(f"  memory of the binary, MB: {space.memory(pid):.1f}, at most {space.memory(pid, 'VmHWM'):.1f}")
    print(f"memory of the page, MB: {space.memory(running.popen.pid):.1f}")
    running.close()


if __name__ == "__main__":
    main()
