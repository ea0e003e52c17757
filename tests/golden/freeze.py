"""Records steps of the tiny network with parts of it frozen by timm: no gradients, and batch norms on their running statistics."""

import formula
import networks
import timm.utils
import torch
from torch.nn import functional as F

RATES = [0.01, 0.02]

# Modules by the names of `optim.freeze`.
MODULES = {"stem": ["conv1", "bn1"], "layer1": ["layer1"]}


def running(name, count):
    """Statistics as of a training that went before: variances in [0.5, 1.5), means in [-0.25, 0.25)."""
    signed = 2 * formula.unit(name, count) - 1
    return torch.from_numpy(1 + signed / 2 if name.endswith("running_var") else signed / 4).float()


def freeze_run(case, frozen, dtype, channels_last):
    model = networks.network("resnet-tiny", dtype, channels_last).train()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(running(name, len(buffer)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    timm.utils.freeze(model, [module for part in frozen for module in MODULES[part]])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for p in trained.values() if p.dim() > 1], "weight_decay": networks.WEIGHT_DECAY},
        {"params": [p for p in trained.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    rule = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)
    losses = []
    for step, rate in enumerate(RATES):
        images, labels = networks.batch(f"{case}.{step}", 4, 32, 10, dtype)
        for group in rule.param_groups:
            group["lr"] = rate
        rule.zero_grad()
        loss = F.cross_entropy(model(images), labels, label_smoothing=networks.SMOOTHING)
        loss.backward()
        rule.step()
        losses.append(loss.item())
    after = model.state_dict()
    stays = [name for name in before if name.split(".")[0] in sum((MODULES[part] for part in frozen), [])]
    assert all(torch.equal(before[name], after[name]) for name in stays if name in after)
    return {
        "losses": losses,
        "parameters": {name: networks.flat(p) for name, p in trained.items()},
        "momenta": {name: networks.flat(rule.state[p]["momentum_buffer"]) for name, p in trained.items()},
        "buffers": {name: networks.flat(value) for name, value in after.items() if "running" in name},
    }


def record_case(case, frozen):
    exact, *singles = (freeze_run(case, frozen, *run) for run in networks.RUNS)
    record = {
        **dict(case=case, freeze=",".join(frozen), resolution=32, batch=4, lr=RATES, momentum=0.9, nesterov=True),
        **dict(weight_decay=networks.WEIGHT_DECAY, label_smoothing=networks.SMOOTHING, losses=exact["losses"]),
        "losses_f32": [networks.relative(ls, loss) for *ls, loss in zip(*(r["losses"] for r in (*singles, exact)))],
    }
    for kind in ("parameters", "momenta", "buffers"):
        record[kind] = {
            name: networks.summary(name, tensor, [single[kind][name] for single in singles], 4, 8)
            for name, tensor in exact[kind].items()
        }
    return record


def record():
    # Below everything that trains, and between; the numbers as in make_golden.py.
    return {"cases": [record_case("tiny32.freeze.0", ["stem", "layer1"]), record_case("tiny32.freeze.0", ["layer1"])]}
