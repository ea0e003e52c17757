"""Records learning rates from torch.optim.lr_scheduler."""

import warnings

import torch
from torch.optim import lr_scheduler as S

PEAK = 0.4
EPOCHS, WARMUP = 90, 5
STEPS_PER_EPOCH = 50


def rates(make, count):
    """The rate in force at each of `count` times, from a scheduler stepped once after each."""
    rule = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR passes an epoch, which lr_scheduler deprecates
        scheduler = make(rule)
        values = []
        for _ in range(count):
            values.append(float(rule.param_groups[0]["lr"]))
            rule.step()
            scheduler.step()
    return values


def one_based(rule, warmup):
    """(t + 1) / warmup: the last warm-up step already runs at the peak."""
    return S.LinearLR(rule, start_factor=1 / warmup, total_iters=warmup - 1)


def after(rule, warmup, first, then):
    return S.SequentialLR(rule, [first, then], milestones=[warmup])


def cosine(rule, total, warmup, first):
    return after(rule, warmup, first, S.CosineAnnealingLR(rule, T_max=total - warmup, eta_min=0))


def linear(rule, total, warmup, first):
    then = S.LinearLR(rule, start_factor=1.0, end_factor=0.0, total_iters=total - warmup)
    return after(rule, warmup, first, then)


def record():
    total, warmup = EPOCHS * STEPS_PER_EPOCH, WARMUP * STEPS_PER_EPOCH
    from_zero = lambda rule, w: S.LambdaLR(rule, lambda t: min(t / w, 1.0))  # noqa: E731
    start = lambda rule: S.LinearLR(rule, start_factor=0.01, total_iters=WARMUP)  # noqa: E731
    cases = {
        # name: (unit, count, warm-up length, formula, scheduler)
        "step_epoch": ("epoch", EPOCHS, 0, "peak * 0.1^(number of milestones 30, 60, 80 that are <= t)",
                       lambda r: S.MultiStepLR(r, [30, 60, 80], gamma=0.1)),
        "steplr30_epoch": ("epoch", EPOCHS, 0, "peak * 0.1^floor(t / 30)", lambda r: S.StepLR(r, 30, gamma=0.1)),
        "warmup_cosine_epoch": ("epoch", EPOCHS, WARMUP, "t < w: peak (t + 1) / w; else peak (1 + cos(pi (t - w) / (n - w))) / 2",
                                lambda r: cosine(r, EPOCHS, WARMUP, one_based(r, WARMUP))),
        "warmup_cosine_epoch_from_0.01": ("epoch", EPOCHS, WARMUP,
                                          "t < w: peak (0.01 + 0.99 t / w); else peak (1 + cos(pi (t - w) / (n - w))) / 2",
                                          lambda r: cosine(r, EPOCHS, WARMUP, start(r))),
        "warmup_cosine_step": ("step", total, warmup, "t < w: peak (t + 1) / w; else peak (1 + cos(pi (t - w) / (n - w))) / 2",
                               lambda r: cosine(r, total, warmup, one_based(r, warmup))),
        "warmup_cosine_step_from_0": ("step", total, warmup, "t < w: peak t / w; else peak (1 + cos(pi (t - w) / (n - w))) / 2",
                                      lambda r: cosine(r, total, warmup, from_zero(r, warmup))),
        "warmup_linear_step": ("step", total, warmup, "t < w: peak (t + 1) / w; else peak (1 - (t - w) / (n - w))",
                               lambda r: linear(r, total, warmup, one_based(r, warmup))),
        "warmup_linear_step_from_0": ("step", total, warmup, "t < w: peak t / w; else peak (1 - (t - w) / (n - w))",
                                      lambda r: linear(r, total, warmup, from_zero(r, warmup))),
    }
    records = {}
    for name, (unit, count, w, text, make) in cases.items():
        values = rates(make, count)
        at = range(count) if count <= 90 else sorted({0, 1, w - 1, w, w + 1, count - 2, count - 1, *range(0, count, 173)})
        records[name] = {"unit": unit, "peak": PEAK, "n": count, "w": w, "formula": text,
                         "t": list(at), "lr": [values[t] for t in at]}  # fmt: skip
    return records
