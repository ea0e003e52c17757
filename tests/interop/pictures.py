"""Pictures that every program prepares to the same bytes, and what `engine predict` says of them.

A picture whose shorter side has the model's size already is not resized, and PNG is lossless: what is left of the
preparation is a crop, which leaves no room for opinions. So logits can be compared to the last digits.
"""

import argparse
import io
import json
import pathlib
import subprocess
import tarfile

import numpy
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def parser(doc):
    """The flags of those that compare a program with `engine predict`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--engine", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--count", type=int, default=100)
    return parser


def encoded(path):
    """(name, bytes) of the pictures in a folder or tar, sorted; of a data set, its val half."""
    path = pathlib.Path(path)
    if path.is_dir():
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        read = {name: (path / name).read_bytes for name in names}
    else:
        archive = tarfile.open(path)
        members = {member.name: member for member in archive if member.name.lower().endswith(SUFFIXES)}
        names = sorted(members)
        read = {name: lambda name=name: archive.extractfile(members[name]).read() for name in names}
    val = [name for name in names if "val" in pathlib.PurePosixPath(name).parts]
    return [(name, read[name]) for name in val or names]


def chosen(source, count):
    """`count` of the pictures, spread over all of them."""
    found = encoded(source)
    assert found, f"{source}: no pictures"
    return [found[i * len(found) // count] for i in range(count)] if len(found) > count else found


def labels(source, model, count):
    """The class of each picture by the name of its folder; none where one is unknown to the model."""
    outputs = {entry[0]: index for index, entry in enumerate(model["classes"])}
    found = [outputs.get(pathlib.PurePosixPath(name).parent.name) for name, _ in chosen(source, count)]
    return None if None in found else numpy.array(found)


def prepare(source, folder, model, count):
    """Writes them as PNGs; (paths, normalised f32 NCHW)."""
    size = model["resolution"]
    shorter = round(size / model["crop_ratio"])
    paths, images = [], []
    for number, (_, read) in enumerate(chosen(source, count)):
        picture = Image.open(io.BytesIO(read())).convert("RGB")
        scale = shorter / min(picture.size)
        picture = picture.resize([max(shorter, round(side * scale)) for side in picture.size], Image.BILINEAR)
        path = pathlib.Path(folder) / f"{number:04}.png"
        picture.save(path)
        paths.append(path)
        # torchvision's CenterCrop rounds half to even, as Python does.
        left, top = (int(round((side - size) / 2)) for side in picture.size)
        images.append(numpy.asarray(picture.crop((left, top, left + size, top + size))))
    scaled = numpy.stack(images).astype(numpy.float64) / 255
    normalised = (scaled - numpy.array(model["mean"])) / numpy.array(model["std"])
    return paths, numpy.ascontiguousarray(normalised.astype(numpy.float32).transpose(0, 3, 1, 2))


def log_softmax(logits):
    logits = numpy.asarray(logits, numpy.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(axis=-1, keepdims=True))


def engine(program, checkpoint, paths, classes):
    """Logarithms of the probabilities that `engine predict` gives, f64 [n, classes]."""
    command = [program, "predict", "--checkpoint", checkpoint, "--json", "--top", str(classes), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logs = numpy.full((len(paths), classes), numpy.nan)
    for row, line in zip(logs, done.stdout.splitlines(), strict=True):
        for prediction in json.loads(line)["predictions"]:
            row[prediction["index"]] = numpy.log(prediction["probability"])
    return logs


def compare(got, want):
    """(share of equal first classes, the largest max|a - b| / max|b| of a picture)."""
    assert got.shape == want.shape, f"{got.shape} and {want.shape}"
    relative = numpy.abs(got - want).max(axis=1) / numpy.abs(want).max(axis=1)
    return (got.argmax(axis=1) == want.argmax(axis=1)).mean(), relative.max()
