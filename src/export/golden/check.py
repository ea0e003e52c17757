"""Loads what the exporter wrote into FOLDER as strictly as PyTorch can, and writes torchvision's own files there."""
import sys
import zipfile
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
model = torchvision.models.resnet50()
ours = torch.load(folder / "ours.pth", weights_only=True)
model.load_state_dict(ours, strict=True)
assert list(ours) == list(torchvision.models.resnet50().state_dict()), "order of the keys"
mapped = torch.load(folder / "ours.pth", weights_only=True, mmap=True)
tensors = load_file(folder / "ours.safetensors")
torchvision.models.resnet50().load_state_dict(tensors, strict=True)
for i, (name, value) in enumerate(ours.items()):
    assert value.dtype == model.state_dict()[name].dtype and value.is_contiguous(), name
    assert torch.equal(value, tensors[name]) and torch.equal(value, mapped[name]), name
assert ours["bn1.num_batches_tracked"].item() == 5004
assert zipfile.ZipFile(folder / "ours.pth").testzip() is None
model.eval()(torch.zeros(1, 3, 64, 64))

torch.manual_seed(0)
theirs = torchvision.models.resnet50()
torch.save(theirs.state_dict(), folder / "theirs.pth")
save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, folder / "theirs.safetensors")
nhwc = theirs.to(memory_format=torch.channels_last)
torch.save({"model": nhwc.state_dict(), "epoch": 90}, folder / "theirs_nhwc.pth")
half = torchvision.models.resnet50().half()
torch.save(half.state_dict(), folder / "theirs_half.pth")
save_file(half.state_dict(), folder / "theirs_half.safetensors")
print("torch", torch.__version__, "torchvision", torchvision.__version__, "agree")
