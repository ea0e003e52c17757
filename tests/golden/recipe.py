"""Records what timm's and torchvision's recipes add to plain SGD: rules, losses, averages, boxes of cutmix, and steps of the
tiny network with all of them at once."""

import math
from unittest import mock

import formula
import networks
import numpy as np
import timm.data.mixup
import torch
from ops import signed, values
from timm.loss import BinaryCrossEntropy
from timm.optim import Lamb, Lars
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

DOUBLE = torch.float64


def rule(name, make, steps, decay, rates):
    """Two parameters, `signed("X.p0", 6 x 5)`, which decays, and `signed("X.p1", 7)`, which does not; gradients of step t
    `signed("X.g<t>.0")` and `.1`; after every step parameters, then the state by timm's names."""
    shapes = [(6, 5), (7,)]
    params = [torch.nn.Parameter(signed(f"{name}.p{i}", shape)) for i, shape in enumerate(shapes)]
    groups = [{"params": [params[0]], "weight_decay": decay}, {"params": [params[1]], "weight_decay": 0.0}]
    optimiser = make(groups)
    after = []
    for t in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rates[t]
        for i, p in enumerate(params):
            p.grad = signed(f"{name}.g{t}.{i}", tuple(p.shape))
        optimiser.step()
        states = [optimiser.state[p] for p in params]
        kept = sorted(key for key, value in states[0].items() if torch.is_tensor(value) and value.dim() > 0)
        after.append({"p": [values(p) for p in params], **{key: [values(s[key]) for s in states] for key in kept}})
    return {"steps": steps, "weight_decay": decay, "lr": rates, "after": after}


def lamb(name, clip):
    rates = [0.01 * (t + 1) for t in range(10)]
    constants = dict(betas=(0.9, 0.999), eps=1e-6, max_grad_norm=clip or None)
    record = rule(name, lambda groups: Lamb(groups, lr=0.0, **constants), 10, 0.02, rates)
    return {**record, "clip_norm": clip, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6}


def lars(name, nesterov):
    rates = [2.0, 3.0, 1.5, 1.0, 0.5]
    constants = dict(momentum=0.9, nesterov=nesterov, trust_coeff=0.01, eps=1e-8)
    record = rule(name, lambda groups: Lars(groups, lr=0.0, **constants), 5, 0.05, rates)
    return {**record, "momentum": 0.9, "nesterov": nesterov, "trust": 0.01, "epsilon": 1e-8}


def bce(name, n, classes, scale, smoothing, threshold, total, lam):
    """Logits scale * signed("X.logits"), labels by the formula. With `lam`: targets by timm's `mixup_target`, whose partner of
    sample i is sample n - 1 - i; without: labels."""
    logits = (signed(f"{name}.logits", (n, classes)) * scale).requires_grad_()
    labels = torch.from_numpy(formula.labels(f"{name}.labels", n, classes))
    target = labels if lam is None else timm.data.mixup.mixup_target(labels, classes, lam, smoothing).to(DOUBLE)
    loss = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold, sum_classes=total)(logits, target)
    loss.backward()
    size = dict(n=n, classes=classes, scale=scale, label_smoothing=smoothing)
    mixed = dict(threshold=threshold, sum=total, mix=lam, labels=labels.tolist())
    return {**size, **mixed, "loss": loss.item(), "dlogits": values(logits.grad)}


def averages(decay, every, batch, epochs, warmup, steps):
    """The averaged value of a weight that is t * t % 97 after optimiser step t, by torchvision's reference training loop: an
    update of the average with every `every`-th step of an epoch, its count set back to 0 while warming up."""
    alpha = min(1.0, (1.0 - decay) * batch * every / epochs)
    model = torch.nn.Linear(1, 1, bias=False).to(DOUBLE)
    moving = AveragedModel(model, avg_fn=lambda old, new, _: (1 - alpha) * old + alpha * new, use_buffers=True)
    seen, t = [], 0
    for epoch in range(epochs):
        for i in range(steps):
            with torch.no_grad():
                model.weight.fill_(float(t * t % 97))
            if i % every == 0:
                moving.update_parameters(model)
                if epoch < warmup:
                    moving.n_averaged.fill_(0)
            seen.append(moving.module.weight.item())
            t += 1
    options = dict(decay=decay, every=every, batch=batch, epochs=epochs, warmup=warmup, steps=steps)
    return {**options, "average": seen}


def timm_cut(side, lam, row, column):
    """timm draws the row first."""
    with mock.patch("numpy.random.randint", side_effect=[row, column]):
        (top, bottom, left, right), corrected = timm.data.mixup.cutmix_bbox_and_lam((3, side, side), lam)
    return [int(top), int(left), int(bottom - top), int(right - left)], float(corrected)


def torchvision_cut(side, lam, row, column):
    """torchvision draws the column first."""
    cut = v2.CutMix(num_classes=2)
    cut._dist = mock.Mock(sample=lambda _: torch.tensor(lam, dtype=DOUBLE))
    with mock.patch("torch.randint", side_effect=[torch.tensor([column]), torch.tensor([row])]):
        params = cut.make_params([torch.zeros(4, 3, side, side)])
    left, top, right, bottom = params["box"]
    return [top, left, bottom - top, right - left], params["lam_adjusted"]


def cuts():
    cases = []
    draws = formula.unit("cuts", 3 * 40)
    for index in range(40):
        side = [32, 33, 160, 176, 224][index % 5]
        lam, row, column = draws[3 * index : 3 * index + 3]
        row, column = int(row * side), int(column * side)
        for form, cut in (("timm", timm_cut), ("torchvision", torchvision_cut)):
            rect, corrected = cut(side, float(lam), row, column)
            cases.append(dict(form=form, side=side, drawn=float(lam), row=row, column=column, rect=rect, corrected=corrected))
    return cases


# ---- the tiny network with everything at once ---------------------------------------------------------------------

CLIP, DECAY, EMA, DROP = 0.05, 0.02, 0.75, 0.5
RATES = [0.004, 0.008, 0.006]


class Dropped(torch.nn.Module):
    """A block whose residual branch is multiplied by a factor for each image before the shortcut is added."""

    def __init__(self, block, rate):
        super().__init__()
        self.block, self.rate, self.draws = block, rate, None

    def forward(self, x):
        b = self.block
        y = b.relu(b.bn1(b.conv1(x)))
        y = b.bn3(b.conv3(b.relu(b.bn2(b.conv2(y)))))
        kept = torch.from_numpy(self.draws >= self.rate).to(y.dtype) / (1 - self.rate)
        return b.relu(y * kept.view(-1, 1, 1, 1) + (x if b.downsample is None else b.downsample(x)))


def drop_blocks(model):
    """Rates rise evenly from 0; returns the blocks in order."""
    blocks = [(layer, i) for layer in (model.layer1, model.layer2) for i in range(len(layer))]
    wrapped = []
    for index, (layer, i) in enumerate(blocks):
        layer[i] = Dropped(layer[i], DROP * index / (len(blocks) - 1))
        wrapped.append(layer[i])
    return wrapped


def mixed(images, t):
    """Step 0: mixup of 0.3 with the batch reversed. Step 1: an erased square, then cutmix of a box of 12 x 10. Step 2: neither."""
    if t == 0:
        return 0.3 * images + 0.7 * images.flip(0), 0.3
    if t == 1:
        images = images.clone()
        images[1, :, 4:14, 20:29] = 0.0
        cut = images.clone()
        cut[:, :, 5:17, 3:13] = images.flip(0)[:, :, 5:17, 3:13]
        return cut, 1 - 120 / 1024
    return images, None


def recipe_run(case, dtype, channels_last):
    model = networks.network("resnet-tiny", dtype, channels_last).train()
    blocks = drop_blocks(model)
    names = {name.replace(".block", ""): p for name, p in model.named_parameters()}
    buffers = lambda: {n.replace(".block", ""): b for n, b in model.named_buffers() if "running" in n}  # noqa: E731
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = Lamb(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-6, max_grad_norm=CLIP)
    everything = lambda: {**names, **buffers()}  # noqa: E731
    average = {name: t.detach().clone() for name, t in everything().items()}
    losses, n = [], 4
    for t, rate in enumerate(RATES):
        images, labels = networks.batch(f"{case}.{t}", n, 32, 10, dtype)
        draws = formula.unit(f"{case}.{t}.drop", n * len(blocks)).reshape(n, len(blocks))
        for index, block in enumerate(blocks):
            block.draws = draws[:, index]
        images, lam = mixed(images, t)
        soft = timm.data.mixup.mixup_target(labels, 10, 1.0 if lam is None else lam, 0.1).to(dtype)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss = BinaryCrossEntropy(target_threshold=0.2)(model(images), soft)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        with torch.no_grad():
            for name, value in everything().items():
                average[name].mul_(EMA).add_(value, alpha=1 - EMA)
    state = lambda key: {name: networks.flat(optimiser.state[p][key]) for name, p in names.items()}  # noqa: E731
    return {
        "losses": losses,
        "parameters": {name: networks.flat(p) for name, p in names.items()},
        "first": state("exp_avg"),
        "second": state("exp_avg_sq"),
        "averages": {name: networks.flat(value) for name, value in average.items()},
    }


def record_run(case):
    exact, *singles = (recipe_run(case, *run) for run in networks.RUNS)
    relative = networks.relative
    record = {
        **dict(case=case, resolution=32, batch=4, lr=RATES, clip_norm=CLIP, weight_decay=DECAY, ema=EMA, drop_path=DROP),
        **dict(label_smoothing=0.1, threshold=0.2, losses=exact["losses"]),
        "losses_f32": [relative(losses, loss) for *losses, loss in zip(*(r["losses"] for r in (*singles, exact)))],
    }
    for kind in ("parameters", "first", "second", "averages"):
        record[kind] = {
            name: networks.summary(name, tensor, [single[kind][name] for single in singles], 4, 8)
            for name, tensor in exact[kind].items()
        }
    return record


def record():
    entropies = {
        "bce": (4, 7, 3.0, 0.0, None, False, None),
        "bce_smooth_sum": (4, 7, 3.0, 0.1, None, True, None),
        "bce_mixed": (4, 7, 3.0, 0.1, None, False, 0.7),
        "bce_mixed_threshold": (4, 7, 3.0, 0.1, 0.2, False, 0.7),
        "bce_mixed_one": (4, 7, 3.0, 0.0, 0.2, True, 0.85),
        "bce_large": (3, 5, 128.0, 0.1, None, False, None),
    }
    return {
        "lamb": {"lamb": lamb("lamb", 0.0), "lamb_clipped": lamb("lamb_clipped", 1.0)},
        "lars": {"lars": lars("lars", False), "lars_nesterov": lars("lars_nesterov", True)},
        "bce": {name: bce(name, *arguments) for name, arguments in entropies.items()},
        "averages": {
            "scaled": averages(0.998, 3, 8, 6, 2, 7),
            "from_the_start": averages(0.9, 1, 2, 5, 0, 4),
        },
        "cuts": cuts(),
    }


# ---- schedules over whole trainings --------------------------------------------------------------------------------


def timm_rates(peak, epochs, warmup, start, end, k=1.0):
    from timm.scheduler import CosineLRScheduler

    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    constants = dict(lr_min=end, warmup_t=warmup, warmup_lr_init=start, k_decay=k)
    schedule = CosineLRScheduler(optimiser, t_initial=epochs, **constants)
    rates = []
    for epoch in range(epochs):
        schedule.step(epoch)
        rates.append(float(optimiser.param_groups[0]["lr"]))
    return rates


def torchvision_rates(peak, epochs, warmup, share):
    import schedules

    make = lambda rule: schedules.cosine(  # noqa: E731
        rule, epochs, warmup, torch.optim.lr_scheduler.LinearLR(rule, start_factor=share, total_iters=warmup)
    )
    with mock.patch.object(schedules, "PEAK", peak):
        return schedules.rates(make, epochs)


def nvidia_rates(peak, epochs, warmup):
    """image_classification/optimizers.py, `lr_cosine_policy`: by the whole epoch, down to 0."""
    rise = [peak * (epoch + 1) / warmup for epoch in range(warmup)]
    span = epochs - warmup
    return rise + [0.5 * (1 + math.cos(math.pi * e / span)) * peak for e in range(span)]


def ffcv_rates(peak, epochs, steps):
    """train_imagenet.py, `get_lr` with `step_ramp` off: piecewise linear in the epoch and, within it, in the step:
    1e-4 of the peak, the peak at epoch 2, 0 at the end."""
    knots = np.interp(np.arange(epochs * steps) / steps, [0, 2, epochs], [1e-4 * peak, peak, 0.0])
    return knots.tolist()


def record_schedules():
    return {
        "resnet50-v2": torchvision_rates(0.5, 600, 5, 0.01),
        "resnet50-a1": timm_rates(5e-3, 600, 5, 1e-4, 1e-6),
        "resnet50-a3": timm_rates(8e-3, 100, 5, 1e-4, 1e-6),
        "resnet50-90-nvidia": nvidia_rates(2.048, 90, 8),
        "timm_k_decay": timm_rates(8e-3, 100, 5, 1e-4, 1e-6, 1.5),
    }
