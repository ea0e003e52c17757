"""Records Pillow's and torchvision's pixels and RandomResizedCrop's arithmetic."""

import base64
import math
import types

import formula
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as F
from torchvision.transforms import transforms as T

PICTURES = [(37, 53), (64, 64), (100, 75), (7, 9), (200, 31)]


def picture(height, width):
    return Image.fromarray(formula.picture(f"picture.{height}x{width}", height, width))


def packed(image):
    return base64.b64encode(np.asarray(image).tobytes()).decode()


def crops():
    """crop (i, j, h, w) then an antialiased bilinear resize, as torchvision's resized_crop."""
    records = []
    for height, width in PICTURES:
        whole = (0, 0, height, width)
        inner = (height // 5, width // 7, height * 3 // 5, width * 2 // 3)
        corner = (height - height // 3, width - width // 2, height // 3, width // 2)
        # Up to 4 px either way: more is upscaled than shrunk. The 1-px row and column are the edge case.
        row = (height // 2, 1, 1, width - 2)
        for box, size in [(whole, 32), (inner, 32), (corner, 24), (whole, 24), (row, 24)]:
            out = F.resized_crop(picture(height, width), *box, [size, size], T.InterpolationMode.BILINEAR)
            records.append({"height": height, "width": width, "crop": box, "size": size, "pixels": packed(out)})
    return records


def eval_transforms():
    """Resize(shorter side) then CenterCrop."""
    records = []
    for height, width in PICTURES:
        for resize, crop in [(36, 32), (32, 32), (27, 24)]:
            resized = F.resize(picture(height, width), resize, T.InterpolationMode.BILINEAR)
            out = F.center_crop(resized, crop)
            records.append(
                {
                    "height": height,
                    "width": width,
                    "resize": resize,
                    "crop": crop,
                    "resized": [resized.height, resized.width],
                    "pixels": packed(out),
                }
            )
    return records


class Draws:
    """src/rng.rs: what `Rng::new(seed, epoch, sample, purpose)` draws; 4 is `Purpose::Crop`."""

    def __init__(self, seed, epoch, sample, purpose=4):
        golden = int(formula.GOLDEN)
        self.key = self.mix(seed + golden)
        for part in (epoch, sample, purpose):
            self.key = self.mix(self.key ^ (self.mix(part + golden) + golden) % 2**64)
        self.raw, self.corners = [], 0

    @staticmethod
    def mix(z):
        z %= 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def next(self):
        self.raw.append(self.mix(self.key + (len(self.raw) + 1) * int(formula.GOLDEN)))
        return self.raw[-1]

    def unit(self):
        return (self.next() >> 11) / 2**53

    def below(self, n):
        self.corners += 1
        return self.next() * n >> 64


def torchvision_params(draws, height, width):
    """torchvision's own get_params with its random source replaced: its f32 uniforms are from + (to - from) * unit,
    computed in f64 and rounded once; its randint(0, n) is below(n)."""

    class Empty:
        def uniform_(self, low, high):
            low, high = float(low), float(high)
            return torch.tensor([low + (high - low) * draws.unit()], dtype=torch.float32)

    def randint(low, high, size):
        return torch.tensor([low + draws.below(high - low)])

    source = types.SimpleNamespace(
        log=torch.log, tensor=torch.tensor, exp=torch.exp, empty=lambda _: Empty(), randint=randint
    )
    original, T.torch = T.torch, source
    try:
        image = Image.new("RGB", (width, height))
        return T.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    finally:
        T.torch = original


def f64_params(draws, height, width):
    """The same with every real number in f64; round is to even, as Python's."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = height * width * (0.08 + (1.0 - 0.08) * draws.unit())
        ratio = math.exp(low + (high - low) * draws.unit())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return draws.below(height - h + 1), draws.below(width - w + 1), h, w
    ratio = width / height
    if ratio < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif ratio > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crops():
    """Cases where f32 and f64 arithmetic agree; `dropped` counts the others."""
    sizes = [(375, 500), (500, 333), (64, 64), (224, 224), (37, 53), (7, 9), (1, 1), (31, 200), (200, 31), (10, 400)]
    records, dropped = [], 0
    for sample, (height, width) in enumerate(sizes * 10):
        key = (7, sample // 13, sample)
        draws, again = Draws(*key), Draws(*key)
        crop = torchvision_params(draws, height, width)
        if crop != f64_params(again, height, width):
            dropped += 1
            continue
        records.append(
            {
                "height": height,
                "width": width,
                "key": key,
                "units": [(raw >> 11) / 2**53 for raw in draws.raw],
                "tries": (len(draws.raw) - draws.corners) // 2,
                "fallback": draws.corners == 0,
                "crop": crop,
            }
        )
    return {"dropped": dropped, "cases": records}


def record():
    return {"crops": crops(), "eval": eval_transforms(), "random_resized_crop": random_resized_crops()}
