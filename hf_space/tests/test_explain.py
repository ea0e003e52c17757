"""Heat maps: the strongest place is where the network looked, at every size of map and picture."""

import base64
import io
import unittest

import numpy
from PIL import Image

import space  # noqa: F401  Finds the modules of the page.

import explain  # isort: skip


def opacity(values, step, side):
    uri = explain.heat_map(values, step, side)
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return numpy.asarray(image.getchannel("A"), float)


class HeatMaps(unittest.TestCase):
    def test_a_single_position_is_shown_at_its_pixel(self):
        for side, step in ((224, 32), (64, 32), (48, 32), (32, 8)):
            count = -(-side // step)
            for at in range(count - 1):  # The last one goes on to the edge.
                grid = numpy.zeros((count, count))
                grid[at, 0] = 3.0
                rows = opacity(grid, step, side).sum(axis=1)
                middle = (rows.argmax() + 0.5) * side / explain.HEAT
                self.assertLess(abs(middle - (at * step + 0.5)), 0.05 * step + side / explain.HEAT, (side, at, middle))

    def test_what_speaks_against_the_class_is_clear(self):
        self.assertEqual(opacity([[-1.0, -2.0], [-3.0, -0.5]], 32, 64).max(), 0)
        shown = opacity([[1.0, -9.0], [-9.0, -9.0]], 32, 64)
        self.assertGreater(shown[0, 0], 150)
        self.assertEqual(shown[-1, -1], 0)

    def test_places_have_names(self):
        grid = numpy.zeros((7, 7))
        for row, column, words in (
            (0, 0, "upper left"),
            (3, 3, "centre"),
            (6, 3, "lower centre"),
            (3, 6, "middle right"),
        ):
            grid[:] = 0
            grid[row, column] = 1
            self.assertEqual(explain.place(grid, 32, 224), f"strongest in the {words}")
        self.assertIn("no part", explain.place(-grid - 1, 32, 224))


if __name__ == "__main__":
    unittest.main()
