"""What verify_imagenet.sh relies on, on photographs that are at hand: pixels, logits and score equal torchvision's.

    python experiments/parity/photographs.py --engine ENGINE --classify CLASSIFY --photographs imagenet-sample-100.tar

torchvision's ResNet-50 with random weights, whose batch norms have seen the photographs once, goes through `engine eval`,
`engine predict` and, exported, `classify`. Compared are the pixels that the network saw (`classify --stdio` shows them), the
logarithms of all probabilities, and loss, top-1 and top-5. The exit status is 1 where pixels differ by a byte, logarithms by
more than 1e-4 of the largest (1e-3 where Winograd's algorithm runs: classify), or scores at all.

JPEG decoders differ by a few grey levels (Pillow's is libjpeg-turbo, a build without the feature `turbojpeg` has zune-jpeg), so
the photographs are judged as PNGs of Pillow's pixels; how far the JPEGs themselves are apart is printed beside it.
"""

import argparse
import base64
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def unpack(tar, folder):
    """Photographs as a validation split `val`, and as PNGs `png/val`; the paths and labels of these."""
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith("JPEG"):
                path = folder / "val" / pathlib.Path(member.name).parent.name / pathlib.Path(member.name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = archive.extractfile(member).read()
                path.write_bytes(picture)
                png = folder / "png" / path.relative_to(folder).with_suffix(".png")
                png.parent.mkdir(parents=True, exist_ok=True)
                Image.open(path).convert("RGB").save(png, compress_level=1)
    paths = sorted(folder.glob("png/val/*/*"))
    classes = sorted({path.parent.name for path in paths})
    return paths, torch.tensor([classes.index(path.parent.name) for path in paths])


def pixels(paths):
    """torchvision's preset for evaluation up to the tensor: u8 [n, 224, 224, 3]."""
    preset = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    return np.stack([np.asarray(preset(Image.open(path).convert("RGB"))) for path in paths])


@torch.no_grad()
def network(images, classes):
    """Random weights; running statistics are the mean of four batches."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None, num_classes=classes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    for part in images.split(25):
        model.train()(part)
    return model.eval()


def run(*command, text=None):
    done = subprocess.run([str(word) for word in command], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} {command[1]}: exit {done.returncode}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def shown(classify, model, paths):
    """The pixels that the network saw: u8 [n, 224, 224, 3]."""
    requests = "".join(json.dumps({"file": str(path), "explain": True, "top": 1}) + "\n" for path in paths)
    answers = run(classify, "--model", model, "--stdio", text=requests)
    seen = [np.frombuffer(base64.b64decode(answer["explanation"]["seen"]["rgb"]), np.uint8) for answer in answers]
    return np.stack(seen).reshape(len(paths), 224, 224, 3)


def logarithms(answers, classes):
    """[n, classes] of the answers' probabilities."""
    table = np.full((len(answers), classes), np.nan)
    for row, answer in zip(table, answers):
        for one in answer["predictions"]:
            row[one["index"]] = np.log(one["probability"])
    return table


def compare(name, ours, theirs, allowed):
    relative = (np.abs(ours - theirs).max(1) / np.abs(theirs).max(1)).max()
    same = (ours.argmax(1) == theirs.argmax(1)).sum()
    good = relative <= allowed and same == len(theirs)
    text = f"log-probabilities within {relative:.1e}, the same first class on {same} of {len(theirs)}"
    print(f"{'ok' if good else 'FAILED'}: {name}: {text}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("engine", "classify", "photographs"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.engine, args.classify = args.engine.resolve(), args.classify.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        sys.exit(0 if check(args, folder, *unpack(args.photographs, folder)) else 1)


def check(args, folder, paths, labels):
    classes, seen = int(labels.max()) + 1, pixels(paths)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    images = ((torch.from_numpy(seen).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    model = network(images, classes)
    weights, compiled = folder / "weights.pth", folder / "model.engine"
    torch.save(model.state_dict(), weights)
    run(args.engine, "export", "--checkpoint", weights, "--format", "cpu", "--output", compiled)
    with torch.no_grad():
        logits = torch.cat([model(part) for part in images.split(25)])
    theirs = torch.log_softmax(logits.double(), 1).numpy()

    answers = shown(args.classify, compiled, paths)
    equal = sum(np.array_equal(*pair) for pair in zip(answers, seen))
    good = equal == len(paths)
    print(f"{'ok' if good else 'FAILED'}: {equal} of {len(paths)} photographs give torchvision's pixels to the byte")
    apart = np.abs(shown(args.classify, compiled, sorted(folder.glob("val/*/*"))).astype(int) - seen)
    share = 100 * (apart == 0).mean()
    print(f"    as JPEGs: {share:.1f} % of the values equal, {apart.mean():.3f} levels apart on average, {apart.max()} at most")

    predicted = run(args.engine, "predict", "--checkpoint", weights, "--top", classes, "--json", *paths)
    good &= compare("engine predict", logarithms(predicted, classes), theirs, 1e-4)
    classified = run(args.classify, "--model", compiled, "--precision", "fp32", "--top", classes, "--json", *paths)
    good &= compare("classify, fp32", logarithms(classified, classes), theirs, 1e-3)

    return judge_score(args, weights, folder / "png", logits, labels) and good


def judge_score(args, weights, data, logits, labels):
    """`engine eval` beside torchvision's."""
    at = ["--resolution", "224", "--crop-ratio", "0.875"]
    score = run(args.engine, "eval", "--checkpoint", weights, "--data", data, *at, "--json")[0]
    loss = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    top1, top5 = (100 * (ranks < k).double().mean().item() for k in (1, 5))
    ours = [score[key] for key in ("val_loss", "val_top1", "val_top5")]
    same = abs(ours[0] - loss) <= 1e-4 * loss and ours[1:] == [top1, top5]
    text = "loss {:.5f}, top-1 {:.2f} %, top-5 {:.2f} %"
    print(f"{'ok' if same else 'FAILED'}: engine eval: {text.format(*ours)}; torchvision: {text.format(loss, top1, top5)}")
    return same


if __name__ == "__main__":
    main()
