"""Records networks: one training step in full, and runs of several SGD steps, in f64 (the golden) and f32 (its error)."""

import math

import formula
import numpy as np
import torch
import torchvision
from torchvision.models.resnet import Bottleneck

SAMPLES, SKETCHES = 16, 16
SMOOTHING = 0.1
WEIGHT_DECAY = 1e-4


class Tiny(torch.nn.Module):
    """RESNET_TINY of src/model/spec.rs, from torchvision's own blocks and with its names."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        self.relu = torch.nn.ReLU(inplace=True)
        self.maxpool = torch.nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = torch.nn.Sequential(self.block(16, 16, 1), Bottleneck(64, 16))
        self.layer2 = torch.nn.Sequential(self.block(64, 32, 2))
        self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(128, 10)

    @staticmethod
    def block(inputs, width, stride):
        shortcut = torch.nn.Conv2d(inputs, width * 4, 1, stride=stride, bias=False)
        return Bottleneck(inputs, width, stride, torch.nn.Sequential(shortcut, torch.nn.BatchNorm2d(width * 4)))

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


def network(arch, dtype, channels_last=False):
    model = Tiny() if arch == "resnet-tiny" else torchvision.models.resnet50(weights=None)
    features = model.fc.in_features
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(formula.parameter(name, tuple(p.shape), features)))
    return model.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def batch(name, n, size, classes, dtype):
    images = formula.normalise(formula.images_u8(name + ".images", n, size))
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(dtype)
    return images, torch.from_numpy(formula.labels(name + ".labels", n, classes))


def flat(tensor):
    """f64, in the order of the tensor's shape, whatever its layout."""
    return tensor.detach().double().contiguous().numpy().ravel()


def nhwc(tensor):
    """Activations, NCHW here, in NHWC order."""
    return flat(tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor)


# PyTorch's f32 rounds one way in each layout: the larger error of the two is recorded.
RUNS = [(torch.float64, False), (torch.float32, False), (torch.float32, True)]


def summary(name, exact, singles, samples=SAMPLES, sketches=SKETCHES):
    """`f32_norm` and `f32_max` say how far PyTorch's own f32 lies: ||a - b|| / ||b|| and max|a - b| / max|b|."""
    norm, differences = np.linalg.norm(exact), [single - exact for single in singles]
    return {
        "len": int(exact.size),
        "norm": float(norm),
        "max": float(np.abs(exact).max()),
        "sample": formula.sample(name, exact, samples),
        "sketch": formula.sketch(name, exact, sketches),
        "f32_norm": deviation(max(np.linalg.norm(d) for d in differences), norm),
        "f32_max": deviation(max(np.abs(d).max() for d in differences), np.abs(exact).max()),
    }


def deviation(difference, reference):
    """Two digits are enough for a tolerance; 0 when both are 0."""
    return float(f"{difference / reference:.2g}") if reference else float(difference)


def relative(singles, exact):
    return deviation(max(np.abs(single - exact).max() for single in singles), np.abs(exact).max())


def loss_of(model, images, labels):
    logits = model(images)
    return logits, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)


def record_activations(model, into):
    """Hooks that keep a copy of every tensor under the graph's name (src/model/graph.rs); returns their handles."""
    handles = []

    def keep(name):
        def hook(_module, _inputs, output):
            into[name] = output.detach().clone()

        return hook

    def relu(block):
        names = iter(["relu1", "relu2", "relu"])

        def before(_module, inputs):
            name = next(names)
            if name == "relu":
                into[f"{block}.add"] = inputs[0].detach().clone()
            relu.now = name

        def after(_module, _inputs, output):
            into[f"{block}.{relu.now}"] = output.detach().clone()

        return before, after

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ReLU) and "." in name:
            before, after = relu(name.removesuffix(".relu"))
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        elif not list(module.children()):
            handles.append(module.register_forward_hook(keep(name)))
    return handles


def train_step(arch, case, n, size, activations, dtype, channels_last):
    model = network(arch, dtype, channels_last).train()
    images, labels = batch(case, n, size, model.fc.out_features, dtype)
    outputs = {}
    handles = record_activations(model, outputs) if activations else []
    logits, loss = loss_of(model, images, labels)
    for handle in handles:
        handle.remove()
    loss.backward()
    model.eval()
    with torch.no_grad():
        eval_logits = model(images)
    return {
        "loss": loss.item(),
        "logits": flat(logits),
        "eval_logits": flat(eval_logits),
        "activations": {name: nhwc(t) for name, t in outputs.items()},
        "gradients": {name: flat(p.grad) for name, p in model.named_parameters()},
        "buffers": {name: flat(b) for name, b in model.named_buffers() if "running" in name},
        "labels": labels.tolist(),
    }


def record_step(arch, case, n, size, activations=False):
    exact, *singles = (train_step(arch, case, n, size, activations, *run) for run in RUNS)
    record = {
        "arch": arch,
        "case": case,
        "resolution": size,
        "batch": n,
        "label_smoothing": SMOOTHING,
        "labels": exact["labels"],
        "loss": exact["loss"],
        "loss_f32": relative([single["loss"] for single in singles], exact["loss"]),
    }
    for name in ("logits", "eval_logits"):
        record[name] = exact[name].tolist()
        record[name + "_f32"] = relative([single[name] for single in singles], exact[name])
    for kind in ("activations", "gradients", "buffers"):
        counts = (8, 8) if kind == "buffers" else (SAMPLES, SKETCHES)
        record[kind] = {
            name: summary(name, values, [single[kind][name] for single in singles], *counts)
            for name, values in exact[kind].items()
        }
    return record


def warmup_cosine(steps, warmup, peak):
    """Learning rate of step t: peak (t + 1) / warmup while warming up, then half a cosine down to 0 at `steps`."""
    rates = []
    for t in range(steps):
        if t < warmup:
            rates.append(peak * (t + 1) / warmup)
        else:
            rates.append(peak * 0.5 * (1 + math.cos(math.pi * (t - warmup) / (steps - warmup))))
    return rates


def optimiser(model, nesterov):
    """Weight decay on convolution and linear weights alone: the parameters of more than one dimension."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=nesterov)


def sgd_run(arch, case, n, size, rates, nesterov, dtype, channels_last=False):
    model = network(arch, dtype, channels_last).train()
    rule = optimiser(model, nesterov)
    losses = []
    for step, rate in enumerate(rates):
        images, labels = batch(f"{case}.{step}", n, size, model.fc.out_features, dtype)
        for group in rule.param_groups:
            group["lr"] = rate
        rule.zero_grad()
        _, loss = loss_of(model, images, labels)
        loss.backward()
        rule.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "parameters": {name: flat(p) for name, p in model.named_parameters()},
        "momenta": {name: flat(rule.state[p]["momentum_buffer"]) for name, p in model.named_parameters()},
        "buffers": {name: flat(b) for name, b in model.named_buffers() if "running" in name},
    }


def record_sgd(arch, case, n, size, rates, nesterov):
    exact, *singles = (sgd_run(arch, case, n, size, rates, nesterov, *run) for run in RUNS)
    record = {
        "arch": arch,
        "case": case,
        "resolution": size,
        "batch": n,
        "label_smoothing": SMOOTHING,
        "momentum": 0.9,
        "nesterov": nesterov,
        "weight_decay": WEIGHT_DECAY,
        "lr": rates,
        "losses": exact["losses"],
        "losses_f32": [relative(losses, loss) for *losses, loss in zip(*(r["losses"] for r in (*singles, exact)))],
    }
    for kind in ("parameters", "momenta", "buffers"):
        record[kind] = {
            name: summary(name, values, [single[kind][name] for single in singles], 4, 8)
            for name, values in exact[kind].items()
        }
    return record
