"""Uploads that are no sound photographs, through the page's own address and its API's in turns.

    MODEL=model.engine CLASSIFY=target/release/classify python3 malformed.py [COUNT [SEED]]

Each must be answered with a sentence (or with classes, where the damage left a picture); the binary must neither end
nor grow. The same seed gives the same uploads. Ends with a table, and with code 1 where anything else happened.
"""

import random
import re
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from html import unescape
from pathlib import Path

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import space

# Of the binary's memory between the 200th and the last upload, in megabytes.
MAY_GROW = 16.0


def png(width, height, kind=0, bits=1, rows=None, extra=b""):
    """A PNG by hand: `rows` are its uncompressed bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    packed = zlib.compress(rows, 9) if rows is not None else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def text_bomb(chance):
    """64 MB of text in 64 kB, in a chunk that a reader may unpack."""
    packed = zlib.compress(bytes(64 << 20), 9)
    name, data = chance.choice([(b"zTXt", b"Comment\0\0"), (b"iCCP", b"profile\0\0")])
    data += packed
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png(8, 8, rows=bytes(16), extra=chunk)


class Uploads:
    def __init__(self, seed):
        self.chance = random.Random(seed)
        picture = space.drawing()
        self.whole = [
            space.encoded(picture, "JPEG", quality=85),
            space.encoded(picture, "JPEG", progressive=True),
            space.encoded(picture.convert("CMYK"), "JPEG"),
            space.encoded(picture, "PNG"),
            space.encoded(picture.convert("RGBA"), "PNG"),
            space.encoded(picture, "WEBP"),
            space.encoded(picture.convert("RGBA"), "WEBP", lossless=True),
            space.rotated(picture),
        ]
        self.bombs = [text_bomb(self.chance) for _ in range(2)]

    def truncated(self):
        data = self.chance.choice(self.whole)
        return data[: self.chance.randrange(1, len(data))]

    def random_bytes(self):
        data = self.chance.randbytes(self.chance.choice([0, 1, 2, 11, 64, 5_000, 300_000]))
        magic = self.chance.choice([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 "])
        return magic + data

    def flipped(self):
        data = bytearray(self.chance.choice(self.whole))
        for _ in range(self.chance.choice([1, 3, 30])):
            data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        return bytes(data)

    def bomb(self):
        kind = self.chance.randrange(3)
        if kind == 0:
            return self.chance.choice(self.bombs)
        if kind == 1:
            # Within the limit: 16 million pixels in a few kilobytes.
            return png(4096, 4096, rows=bytes(4096 * (1 + 4096 // 8)))
        # More bytes than its size says.
        return png(16, 16, rows=bytes(32 << 20))

    def wrong_type(self):
        kinds = [
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            b"<!DOCTYPE html><script>alert(1)</script>",
            b"%PDF-1.7\n",
            b"GIF89a" + bytes(40),
            b"BM" + bytes(60),
            b"II*\0" + bytes(60),
            b"PK\x03\x04" + bytes(60),
            b"\x1f\x8b" + bytes(60),
            b"\x7fELF" + bytes(60),
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            b"\0\0\0\x1cftypavif\0\0\0\0",
            b"\0\0\0\x18ftypisom\0\0\0\0",
            b"P6 9999999 9999999 255\n",
            b"\xff\x0a" + bytes(30),
            b'{"a": 1}',
            "Grüße".encode(),
            b"#!/bin/sh\nrm -rf /\n",
        ]
        return self.chance.choice(kinds)

    def huge_dimensions(self):
        size = self.chance.choice([7_100, 20_000, 65_535])
        kind = self.chance.randrange(4)
        if kind == 0:
            data = bytearray(self.whole[0])
            at = data.index(b"\xff\xc0") + 5
            data[at : at + 4] = struct.pack(">HH", size, size)
            return bytes(data)
        if kind == 1:
            return png(self.chance.choice([size, 2**31 - 1]), size, 2, 8, b"")
        if kind == 2:
            return png(0, size, rows=b"")
        # A strip whose short side would become the network's.
        return png(1_000_000, 1, rows=bytes(1 + 125_000))


KINDS = ("truncated", "random_bytes", "flipped", "bomb", "wrong_type", "huge_dimensions")
NAMES = (
    "photo.jpg",
    "photo.png",
    "x.webp",
    "Grüße 🙂.jpg",
    "a" * 120 + ".jpeg",
    "noname",
    "evil.svg",
    "..%2f..%2fetc.png",
)


def answered(client, path, by_page):
    """("classes" or "sentence", text); anything else raises."""
    if by_page:
        page = client.predict(handle_file(path), "int8", api_name="/page")
        if 'class="answer"' in page:
            return "classes", ""
        return "sentence", unescape(re.search(r'role="alert"><h2>No answer</h2><p>(.+?)</p>', page, re.S)[1])
    try:
        client.predict(handle_file(path), "int8", api_name="/classify")
        return "classes", ""
    except AppError as error:
        return "sentence", str(error)


def is_sentence(text):
    """Whole, in one line, and of the picture alone: no path of the server, no trace of its code."""
    return text.endswith((".", "!", "?")) and not any(part in text for part in ("Traceback", "/tmp", "\n"))


def main():
    count, seed = (int(value) for value in [*sys.argv[1:], *("1000", "0")[len(sys.argv) - 1 :]])
    running = space.Space()
    client = Client(running.url, verbose=False)
    uploads, results, sentences, wrong, slowest = Uploads(seed), Counter(), Counter(), [], (0.0, "")
    pid, began, memory = running.classifier(), time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            path = Path(folder, NAMES[number % len(NAMES)])
            path.write_bytes(getattr(uploads, kind)())
            start = time.monotonic()
            try:
                what, text = answered(client, str(path), by_page=number % 2 == 0)
                if what == "sentence" and not is_sentence(text):
                    wrong.append((number, kind, text))
            except Exception as error:  # noqa: BLE001  (whatever it is, it is counted)
                what, text = "error", f"{type(error).__name__}: {error}"
                wrong.append((number, kind, text))
            slowest = max(slowest, (time.monotonic() - start, f"{number} {kind}"))
            results[kind, what] += 1
            sentences[re.sub(r"[\d\[][\d, x\[\]a-f]*", "N", text)[:90]] += 1
            if (number + 1) % 100 == 0 or number + 1 in (1, count):
                memory[number + 1] = (space.memory(running.popen.pid), space.memory(pid), space.memory(pid, "VmHWM"))
    seconds = time.monotonic() - began
    restarted = running.classifier() != pid
    last = answered_well(client)
    running.close()
    print(f"{count} uploads (seed {seed}) in {seconds:.0f} s; slowest {slowest[0]:.2f} s (number {slowest[1]})")
    for kind in KINDS:
        print(f"  {kind:16} " + ", ".join(f"{results[kind, what]} {what}" for what in ("sentence", "classes", "error")))
    print("memory in MB after N uploads: page, binary now, binary at most")
    for number, values in memory.items():
        print(f"  {number:5} " + " ".join(f"{value:8.1f}" for value in values))
    print("sentences, numbers left out")
    for text, times in sentences.most_common(25):
        print(f"  {times:5} {text}")
    grown = memory[count][1] - memory[min(200, count)][1] if count >= 200 else 0.0
    print(
        f"the binary was {'' if restarted else 'not '}restarted; it grew by {grown:.1f} MB since upload 200; "
        f"a sound picture is then {'' if last else 'not '}answered; {len(wrong)} wrong"
    )
    for number, kind, text in wrong[:20]:
        print(f"  {number} {kind}: {text[:300]!r}")
    return 1 if wrong or restarted or not last or grown > MAY_GROW else 0


def answered_well(client):
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(space.encoded(space.drawing(), "JPEG"))
        file.flush()
        return answered(client, file.name, by_page=False)[0] == "classes"


if __name__ == "__main__":
    sys.exit(main())
