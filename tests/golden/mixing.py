"""Records what timm makes of a batch between the workers and the network: FastCollateMixup on bytes, then PrefetchLoader's
normalisation and random erasing, the random numbers given."""

from unittest import mock

import formula
import numpy as np
import torch
from timm.data.loader import PrefetchLoader
from timm.data.mixup import FastCollateMixup

N, SIDE = 4, 16
# An image of the batch, and what is erased of it: top, left, height, width.
ERASED, RECT = 1, [3, 8, 9, 5]


def collated(case, lam, cut):
    """u8 [n, 3, side, side]; `cut`: row and column of a box's centre."""
    images = formula.images_u8(f"{case}.images", N, SIDE).transpose(0, 3, 1, 2)
    mixup = FastCollateMixup(mixup_alpha=0.0 if cut else 1.0, cutmix_alpha=1.0 if cut else 0.0, num_classes=10)
    draws = mock.patch("numpy.random.beta", return_value=lam), mock.patch("numpy.random.randint", side_effect=cut)
    with draws[0], draws[1]:
        output, target = mixup([(image, 0) for image in images])
    return output


class EraseOne:
    """`random`'s draws that leave all images alone but one, whose first rectangle is RECT."""

    def __init__(self):
        self.image, self.whole = -1, iter([RECT[0], RECT[1]])
        self.real = iter([RECT[2] * RECT[3] / SIDE**2, float(np.log(RECT[2] / RECT[3]))])

    def random(self):
        self.image += 1
        return 0.0 if self.image == ERASED else 1.0

    def uniform(self, _low, _high):
        return next(self.real)

    def randint(self, _low, _high):
        return next(self.whole)


def prefetched(batch, erases):
    loader = PrefetchLoader([(batch, torch.zeros(N))], device=torch.device("cpu"), re_prob=0.5 if erases else 0.0)
    draws = EraseOne()
    given = {name: getattr(draws, name) for name in ("random", "uniform", "randint")}
    with mock.patch.multiple("timm.data.random_erasing.random", **given):
        (images, _), *_ = list(loader)
    return images


def case(name, lam, cut=None, erases=False):
    lam = float(np.float32(lam))
    batch = collated(name, lam, cut)
    images = prefetched(batch.clone(), erases).permute(0, 2, 3, 1).contiguous()
    return {
        **dict(name=name, n=N, side=SIDE, drawn=lam, cut=cut, erased=ERASED if erases else None, rect=RECT),
        "bytes": batch.permute(0, 2, 3, 1).contiguous().numpy().tobytes().hex(),
        # Of what the network gets, every 23rd.
        "values": images.flatten()[::23].double().tolist(),
    }


def record():
    return {
        "cases": [
            case("mixing.half", 0.5),
            case("mixing.some", 0.3),
            case("mixing.little", 0.004),
            case("mixing.most", 0.9371),
            case("mixing.cut", 0.6, cut=[7, 13]),
            case("mixing.erased", 0.3, erases=True),
            case("mixing.cut_erased", 0.6, cut=[12, 9], erases=True),
        ]
    }
