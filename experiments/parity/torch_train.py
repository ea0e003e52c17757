"""One training by PyTorch and torchvision, of the recipe that engine is given.

    python torch_train.py --recipe plain.toml [--set key=value ...] --data TAR --output DIR --device cuda --amp fp16
    python torch_train.py --recipe plain.toml --data TAR --write-initial FILE

channels_last, mixed precision, the fused optimiser, cudnn.benchmark, and TF32 where f32 is left on a card. Prints a line an
epoch, as engine does, and writes DIR/metrics.jsonl with the same keys. On SIGTERM and Ctrl-C it ends with its epoch, writes
DIR/state.pt and exits with 75; the same command goes on.
"""

import argparse
import json
import pathlib
import signal
import sys
import time
from dataclasses import dataclass

import torch
import torchvision
from torch.optim import lr_scheduler, swa_utils
from torchvision.transforms import v2

import recipe as recipes
import torch_data

sys.path.insert(0, str(recipes.ROOT / "bench" / "peers"))
import peer

SAVE_EVERY = 20  # epochs, against a kill


@dataclass
class Plan:
    """What the recipe asks for."""

    seed: int
    arch: str
    epochs: int
    resolution: int
    batch: int
    limit: int
    zero_gamma: bool
    crop_scale: tuple
    flip: float
    randaugment: bool
    mixup: float
    cutmix: float
    smoothing: float
    rate: float
    momentum: float
    weight_decay: float
    decay: str
    warmup: int
    warmup_start: float
    ema_decay: float
    ema_every: int
    crop_share: float
    # Of the data.
    images: int = 0
    classes: int = 0
    steps: int = 0


def read_plan(tables):
    """Every key of the recipe, or an error."""
    keys = recipes.Reader(tables)
    for ignored in ("name", "checkpoint.every_epochs"):
        keys.take(ignored)
    for key, value in [("optim.rule", "sgd"), ("schedule.kind", "cosine")]:
        keys.insist(key, value)
    arch = keys.take("model.arch")
    if arch not in ("resnet50", "resnet-tiny"):
        raise SystemExit(f"model.arch is {arch!r}; torch_train.py knows resnet50 and resnet-tiny")
    randaugment = keys.take("augment.auto", "none")
    if randaugment not in ("none", "randaugment-n2-m9"):
        raise SystemExit(f"augment.auto is {randaugment!r}; torch_train.py knows none and randaugment-n2-m9")
    keys.insist("mix.form", "torchvision")
    keys.insist("ema.form", "torchvision")
    batch = keys.take("data.batch")
    plan = Plan(
        seed=keys.take("seed", 0),
        arch=arch,
        epochs=keys.take("epochs"),
        resolution=keys.take("data.resolution"),
        batch=batch,
        limit=keys.take("data.limit", 0),
        zero_gamma=keys.take("model.zero_gamma"),
        crop_scale=tuple(keys.take("augment.crop_scale")),
        flip=keys.take("augment.flip"),
        randaugment=randaugment != "none",
        mixup=keys.take("mix.mixup", 0.0),
        cutmix=keys.take("mix.cutmix", 0.0),
        smoothing=keys.take("loss.label_smoothing"),
        rate=keys.take("optim.lr") * batch / keys.take("optim.lr_per"),
        momentum=keys.take("optim.momentum"),
        weight_decay=keys.take("optim.weight_decay"),
        decay=keys.take("optim.decay"),
        warmup=keys.take("schedule.warmup_epochs"),
        warmup_start=keys.take("schedule.warmup_start"),
        ema_decay=keys.take("ema.decay", 0.0),
        ema_every=keys.take("ema.every", 1),
        crop_share=keys.take("eval.crop_ratio"),
    )
    keys.finish()
    return plan


def network(plan):
    """torchvision's, with its own first weights; the small one, which it does not have, is put together as it would be."""
    torch.manual_seed(plan.seed)
    if plan.arch == "resnet50":
        return torchvision.models.resnet50(weights=None, num_classes=plan.classes, zero_init_residual=plan.zero_gamma)
    model = peer.network(plan.arch, plan.classes)
    for module in model.modules():
        if plan.zero_gamma and isinstance(module, peer.Bottleneck):
            torch.nn.init.zeros_(module.bn3.weight)
    return model


def schedule(rule, plan):
    """A step at a time, by PyTorch's own schedulers."""
    warm, total = plan.warmup * plan.steps, plan.epochs * plan.steps
    up = lr_scheduler.LinearLR(rule, start_factor=plan.warmup_start, total_iters=warm)
    down = lr_scheduler.CosineAnnealingLR(rule, T_max=total - warm)
    return lr_scheduler.SequentialLR(rule, [up, down], milestones=[warm])


def averages(model, plan):
    """torchvision's train.py: 1 - decay is multiplied by batch * every / epochs."""
    if plan.ema_decay == 0:
        return None
    alpha = min(1.0, (1.0 - plan.ema_decay) * plan.batch * plan.ema_every / plan.epochs)
    return swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(1.0 - alpha), use_buffers=True)


def mixing(plan):
    """torchvision's: one of the two for each batch, with equal chance; none where both are off."""
    forms = [(v2.MixUp, plan.mixup), (v2.CutMix, plan.cutmix)]
    forms = [form(alpha=alpha, num_classes=plan.classes) for form, alpha in forms if alpha > 0]
    return v2.RandomChoice(forms) if forms else lambda images, labels: (images, labels)


class Training:
    def __init__(self, args, plan, validation):
        self.args, self.plan, self.validation = args, plan, validation
        self.model = network(plan).to(args.device, memory_format=torch.channels_last)
        self.run = torch.compile(self.model, mode=args.compile) if args.compile else self.model
        options = dict(nesterov=False, weight_decay=plan.weight_decay, decay=plan.decay, fused=True)
        self.rule = peer.sgd(self.model, plan.momentum, **options)
        for group in self.rule.param_groups:
            group["lr"] = plan.rate
        self.schedule = schedule(self.rule, plan)
        self.scaler = torch.amp.GradScaler(args.device, enabled=args.amp == "fp16")
        self.averages = averages(self.model, plan)
        self.mix = mixing(plan)
        self.epoch = 0

    def state(self):
        parts = dict(model=self.model, rule=self.rule, schedule=self.schedule, scaler=self.scaler)
        return {**parts, **({"averages": self.averages} if self.averages else {})}

    def save(self):
        path = self.args.output / "state.pt"
        torch.save({"epoch": self.epoch, **{k: v.state_dict() for k, v in self.state().items()}}, f"{path}.part")
        pathlib.Path(f"{path}.part").replace(path)

    def restore(self):
        path = self.args.output / "state.pt"
        if path.exists():
            saved = torch.load(path, map_location=self.args.device, weights_only=True)
            for key, part in self.state().items():
                part.load_state_dict(saved[key])
            self.epoch = saved["epoch"]

    def step(self, number, images, labels):
        """Gives the loss and the rate."""
        self.rule.zero_grad(set_to_none=True)
        images, labels = images.to(self.args.device, non_blocking=True), labels.to(self.args.device, non_blocking=True)
        images, targets = self.mix(peer.normalise(images, self.args.device), labels)
        images = images.contiguous(memory_format=torch.channels_last)
        with peer.autocast(self.args.device, self.args.amp):
            logits = self.run(images)
            loss = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=self.plan.smoothing)
        rate = self.schedule.get_last_lr()[0]
        self.scaler.scale(loss).backward()
        self.scaler.step(self.rule)
        self.scaler.update()
        self.schedule.step()
        if self.averages and number % self.plan.ema_every == 0:
            self.averages.update_parameters(self.model)
            if self.epoch < self.plan.warmup:
                self.averages.n_averaged.fill_(0)
        return loss.detach(), rate

    @torch.no_grad()
    def validate(self):
        """Mean loss and top-1 in percent, of the averages where there are some."""
        model = self.averages.module if self.averages else self.model
        model.eval()
        loss, hits, (images, labels) = 0.0, 0, self.validation
        for start in range(0, len(labels), 500):
            part, truth = images[start : start + 500], labels[start : start + 500]
            with peer.autocast(self.args.device, self.args.amp):
                logits = model(peer.normalise(part, self.args.device)).float()
            loss += torch.nn.functional.cross_entropy(logits, truth, reduction="sum").item()
            hits += (logits.argmax(1) == truth).sum().item()
        model.train()
        return loss / len(labels), 100 * hits / len(labels)

    def run_epoch(self, stream, log):
        # What mixing draws is the epoch's own, whenever the training was cut.
        torch.manual_seed(torch_data.SEED * self.plan.seed + torch_data.EPOCH * self.epoch)
        began, waited, done = time.perf_counter(), 0.0, []
        for number in range(self.plan.steps):
            asked = time.perf_counter()
            images, labels = next(stream)
            waited += time.perf_counter() - asked
            done.append(self.step(number, images, labels))
        losses = torch.stack([loss for loss, _ in done]).tolist()
        seconds = time.perf_counter() - began
        loss, top1 = self.validate()
        first = self.epoch * self.plan.steps + 1
        self.epoch += 1
        clock = {"images_per_second": self.plan.steps * self.plan.batch / seconds, "wait": waited / seconds}
        for index, (value, (_, rate)) in enumerate(zip(losses, done)):
            line = dict(kind="step", epoch=self.epoch, step=first + index, loss=value, lr=rate, clock=clock)
            log.write(json.dumps(line) + "\n")
        log.flush()
        mean = sum(losses) / len(losses)
        scores = f"train_loss: {mean:.3f}  val_loss: {loss:.3f}  val_top1: {top1:.2f}%"
        print(f"epoch: {self.epoch}  {scores}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=pathlib.Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--write-initial", type=pathlib.Path, help="write torchvision's first weights here, and end")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--amp", default="fp16", choices=["fp16", "bf16", "fp32"])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--compile", choices=["default", "reduce-overhead"], help="torch.compile with this mode")
    args = parser.parse_args()
    if not (args.output or args.write_initial):
        parser.error("--output or --write-initial is wanted")
    return args


def prepare(args):
    """The plan with what the data say, the training batches, and the validation set on the device."""
    plan = read_plan(recipes.load(args.recipe, args.set))
    splits, plan.classes = torch_data.read(args.data)
    pictures, labels = splits["train"]
    if plan.limit:
        chosen = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[: plan.limit]
        pictures, labels = [pictures[index] for index in chosen], labels[chosen]
    plan.images = len(pictures)
    plan.steps = plan.images // plan.batch
    if plan.steps == 0:
        raise SystemExit(f"{plan.images} training images for a batch of {plan.batch}")
    val, truth = splits["val"]
    validation = torch_data.evaluation(val, plan).to(args.device), truth.to(args.device)
    return plan, torch_data.Batches(pictures, labels, plan), validation


def main():
    args = arguments()
    if args.device == "cuda":
        torch.backends.cudnn.benchmark = True
        peer.set_tf32(True)
    plan, batches, validation = prepare(args)
    if args.write_initial:
        state = {k: v for k, v in network(plan).state_dict().items() if not k.endswith("num_batches_tracked")}
        peer.write_safetensors(args.write_initial, state)
        return
    stop = []
    args.output.mkdir(parents=True, exist_ok=True)
    training = Training(args, plan, validation)
    training.restore()
    # Ctrl-C is for this process alone: workers that ended with it would take their batches along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = iter(torch_data.loader(batches, plan, training.epoch, args.workers, args.device == "cuda"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(True))
    with open(args.output / "metrics.jsonl", "a") as log:
        while training.epoch < plan.epochs:
            training.run_epoch(stream, log)
            if training.epoch < plan.epochs and (stop or training.epoch % SAVE_EVERY == 0):
                training.save()
            if stop and training.epoch < plan.epochs:
                sys.exit(75)


if __name__ == "__main__":
    main()
