"""PyTorch's side of the data: pictures decoded once into memory, torchvision's transforms in worker processes.

Decoding 64 px JPEGs would cost each epoch as much as everything else that is done to them, so PyTorch is spared it; engine
decodes every time. A worker makes whole batches, of all epochs in one stream, so that nothing starts anew between epochs.
"""

import io
import tarfile

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

# Odd numbers that keep the streams of seeds, epochs and batches apart.
SEED, EPOCH, BATCH = 1_000_003, 10_007, 1


def read(path):
    """{"train" | "val": (pictures u8 [h, w, 3], labels)}; classes are the sorted names of the folders."""
    names, files = set(), {"train": [], "val": []}
    with tarfile.open(path) as tar:
        for member in tar:
            parts = member.name.split("/")
            if member.isfile() and len(parts) >= 3 and parts[-3] in files:
                names.add(parts[-2])
                files[parts[-3]].append((parts[-2], parts[-1], tar.extractfile(member).read()))
    number = {name: index for index, name in enumerate(sorted(names))}
    splits = {}
    for split, members in files.items():
        members.sort(key=lambda member: member[:2])
        pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for _, _, data in members]
        splits[split] = (pictures, torch.tensor([number[name] for name, _, _ in members]))
    return splits, len(number)


def to_batch(images):
    """PIL images of one size -> u8 [n, h, w, 3]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def evaluation(pictures, plan):
    """Resize of the shorter side, then the middle, as torchvision's presets; u8 [n, r, r, 3]."""
    side = round(plan.resolution / plan.crop_share)
    transform = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(plan.resolution)])
    return to_batch([transform(Image.fromarray(picture)) for picture in pictures])


def augmentation(plan):
    """torchvision's classification preset up to the tensor."""
    steps = [
        transforms.RandomResizedCrop(plan.resolution, scale=plan.crop_scale),
        transforms.RandomHorizontalFlip(plan.flip),
    ]
    if plan.randaugment:
        steps.append(transforms.RandAugment(2, 9, interpolation=transforms.InterpolationMode.BILINEAR))
    return transforms.Compose(steps)


class Batches(torch.utils.data.Dataset):
    """Item (epoch, number) is a training batch: images u8 [n, r, r, 3], labels [n]; a function of seed, epoch and number."""

    def __init__(self, pictures, labels, plan):
        self.pictures, self.labels, self.plan = pictures, labels, plan
        self.transform = augmentation(plan)
        self.order = (None, None)

    def __getitem__(self, key):
        epoch, number = key
        plan = self.plan
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(SEED * plan.seed + EPOCH * epoch)
            self.order = (epoch, torch.randperm(plan.images, generator=generator))
        torch.manual_seed(SEED * plan.seed + EPOCH * epoch + BATCH * (number + 1))
        chosen = self.order[1][number * plan.batch : (number + 1) * plan.batch]
        images = [self.transform(Image.fromarray(self.pictures[index])) for index in chosen.tolist()]
        return to_batch(images), self.labels[chosen]


def loader(batches, plan, first_epoch, workers, pinned):
    """All batches from an epoch to the end of the training, in order."""
    keys = [(epoch, number) for epoch in range(first_epoch, plan.epochs) for number in range(plan.steps)]
    options = {"prefetch_factor": 4} if workers else {}
    return torch.utils.data.DataLoader(
        batches, sampler=keys, batch_size=None, num_workers=workers, pin_memory=pinned, **options
    )
