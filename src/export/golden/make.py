"""Writes the small files of torch.save that the reader is tested with: `python make.py` in this folder."""
import argparse
import collections

import torch

base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
state = collections.OrderedDict(
    plain=base.clone(),
    transposed=base.t(),            # stride (1, 6)
    sliced=base[1:3, ::2],          # offset 6, stride (6, 2), shares the storage
    nhwc=torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    half=base.half(),
    bfloat16=base.bfloat16(),
    counter=torch.tensor(1234567890123),
)
net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
with torch.no_grad():
    for value in net.state_dict().values():
        value.copy_(torch.arange(value.numel()).reshape(value.shape))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
net(torch.zeros(4, 3)).sum().backward()
optimizer.step()
torch.save(state, "state.zip")
torch.save({"epoch": 3, "lr": [0.1, None, True], "optimizer": optimizer.state_dict(),
            "state_dict": {"module." + k: v for k, v in net.state_dict().items()}}, "wrapped.zip")
torch.save(dict(net.named_parameters()), "parameters.zip", pickle_protocol=4)
torch.save({"model": net.state_dict(), "args": argparse.Namespace(lr=0.1)}, "namespace.zip")
torch.save(state, "legacy.bin", _use_new_zipfile_serialization=False)
print(torch.__version__)
