"""What the page says of the model: nothing but what the model file and the training log say themselves."""

import base64
import re
from html import escape
from pathlib import Path

# The fields of a line that `engine train` writes after each epoch.
FIELDS = ("epoch", "train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5")
EPOCH = re.compile("^" + r"\s+".join(rf"{field}: (\S+)" for field in FIELDS))
RUN = re.compile(r"^## (.+)$")

ARCHITECTURES = {
    "resnet26": "ResNet-26",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnet152": "ResNet-152",
}
# Labels that a sentence names before it counts the rest.
NAMED = 12


def architecture(model):
    return ARCHITECTURES.get(model["arch"], model["arch"])


def headline(described):
    """One sentence under the title."""
    model, machine = described["model"], described["machine"]
    return (
        f"{architecture(model)} tells {len(model['labels']):,} classes apart, on this server's CPU "
        f"({machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, {machine['isa']})."
    )


def knows(described):
    """Sentences on what it can answer, and how often that is right."""
    labels = [label.partition(", ")[0] for label in described["model"]["labels"]]
    if len(labels) <= NAMED:
        named = ", ".join(labels)
    else:
        named = f"{', '.join(labels[: NAMED // 2])} and {len(labels) - NAMED // 2:,} more, listed under About"
    yield f"It knows {escape(named)}. Whatever a picture shows, it answers with one of these."
    yield f"How often it is right: {escape(accuracy(described['model']['source']))}"


def accuracy(source):
    scores = source.get("scores", {})
    if "val_top1" not in scores:
        return "the model file states no accuracy."
    top5 = f", top-5 {scores['val_top5']:.2f} %" if "val_top5" in scores else ""
    after = f" after epoch {source['epoch']}" if "epoch" in source else ""
    return f"top-1 {scores['val_top1']:.2f} %{top5} in its training's last validation{after}."


def model_table(described):
    model, machine = described["model"], described["machine"]
    source, int8 = model["source"], model.get("int8")
    side = model["resolution"]
    rows = [
        ("Architecture", architecture(model)),
        ("Classes", f"{len(model['labels']):,}"),
        (
            "Input",
            f"the middle {side} x {side} pixels, the shorter side resized to {round(side / model['crop_ratio'])} first",
        ),
        ("Accuracy", accuracy(source).removesuffix(".")),
        ("Steps of training", f"{source['steps']:,}" if "steps" in source else "not stated"),
        (
            "8-bit numbers",
            f"calibrated on {int8['images']:,} pictures ({int8['method']})" if int8 else "none in this file",
        ),
        ("Weights from", f"checkpoint with SHA-256 {source['sha256']}"),
        ("Written by", source["written_by"]),
        ("Run by", f"{machine['program']}, {machine['isa']}: {', '.join(machine['precisions'])}"),
    ]
    cells = "".join(f"<tr><th scope='row'>{what}</th><td>{escape(str(value))}</td></tr>" for what, value in rows)
    recipe = "\n".join(f"{key} = {value}" for key, value in source.get("recipe", {}).items())
    details = (
        f"<details><summary>Recipe: all {len(source['recipe'])} keys</summary><pre>{escape(recipe)}</pre></details>"
        if recipe
        else ""
    )
    labels = "".join(f"<li>{escape(label)}</li>" for label in model["labels"])
    return (
        f"<table class='facts-table'>{cells}</table>{details}"
        f"<details><summary>All {len(model['labels']):,} classes</summary>"
        f"<ol class='labels' start='0'>{labels}</ol></details>"
    )


def last_run(text):
    """Name and epochs of the last run of a logs.md that has lines: (name, [fields by name])."""
    runs, name = [], ""
    for line in text.splitlines():
        if heading := RUN.match(line.strip()):
            name = heading[1]
        elif found := EPOCH.match(line.strip()):
            if not runs or runs[-1][0] != name:
                runs.append((name, []))
            runs[-1][1].append(dict(zip(FIELDS, found.groups(), strict=True)))
    return runs[-1] if runs else None


def epoch_table(name, epochs):
    head = "".join(f"<th scope='col'>{field.replace('_', ' ')}</th>" for field in FIELDS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(epoch[field])}</td>" for field in FIELDS) + "</tr>" for epoch in epochs
    )
    return (
        f"<details><summary>{escape(name)}: {len(epochs)} epochs</summary><div class='scroll'><table class='epochs'>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def training(folder):
    """The log of the folder that a training run wrote: its curves and its epochs, or a sentence."""
    curve, log = Path(folder) / "curve.svg", Path(folder) / "logs.md"
    run = last_run(log.read_text(errors="replace")) if log.is_file() else None
    parts = []
    if curve.is_file():
        # In an <img>, no script of an SVG runs.
        uri = "data:image/svg+xml;base64," + base64.b64encode(curve.read_bytes()).decode()
        what = f" of {run[0]}" if run else ""
        parts.append(
            f"<img class='curve' src='{uri}' alt='Curves of loss and accuracy by epoch{escape(what, quote=True)}'>"
        )
    if run:
        parts.append(epoch_table(*run))
    return "".join(parts) or "<p>No training log came with it, so there are no curves to show.</p>"
