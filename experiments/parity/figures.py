"""Tables and pictures of what run.py found. Standard library alone.

    python3 experiments/parity/figures.py FOLDER
"""

import pathlib
import statistics
import sys

import results
from recipe import NAMES

COLOURS = {"engine": "#0b6e4f", "pytorch": "#c8553d"}
WIDTH, PANEL, HEIGHT, LEFT, TOP, ROW = 960, 390, 220, 56, 40, 320
COLUMNS = ("recipe", "program", "seeds", "final top-1, %", "seconds", "images/s", "peak memory, MB", "waiting for data", "cores")
COLUMNS += ("seconds to top-1",)
TEXT, FAINT = "#333333", "#dddddd"


def table(found, scale):
    """Markdown: a row a recipe and program."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for recipe in NAMES:
        both = [found.get((recipe, scale, program), []) for program in results.PROGRAMS]
        accuracy = results.common_accuracy(both) if all(both) else None
        for program, ones in zip(results.PROGRAMS, both):
            if ones:
                lines.append(row(recipe, program, ones, accuracy))
    return "\n".join(lines) + "\n"


def row(recipe, program, ones, accuracy):
    top1 = results.final(ones)
    mean = {key: statistics.mean(one[key] for one in ones) for key in ("seconds", "images_per_second", "wait", "cores")}
    spread = f" ± {results.spread(top1):.2f}" if len(ones) > 1 else ""
    when = "" if accuracy is None else f"{results.mean_seconds_to(ones, accuracy):.1f} ({accuracy} %)"
    memory = max(one["peak_memory_mb"] for one in ones)
    cells = [
        recipe,
        program,
        str(len(ones)),
        f"{statistics.mean(top1):.2f}{spread}",
        f"{mean['seconds']:.1f}",
        f"{mean['images_per_second']:.1f}",
        f"{memory:.0f}",
        f"{100 * mean['wait']:.2f} %",
        f"{mean['cores']:.1f}",
        when,
    ]
    return "| " + " | ".join(cells) + " |"


def curve(ones, over):
    """[(x, top-1)] of each training; over = "epoch" or "seconds"."""
    return [[(epoch[over], epoch["val_top1"]) for epoch in one["epochs"]] for one in ones]


def mean_curve(curves):
    """Point by point, of trainings with as many epochs."""
    return [tuple(map(statistics.mean, zip(*points))) for points in zip(*curves)]


def ticks(high, wanted=5):
    """Multiples of 1, 2 or 5 times a power of ten from 0 up to `high` and one beyond."""
    power = 10 ** len(str(int(high / wanted)))
    steps = (share * power for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1))
    step = next((step for step in steps if high / step <= wanted), power)
    return [index * step for index in range(int(-(-high // step)) + 1)]


def label(x, y, text, anchor="start", style=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{TEXT}" {style}>{text}</text>'


def line(points, colour, width, opacity=1.0):
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}"/>'


def panel(by_program, over, left, top, title):
    """Each training thin, each program's mean thick."""
    curves = {program: curve(ones, over) for program, ones in by_program.items()}
    points = [point for ones in curves.values() for one in ones for point in one]
    across, up = (ticks(max(point[axis] for point in points)) for axis in (0, 1))
    place = lambda x, y: (left + x / across[-1] * PANEL, top + HEIGHT - y / up[-1] * HEIGHT)
    parts = [label(left, top - 10, title, style='font-weight="600"')]
    for y in up:
        parts.append(line([place(0, y), place(across[-1], y)], FAINT, 1))
        parts.append(label(left - 8, place(0, y)[1] + 4, f"{y:g}", "end"))
    parts += [label(place(x, 0)[0], top + HEIGHT + 18, f"{x:g}", "middle") for x in across]
    parts.append(label(left + PANEL / 2, top + HEIGHT + 36, over, "middle"))
    for program, ones in curves.items():
        parts += [line([place(*point) for point in one], COLOURS[program], 1, 0.4) for one in ones]
        parts.append(line([place(*point) for point in mean_curve(ones)], COLOURS[program], 2.5))
    return parts


def picture(found, scale):
    """Validation top-1 of both programs, a row a recipe: by epoch, and by seconds since the start."""
    rows = []
    for recipe in NAMES:
        by_program = {p: found[(recipe, scale, p)] for p in results.PROGRAMS if (recipe, scale, p) in found}
        if by_program:
            rows.append((recipe, by_program))
    height = ROW * len(rows) + 30
    box = f'viewBox="0 0 {WIDTH} {height}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{WIDTH}" height="{height}" fill="white"/>')
    for index, (recipe, by_program) in enumerate(rows):
        top = TOP + index * ROW
        parts += panel(by_program, "epoch", LEFT, top, f"{recipe}: validation top-1, %")
        parts += panel(by_program, "seconds", LEFT + PANEL + 80, top, f"{recipe}: the same over time")
    for index, program in enumerate(results.PROGRAMS):
        left = LEFT + 130 * index
        parts.append(line([(left, height - 14), (left + 24, height - 14)], COLOURS[program], 2.5))
        parts.append(label(left + 30, height - 10, program))
    parts.append(label(LEFT + 290, height - 10, "thin: one seed each; thick: their mean"))
    return "\n".join(parts + ["</svg>\n"])


def write(folder):
    """table-SCALE.md and curves-SCALE.svg for every scale that there are results of."""
    found = results.read(folder)
    for scale in sorted({scale for _, scale, _ in found}):
        gain = results.judge_gain(found, scale)
        text = table(found, scale) + (f"\n{gain[1]}: {'agree' if gain[0] else 'DISAGREE'}\n" if gain else "")
        (folder / f"table-{scale}.md").write_text(text)
        (folder / f"curves-{scale}.svg").write_text(picture(found, scale))


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    write(pathlib.Path(sys.argv[1]))
