"""Pictures for the page: what the network saw, and which parts of it speak for a class."""

import base64
import io

import numpy
from PIL import Image

# Sides in pixels: of the picture on the page at least, and of a heat map before the browser enlarges it.
SHOWN, HEAT = 448, 112
# From barely to fully speaking for the class; both ends differ in lightness too, for those who see no red.
WEAK, STRONG = (255, 214, 70), (196, 16, 60)
MOST_OPAQUE = 0.78


def data_uri(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def seen_picture(seen):
    """The pixels that went into the network, as an address for `<img>`; small ones enlarged without blur."""
    pixels = base64.b64decode(seen["rgb"])
    image = Image.frombytes("RGB", (seen["width"], seen["height"]), pixels)
    if image.width < SHOWN // 2:
        factor = -(-SHOWN // image.width)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return data_uri(image, "JPEG", quality=88)


def heat_map(values):
    """What speaks for the class, as an address for `<img>` to lay over the picture; clear where nothing does.

    `values` [rows][columns] add up, with the bias, to the class's logit. Shares of the largest are shown, so that maps
    of different classes compare in place and not in strength.
    """
    grid = numpy.asarray(values, numpy.float32)
    share = numpy.clip(grid, 0, None) / max(float(grid.max()), 1e-9)
    smooth = Image.fromarray(share).resize((HEAT, HEAT), Image.Resampling.BICUBIC)
    share = numpy.clip(numpy.asarray(smooth), 0, 1)[..., None]
    colour = numpy.asarray(WEAK) * (1 - share) + numpy.asarray(STRONG) * share
    # Weak evidence is nearly everywhere: a power above 1 keeps it from veiling the picture.
    pixels = numpy.concatenate([colour, 255 * MOST_OPAQUE * share**1.5], axis=-1)
    return data_uri(Image.fromarray(pixels.round().astype(numpy.uint8), "RGBA"), "PNG")


def place(values):
    """Where the strongest evidence lies, in words."""
    grid = numpy.asarray(values, numpy.float32)
    if grid.max() <= 0:
        return "no part of the picture speaks for it"
    row, column = numpy.unravel_index(grid.argmax(), grid.shape)

    def third(at, size, names):
        return names[min(2, int(3 * (at + 0.5) / size))]

    vertical = third(row, grid.shape[0], ("upper", "middle", "lower"))
    horizontal = third(column, grid.shape[1], ("left", "centre", "right"))
    words = {"middle centre": "centre"}.get(f"{vertical} {horizontal}", f"{vertical} {horizontal}")
    return f"strongest in the {words}"
