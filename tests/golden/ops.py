"""Records single operations, in f64, in full: tensors NHWC and KCRS, inputs from the formula.

Inputs of case X are `signed("X.x", i)` and so on, exact in f32; only what is computed is stored.
"""

import formula
import numpy as np
import torch
from torch.nn import functional as F

DOUBLE = torch.float64


def signed(name, shape):
    """f64, exact in f32, in the order of `shape`."""
    return torch.from_numpy(formula.scaled(name, shape, 1.0)).to(DOUBLE)


def image(name, shape):
    """[n, h, w, c] from the formula, as an NCHW view."""
    return signed(name, shape).permute(0, 3, 1, 2)


def values(tensor):
    """Flat; NCHW tensors of activations must come through nhwc()."""
    return tensor.detach().contiguous().flatten().tolist()


def nhwc(tensor):
    return values(tensor.permute(0, 2, 3, 1))


def conv(name, n, h, w, c, k, r, stride, pad):
    x, weight = image(f"{name}.x", (n, h, w, c)), signed(f"{name}.w", (k, c, r, r))
    x.requires_grad_(), weight.requires_grad_()
    y = F.conv2d(x, weight, stride=stride, padding=pad)
    y.backward(image(f"{name}.dy", tuple(y.permute(0, 2, 3, 1).shape)))
    shape = dict(n=n, h=h, w=w, c=c, k=k, r=r, s=r, stride=stride, pad=pad)
    return {**shape, "y": nhwc(y), "dx": nhwc(x.grad), "dw": values(weight.grad)}


def batch_norm(name, n, h, w, c, offset):
    """x = f32(signed + offset): with a large offset, E[x^2] - E[x]^2 loses every digit in f32."""
    x = (image(f"{name}.x", (n, h, w, c)) + offset).float().to(DOUBLE).requires_grad_()
    gamma = (signed(f"{name}.gamma", (c,))).requires_grad_()
    beta = signed(f"{name}.beta", (c,)).requires_grad_()
    mean, var = torch.zeros(c, dtype=DOUBLE), torch.ones(c, dtype=DOUBLE)
    y = F.batch_norm(x, mean, var, gamma, beta, training=True, momentum=0.1, eps=1e-5)
    y.backward(image(f"{name}.dy", (n, h, w, c)))
    with torch.no_grad():
        y_eval = F.batch_norm(x, mean, var, gamma, beta, training=False, eps=1e-5)
    return {
        **dict(n=n, h=h, w=w, c=c, offset=offset),
        **dict(y=nhwc(y), running_mean=values(mean), running_var=values(var), y_eval=nhwc(y_eval)),
        **dict(dx=nhwc(x.grad), dgamma=values(gamma.grad), dbeta=values(beta.grad)),
    }


def max_pool(name, n, h, w, c):
    """x = (bits >> 62) - 3, one of -3, -2, -1, 0: ties in every window, and padding must not beat them."""
    levels = (formula.bits(f"{name}.x", n * h * w * c) >> np.uint64(62)).astype(np.float64) - 3
    x = torch.from_numpy(levels.reshape(n, h, w, c)).permute(0, 3, 1, 2).requires_grad_()
    y = F.max_pool2d(x, 3, stride=2, padding=1)
    dy = image(f"{name}.dy", tuple(y.permute(0, 2, 3, 1).shape))
    y.backward(dy)
    last = x.detach().float().contiguous(memory_format=torch.channels_last).requires_grad_()
    F.max_pool2d(last, 3, stride=2, padding=1).backward(dy.float())
    assert torch.allclose(last.grad.double(), x.grad, atol=1e-6), "channels_last breaks ties another way"
    return {**dict(n=n, h=h, w=w, c=c), "y": nhwc(y), "dx": nhwc(x.grad)}


def avg_pool(name, n, h, w, c):
    x = image(f"{name}.x", (n, h, w, c)).requires_grad_()
    y = F.adaptive_avg_pool2d(x, 1)
    y.backward(image(f"{name}.dy", (n, 1, 1, c)))
    return {**dict(n=n, h=h, w=w, c=c), "y": nhwc(y), "dx": nhwc(x.grad)}


def linear(name, n, features, classes):
    shapes = {"x": (n, features), "w": (classes, features), "b": (classes,)}
    x, w, b = (signed(f"{name}.{k}", shape).requires_grad_() for k, shape in shapes.items())
    y = F.linear(x, w, b)
    y.backward(signed(f"{name}.dy", (n, classes)))
    size = dict(n=n, features=features, classes=classes)
    return {**size, "y": values(y), "dx": values(x.grad), "dw": values(w.grad), "db": values(b.grad)}


def cross_entropy(name, n, classes, scale, smoothing, mix=None):
    """Logits scale * signed; labels by the formula. With `mix`: lambda of the label and 1 - lambda of the next
    sample's (torchvision's mixup rolls the batch by one: sample i is mixed with sample i - 1, cyclic)."""
    logits = (signed(f"{name}.logits", (n, classes)) * scale).requires_grad_()
    labels = torch.from_numpy(formula.labels(f"{name}.labels", n, classes))
    target = labels
    if mix is not None:
        hot = F.one_hot(labels, classes).to(DOUBLE)
        target = mix * hot + (1 - mix) * hot.roll(1, 0)
    loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
    loss.backward()
    size = dict(n=n, classes=classes, scale=scale, label_smoothing=smoothing, mix=mix)
    return {**size, "labels": labels.tolist(), "loss": loss.item(), "dlogits": values(logits.grad)}


def sgd(name, n, steps, momentum, nesterov, decay, rates):
    """Weights signed("X.p"), gradients of step t signed("X.g<t>"); after every step the weights, then the momentum."""
    p = torch.nn.Parameter(signed(f"{name}.p", (n,)))
    rule = torch.optim.SGD([p], lr=0.0, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    after = []
    for t in range(steps):
        rule.param_groups[0]["lr"] = rates[t]
        p.grad = signed(f"{name}.g{t}", (n,))
        rule.step()
        after.append({"p": values(p), "momentum": values(rule.state[p]["momentum_buffer"])})
    return {**dict(n=n, momentum=momentum, nesterov=nesterov, weight_decay=decay, lr=rates), "after": after}


def record():
    convs = {
        "conv7": (2, 9, 11, 3, 4, 7, 2, 3),
        "conv3": (2, 5, 7, 3, 4, 3, 1, 1),
        "conv3s2": (1, 6, 7, 3, 5, 3, 2, 1),
        "conv1": (2, 3, 4, 5, 3, 1, 1, 0),
        "conv1s2": (1, 5, 6, 4, 3, 1, 2, 0),
    }
    pools = {"maxpool_even": (1, 6, 8, 2), "maxpool_odd": (2, 5, 7, 3), "maxpool_one": (1, 1, 2, 2)}
    entropies = {
        "xent": (4, 7, 3.0, 0.0),
        "xent_smooth": (4, 7, 3.0, 0.1),
        "xent_large": (3, 5, 128.0, 0.1),
        "xent_mixed": (4, 7, 3.0, 0.1, 0.75),
    }
    rates = [0.5, 0.25, 0.125]
    return {
        "conv": {name: conv(name, *shape) for name, shape in convs.items()},
        "batch_norm": {"bn": batch_norm("bn", 2, 3, 3, 4, 0.0), "bn_offset": batch_norm("bn_offset", 2, 4, 4, 3, 1000.0)},
        "max_pool": {name: max_pool(name, *shape) for name, shape in pools.items()},
        "avg_pool": {"avgpool": avg_pool("avgpool", 2, 3, 2, 4)},
        "linear": {"linear": linear("linear", 3, 5, 4)},
        "cross_entropy": {name: cross_entropy(name, *arguments) for name, arguments in entropies.items()},
        "sgd": {
            "sgd": sgd("sgd", 6, 3, 0.9, False, 0.01, rates),
            "sgd_nesterov": sgd("sgd_nesterov", 6, 3, 0.9, True, 0.01, rates),
        },
    }
