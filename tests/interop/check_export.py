"""Reads an exported ResNet-50 as others would: the safetensors file by its library, the .pth without PyTorch.

    check_export.py MODEL.safetensors MODEL.pth CLASSES

Names, shapes and types must be those of torchvision.models.resnet50(num_classes=CLASSES).state_dict(), values finite, and
both files equal to the byte. The .pth may call nothing but what rebuilds a tensor, which is what
torch.load(weights_only=True) allows.
"""

import collections
import io
import pickle
import pickletools
import sys
import zipfile

import numpy
from safetensors.numpy import load_file

STORAGES = {"FloatStorage": numpy.dtype("<f4"), "LongStorage": numpy.dtype("<i8")}


def batch_norm(name, width):
    yield from ((f"{name}.{part}", (width,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def expected(classes):
    """(name, shape) of every entry, in torchvision's order."""
    yield "conv1.weight", (64, 3, 7, 7)
    yield from batch_norm("bn1", 64)
    before = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for i, shape in enumerate([(width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)], start=1):
                yield f"{name}.conv{i}.weight", shape
                yield from batch_norm(f"{name}.bn{i}", shape[0])
            if block == 0:
                yield f"{name}.downsample.0.weight", (4 * width, before, 1, 1)
                yield from batch_norm(f"{name}.downsample.1", 4 * width)
            before = 4 * width
    yield "fc.weight", (classes, before)
    yield "fc.bias", (classes,)


def check_tensors(what, tensors, wanted):
    missing, surplus = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    assert not missing and not surplus, f"{what}: missing {sorted(missing)[:5]}, not wanted {sorted(surplus)[:5]}"
    for name, shape in wanted.items():
        tensor = tensors[name]
        dtype = "int64" if name.endswith("num_batches_tracked") else "float32"
        assert tensor.shape == shape, f"{what}: {name} has shape {tensor.shape}, wanted {shape}"
        assert tensor.dtype == dtype, f"{what}: {name} has type {tensor.dtype}, wanted {dtype}"
        assert numpy.isfinite(tensor).all(), f"{what}: {name} has values that are not finite"
        assert not name.endswith("running_var") or (tensor >= 0).all(), f"{what}: {name} has a negative variance"


class Reader(pickle.Unpickler):
    """Rebuilds tensors as numpy arrays and refuses every other name."""

    def __init__(self, archive, prefix):
        super().__init__(io.BytesIO(archive.read(f"{prefix}/data.pkl")))
        self.archive, self.prefix = archive, prefix

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise AssertionError(f".pth: calls {module}.{name}, which a state dict does not need")

    def persistent_load(self, key):
        kind, dtype, name, place, count = key
        assert (kind, place) == ("storage", "cpu"), f".pth: storage {key}"
        data = numpy.frombuffer(self.archive.read(f"{self.prefix}/data/{name}"), dtype)
        assert len(data) == count, f".pth: storage {name} holds {len(data)} values, says {count}"
        return data

    @staticmethod
    def rebuild(storage, offset, shape, stride, requires_grad, hooks):
        assert not requires_grad and not hooks, ".pth: a tensor with gradient or hooks"
        dense = tuple(int(numpy.prod(shape[i + 1:], dtype=int)) for i in range(len(shape)))
        assert tuple(stride) == dense, f".pth: strides {stride} of shape {shape}, wanted {dense}"
        return storage[offset:offset + int(numpy.prod(shape, dtype=int))].reshape(shape)


def load_pth(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, ".pth: a member's checksum is wrong"
        stored = [item.filename for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]
        assert not stored, f".pth: compressed members {stored[:3]}; PyTorch maps them and wants them stored"
        roots = {name.split("/")[0] for name in archive.namelist()}
        assert len(roots) == 1, f".pth: several roots {sorted(roots)}, wanted one"
        prefix = roots.pop()
        assert archive.read(f"{prefix}/version").strip() == b"3", ".pth: version is not 3"
        # Every instruction must be one that pickletools knows, to the end.
        *_, last = pickletools.genops(archive.read(f"{prefix}/data.pkl"))
        assert last[0].name == "STOP", ".pth: the pickle does not end in STOP"
        return Reader(archive, prefix).load()


def main():
    safetensors_path, pth_path, classes = sys.argv[1:]
    wanted = dict(expected(int(classes)))
    assert len(wanted) == 320, len(wanted)
    tensors = load_file(safetensors_path)
    check_tensors("safetensors", tensors, wanted)
    state = load_pth(pth_path)
    check_tensors(".pth", state, wanted)
    assert list(state) == list(wanted), ".pth: the order is not torchvision's"
    for name in wanted:
        assert numpy.array_equal(tensors[name], state[name]), f"{name} differs between the two files"
    count = sum(tensor.size for name, tensor in tensors.items() if "running" not in name and "num_batches" not in name)
    print(f"check_export: 320 entries, {count} parameters, both files equal")


main()
