"""What the comparisons with PyTorch share: files of the engine's, a ResNet that needs torch alone, and mixed precision.

Nothing here needs numpy, safetensors or torchvision, so that it runs wherever `import torch` works.
"""

import contextlib
import ctypes
import json
import struct

import torch
from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = {"F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Unit roundoff: half the distance from 1 to the next number.
ROUNDOFF = {"fp32": 2**-24, "tf32": 2**-11, "fp16": 2**-11, "bf16": 2**-8}


def read_safetensors(path):
    """Tensors by name, and the metadata."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        part = data[begin:end]
        tensors[name] = torch.frombuffer(part, dtype=DTYPES[info["dtype"]]).reshape(info["shape"])
    return tensors, metadata


def write_safetensors(path, tensors):
    """f32 tensors by name, without metadata."""
    header, parts, offset = {}, [], 0
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().float().cpu().contiguous()
        # bytes(tensor.untyped_storage()) asks for one byte at a time: minutes for a ResNet-50.
        part = ctypes.string_at(tensor.data_ptr(), 4 * tensor.numel())
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(part)]}
        parts.append(part)
        offset += len(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


def engine_steps(path):
    """The lines of kind "step" of a metrics.jsonl, in order; a resumed run's log repeats none."""
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [line for line in lines if line.get("kind") == "step"]


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width (ResNet v1.5), with torchvision's names."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet(nn.Module):
    """`stages`: (blocks, width, stride) of each; torchvision's initialisation."""

    def __init__(self, stem, stages, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs, self.stages = stem, len(stages)
        for number, (blocks, width, stride) in enumerate(stages, 1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
                inputs = 4 * width
            setattr(self, f"layer{number}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def network(arch, classes):
    if arch == "resnet-tiny":
        return ResNet(16, [(2, 16, 1), (1, 32, 2)], classes)
    return ResNet(64, [(3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)], classes)


def load(state):
    """The network that these weights are of, with them; the engine's own tensors are passed over."""
    arch = "resnet50" if "layer4.0.conv1.weight" in state else "resnet-tiny"
    model = network(arch, state["fc.weight"].shape[0])
    state = {k: v for k, v in state.items() if not k.startswith(("optim.", "ema.", "engine."))}
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict({**counters, **state}, strict=True)
    return model.train()


def normalise(images, device):
    """u8 [n, h, w, 3] -> f32 [n, 3, h, w] in channels_last, in the order of torchvision's ToTensor and Normalize."""
    mean, std = (torch.tensor(values, device=device) for values in (MEAN, STD))
    return ((images.to(device).float() / 255 - mean) / std).permute(0, 3, 1, 2)


def autocast(device, precision):
    """Mixed precision of this name; nothing for fp32 and tf32."""
    if precision in HALVES:
        return torch.autocast(device, dtype=HALVES[precision])
    return contextlib.nullcontext()


def set_tf32(allowed):
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def mixed(images, labels, mixes, classes):
    """Normalised images [n, 3, h, w] and targets [n, classes] with every image's partner in it, as the engine's batches say:
    `mixes` are one batch's partners [n], lambdas [n] and regions [n, 4] (top, left, height, width; all 0 is mixup)."""
    partners, lambdas, regions = mixes
    partners, lambdas = partners.to(images.device), lambdas.to(images.device)
    own = lambdas.view(-1, 1, 1, 1)
    blended = own * images + (1 - own) * images[partners]
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    top, left, height, width = (edge.view(-1, 1) for edge in regions.to(images.device).T)
    tall = (rows >= top) & (rows < top + height)
    wide = (columns >= left) & (columns < left + width)
    box = (tall[:, :, None] & wide[:, None, :])[:, None]
    cut = (height * width > 0).view(-1, 1, 1, 1)
    images = torch.where(cut, torch.where(box, images[partners], images), blended)
    targets = torch.nn.functional.one_hot(labels.to(images.device), classes).float()
    return images, lambdas.view(-1, 1) * targets + (1 - lambdas.view(-1, 1)) * targets[partners]


def sgd(model, momentum, nesterov, weight_decay, decay="weights", **options):
    """`decay` says what weight decay falls on, in the engine's words: convolution and classifier weights (its default), those and
    the classifier's bias (`unnormalised`), or everything (`all`)."""
    norms = {p for module in model.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()}
    decays = {"weights": lambda p: p.dim() > 1, "unnormalised": lambda p: p not in norms, "all": lambda p: True}[decay]
    decayed = [p for p in model.parameters() if decays(p)]
    others = [p for p in model.parameters() if not decays(p)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, **options)
