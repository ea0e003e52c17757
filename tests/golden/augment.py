"""Records what Pillow, torchvision and timm make of pictures: every operation at several magnitudes, every policy's tables, and
whole policies with their random source replaced."""

import contextlib
import hashlib
import math
import pathlib
import random
import types
from unittest import mock

import formula
import numpy as np
import timm.data.auto_augment as timm_auto
import timm.data.distributed_sampler as timm_sampler
import timm.data.random_erasing as timm_erasing
import torch
import torchvision.transforms.functional as F
from images import Draws
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import autoaugment
from torchvision.transforms import transforms as T

SAMPLINGS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
MODES = {"nearest": T.InterpolationMode.NEAREST, "bilinear": T.InterpolationMode.BILINEAR, "bicubic": T.InterpolationMode.BICUBIC}
MEAN_FILL = (124, 116, 104)
# (height, width, kind); "dull" leaves autocontrast and equalize something to do, "flat" leaves them nothing.
PICTURES = [(37, 53, "full"), (100, 75, "dull"), (7, 9, "dull"), (64, 64, "flat"), (224, 224, "full"), (1, 3, "full"), (2, 2, "dull")]
# Purposes of src/rng.rs.
AUTO, JITTER, ERASE = 9, 10, 11


def picture(height, width, kind):
    pixels = formula.picture(f"augment.{height}x{width}", height, width)
    if kind == "dull":
        pixels = pixels // np.array([2, 3, 4], np.uint8) + np.array([20, 60, 90], np.uint8)
    if kind == "flat":
        pixels = np.broadcast_to(np.array([10, 128, 250], np.uint8), pixels.shape)
    return Image.fromarray(np.ascontiguousarray(pixels))


def digest(image):
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()[:12]


def operations():
    """(name, argument, sampling, fill, function of an image); the name is that of `Op` in src/data/augment/ops, or of a
    torchvision or timm function that makes its own matrix."""
    plain = [
        ("AutoContrast", 0, ImageOps.autocontrast),
        ("Equalize", 0, ImageOps.equalize),
        ("Invert", 0, ImageOps.invert),
    ]
    plain += [("Posterize", bits, lambda i, b=bits: ImageOps.posterize(i, b)) for bits in range(1, 9)]
    thresholds = [0, 26, 77, 128, 127.5, 178.5, 255.0, 256]
    plain += [("Solarize", t, lambda i, t=t: ImageOps.solarize(i, t)) for t in thresholds]
    plain += [("SolarizeAdd", a, lambda i, a=a: timm_auto.solarize_add(i, a)) for a in [0, 33, 77, 110, 128]]
    factors = [0.0, 0.01, 0.1, 0.37, 0.73, 0.91, 1.0, 1.27, 1.63, 1.9, 1.99]
    for name in ["Brightness", "Contrast", "Color", "Sharpness"]:
        enhance = getattr(ImageEnhance, name)
        plain += [(name, f, lambda i, e=enhance, f=f: e(i).enhance(f)) for f in factors]
    plain += [("Hue", h, lambda i, h=h: F.adjust_hue(i, h)) for h in [-0.5, -0.31, -0.1, 0.0, 0.004, 0.25, 0.5]]
    cases = [(name, argument, "nearest", (0, 0, 0), function) for name, argument, function in plain]
    for sampling, mode in MODES.items():
        pil = SAMPLINGS[sampling]

        def torchvision(op, m, mode=mode):
            return lambda i: autoaugment._apply_op(i, op, m, mode, None)

        def relative(function, m, pil=pil):
            return lambda i: function(i, m, resample=pil, fillcolor=MEAN_FILL)

        for m in [0.0, 0.09, -0.3, 0.033, 0.99, -0.99]:
            cases += [(op, m, sampling, (0, 0, 0), torchvision(op, m)) for op in ["ShearX", "ShearY"]]
        for m in [0.0, 30.45, -7.9, 1000.0]:
            cases += [(op, m, sampling, (0, 0, 0), torchvision(op, m)) for op in ["TranslateX", "TranslateY"]]
        for m in [0.0, 4.5, -9.0, 30.0, 45.0, 90.0, -90.0, 135.0, 180.0, 0.001]:
            cases.append(("Rotate", m, sampling, (0, 0, 0), torchvision("Rotate", m)))
        for m in [0.21, -0.3, 0.018]:
            cases.append(("timm ShearX", m, sampling, MEAN_FILL, relative(timm_auto.shear_x, m)))
            cases.append(("timm ShearY", m, sampling, MEAN_FILL, relative(timm_auto.shear_y, m)))
        for m in [0.315, -0.45, 0.0017]:
            cases.append(("timm TranslateXRel", m, sampling, MEAN_FILL, relative(timm_auto.translate_x_rel, m)))
            cases.append(("timm TranslateYRel", m, sampling, MEAN_FILL, relative(timm_auto.translate_y_rel, m)))
        cases.append(("Rotate", 21.3, sampling, MEAN_FILL, relative(timm_auto.rotate, 21.3)))
    return cases


def recorded_operations(pictures):
    """Of each operation a digest of every picture, and four values of the first two (at `bits("augment#sample", k) mod len`)."""
    records = []
    for name, argument, sampling, fill, function in operations():
        outs = [np.asarray(function(p)) for p in pictures]
        places = formula.bits("augment#sample", 4)
        samples = [out.reshape(-1)[(places % np.uint64(out.size)).astype(np.int64)].tolist() for out in outs[:2]]
        digests = [digest(out) for out in outs]
        records.append(
            {"op": name, "argument": argument, "sampling": sampling, "fill": fill, "digests": digests, "samples": samples}
        )
    return records


def spaces():
    """torchvision's tables: of each policy and size the operations in order, whether signed, and the magnitudes."""
    records = []
    sizes = [(224, 224), (176, 176), (160, 192), (37, 53), (299, 331)]
    policies = [
        ("randaugment", autoaugment.RandAugment(), lambda p, size: p._augmentation_space(31, size)),
        ("trivialaugment", autoaugment.TrivialAugmentWide(), lambda p, size: p._augmentation_space(31)),
        ("autoaugment", autoaugment.AutoAugment(), lambda p, size: p._augmentation_space(10, size)),
    ]
    for name, policy, space in policies:
        for size in sizes:
            table = [[op, signed, m.tolist() if m.ndim else []] for op, (m, signed) in space(policy, size).items()]
            records.append({"policy": name, "height": size[0], "width": size[1], "ops": table})
    return records


def timm_tables():
    """timm's operations in order, and their arguments by level, for both results of the coin."""
    records = []
    levels = [0, 0.3, 1, 2.49, 2.5, 3, 4.999, 5, 6, 6.5, 7, 7.3, 7.5, 9, 9.99, 10]
    for increasing, names in [(0, timm_auto._RAND_TRANSFORMS), (1, timm_auto._RAND_INCREASING_TRANSFORMS)]:
        table = []
        for name in names:
            function = timm_auto.LEVEL_TO_ARG[name]
            arguments = []
            for coin in [0.0, 1.0]:
                with mock.patch.object(random, "random", lambda coin=coin: coin):
                    arguments.append([function(level, {})[0] if function else 0 for level in levels])
            table.append([name, *arguments])
        records.append({"increasing": increasing, "levels": levels, "ops": table})
    return records


class Source:
    """torch's, numpy's and Python's random functions, drawing from src/rng.rs."""

    def __init__(self, draws):
        self.draws = draws

    def below(self, n):
        return self.draws.below(n)

    def unit(self):
        return self.draws.unit()

    def normal(self):
        radius = math.sqrt(-2.0 * math.log(1.0 - self.unit()))
        return radius * math.cos(2.0 * math.pi * self.unit())

    def permutation(self, n):
        items = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
        return items

    @contextlib.contextmanager
    def torch(self, module):
        """`torch.randint(n)` is `below(n)`, `torch.rand` is `unit()`, `uniform_(a, b)` is a + (b - a) unit, all f64."""
        source = self

        class Empty:
            def uniform_(self, low, high):
                value = float(low) + (float(high) - float(low)) * source.unit()
                return torch.tensor([value], dtype=torch.float64)

        def randint(*arguments, size=None, dtype=None):
            *bounds, shape = arguments if size is None else (*arguments, size)
            low, high = bounds if len(bounds) == 2 else (0, bounds[0])
            return torch.tensor([low + source.below(high - low) for _ in range(math.prod(shape))])

        def rand(shape):
            n = shape if isinstance(shape, int) else math.prod(shape)
            return torch.tensor([source.unit() for _ in range(n)], dtype=torch.float64)

        replaced = {
            "randint": randint,
            "rand": rand,
            "randperm": lambda n: torch.tensor(source.permutation(n)),
            "empty": lambda _: Empty(),
            "log": lambda t: torch.log(t.double()),
            "tensor": lambda v, **_: torch.tensor(v, dtype=torch.float64) if isinstance(v, (tuple, float)) else torch.tensor(v),
        }
        names = {name: getattr(torch, name) for name in dir(torch)}
        with mock.patch.object(module, "torch", types.SimpleNamespace(**{**names, **replaced})):
            yield

    @contextlib.contextmanager
    def timm(self, module):
        choice = lambda ops, n, replace, p: [ops[self.below(len(ops))] for _ in range(n)]
        functions = types.SimpleNamespace(
            random=self.unit,
            gauss=lambda mean, deviation: mean + deviation * self.normal(),
            uniform=lambda low, high: low + (high - low) * self.unit(),
            randint=lambda low, high: low + self.below(high - low + 1),
        )
        with mock.patch.object(module, "random", functions):
            if not hasattr(module, "np"):
                yield
                return
            numpy = types.SimpleNamespace(random=types.SimpleNamespace(choice=choice))
            with mock.patch.object(module, "np", numpy):
                yield


def policies():
    """Whole policies on one picture: what came out of 40 keys each, one digest."""
    records = []
    image = picture(64, 80, "full")

    def run(auto, sampling, transform, patched):
        outs = []
        for sample in range(40):
            with patched(Source(Draws(7, 1, sample, AUTO))):
                outs.append(digest(transform(image)))
        records.append({"auto": auto, "sampling": sampling, "height": 64, "width": 80, "digests": outs})

    def torch_source(source):
        return source.torch(autoaugment)

    def timm_source(source):
        return source.timm(timm_auto)

    bilinear = T.InterpolationMode.BILINEAR
    run("randaugment", "bilinear", autoaugment.RandAugment(interpolation=bilinear), torch_source)
    run("randaugment-n3-m21", "nearest", autoaugment.RandAugment(3, 21), torch_source)
    run("trivialaugment", "bilinear", autoaugment.TrivialAugmentWide(interpolation=bilinear), torch_source)
    run("autoaugment", "nearest", autoaugment.AutoAugment(), torch_source)
    for auto, sampling in [("rand-m7-mstd0.5-inc1", "bicubic"), ("rand-m9-n3-p0.8", "bilinear"), ("rand-m8-mstd101-inc1", "nearest")]:
        hparams = {"translate_const": 100, "img_mean": MEAN_FILL, "interpolation": SAMPLINGS[sampling]}
        run(auto, sampling, timm_auto.rand_augment_transform(auto, hparams), timm_source)
    return records


def jitters():
    records = []
    image = picture(64, 80, "full")
    for strength in [(0.4, 0.4, 0.4, 0.0), (0.8, 0.0, 1.5, 0.1), (0.0, 0.0, 0.0, 0.5)]:
        outs = []
        for sample in range(20):
            with Source(Draws(7, 1, sample, JITTER)).torch(T):
                outs.append(digest(T.ColorJitter(*strength)(image)))
        records.append({"strength": strength, "height": 64, "width": 80, "digests": outs})
    return records


def erasings():
    """Rectangles [i, j, h, w], or null, of 60 keys: torchvision's RandomErasing and timm's."""
    records = []
    for form, area, ratio in [("torchvision", (0.02, 0.33), (0.3, 3.3)), ("timm", (0.02, 1 / 3), (0.3, 1 / 0.3))]:
        for height, width in [(224, 224), (176, 176), (9, 40), (2, 3)]:
            found = []
            for sample in range(60):
                source = Source(Draws(7, 1, sample, ERASE))
                if form == "torchvision":
                    with source.torch(T), mock.patch.object(T.F, "erase", lambda img, i, j, h, w, v, _: (i, j, h, w, v.ndim)):
                        out = T.RandomErasing(0.6, area, ratio)(torch.zeros(3, height, width))
                    if isinstance(out, tuple) and (out[2], out[3]) == (height, width):
                        out = None
                    found.append(list(out[:4]) if isinstance(out, tuple) else None)
                else:
                    image = torch.zeros(3, height, width)
                    erasing = timm_erasing.RandomErasing(0.6, *area, ratio[0], ratio[1], mode="const", device="cpu")
                    with source.timm(timm_erasing), mock.patch.object(timm_erasing, "_get_pixels", lambda *_, **__: 1.0):
                        erasing(image)
                    rows, columns = image[0].any(1).nonzero(), image[0].any(0).nonzero()
                    if len(rows) == 0:
                        found.append(None)
                    else:
                        found.append([int(rows[0]), int(columns[0]), len(rows), len(columns)])
            records.append({"form": form, "area": area, "ratio": ratio, "height": height, "width": width, "rects": found})
    return records


def repeats():
    """timm's RepeatAugSampler (torchvision's RASampler where 256 images or more are there), without shuffling."""
    records = []
    for images, times, ranks in [(600, 4, 8), (512, 3, 4), (1000, 3, 1), (100, 3, 2), (257, 2, 3)]:
        order = []
        for rank in range(ranks):
            sampler = timm_sampler.RepeatAugSampler(range(images), ranks, rank, shuffle=False, num_repeats=times)
            order.append(list(sampler))
        records.append({"images": images, "times": times, "ranks": ranks, "order": order})
    return records


def record():
    pictures = [picture(*p) for p in PICTURES]
    return {
        "pictures": PICTURES,
        "inputs": [digest(p) for p in pictures],
        "operations": recorded_operations(pictures),
        "spaces": spaces(),
        "imagenet": autoaugment.AutoAugment().policies,
        "timm": timm_tables(),
        "policies": policies(),
        "jitters": jitters(),
        "erasings": erasings(),
        "repeats": repeats(),
    }


def record_photographs(path):
    """Of each operation one digest of all photographs; `path`: of each its height and width, u32, and its pixels, as the
    engine decoded them."""
    data = pathlib.Path(path).read_bytes()
    pictures, at = [], 0
    while at < len(data):
        height, width = np.frombuffer(data, "<u4", 2, at)
        size = int(height) * int(width) * 3
        pictures.append(Image.fromarray(np.frombuffer(data, np.uint8, size, at + 8).reshape(height, width, 3)))
        at += 8 + size
    records = []
    for name, argument, sampling, fill, function in operations():
        total = hashlib.sha256()
        for image in pictures:
            total.update(np.asarray(function(image)).tobytes())
        records.append(
            {"op": name, "argument": argument, "sampling": sampling, "fill": fill, "digest": total.hexdigest()[:12]}
        )
    return {"count": len(pictures), "input": hashlib.sha256(data).hexdigest()[:12], "operations": records}
