"""Reads a model card as the Hugging Face Hub does, without asking it.

    check_card.py README.md...

The front matter must be YAML with the keys and types of the Hub's specification (huggingface/hub-docs, modelcard.md) and no
others; huggingface_hub must load the card, make evaluation results of its model-index, and give the same index back. Scores
are shares, and the ones in words. A card without scores must say that they are not known.
"""

import os
import re
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

STRINGS = {"license", "library_name", "pipeline_tag"}
LISTS = {"tags", "datasets", "metrics"}


def front_matter(path):
    with open(path, encoding="utf-8", newline="") as file:
        begin, front, body = re.split(r"^---\n", file.read(), maxsplit=2, flags=re.MULTILINE)
    assert begin == "", f"{path}: something stands before the front matter"
    return yaml.safe_load(front), body


def check_keys(data):
    for key, value in data.items():
        if key in STRINGS:
            assert isinstance(value, str) and value, f"{key} is {value!r}"
        elif key in LISTS:
            assert value and all(isinstance(item, str) and item for item in value), f"{key} is {value!r}"
        else:
            assert key == "model-index", f"{key} is no key of a model card"
    assert {"license", "pipeline_tag", "tags"} <= data.keys(), sorted(data)


def in_words(body):
    found = re.search(r"^top-1 ([0-9.]+) %, top-5 ([0-9.]+) % on ", body, flags=re.MULTILINE)
    return [float(percent) for percent in found.groups()] if found else None


def check(path):
    data, body = front_matter(path)
    check_keys(data)
    card = ModelCard.load(path)
    assert card.data.license == data["license"] and card.data.tags == data["tags"], card.data
    words = in_words(body)
    if "model-index" not in data:
        assert words is None and "Not known" in body, "scores in words and no model-index"
        return "no scores"
    name, results = model_index_to_eval_results(data["model-index"])
    assert eval_results_to_model_index(name, results) == data["model-index"], "the index does not come back"
    assert card.data.eval_results == results, card.data.eval_results
    assert {result.task_type for result in results} == {data["pipeline_tag"]} and all(
        result.metric_type in data["metrics"] for result in results
    ), results
    scores = [100 * result.metric_value for result in results]
    assert words and all(abs(a - b) < 0.0051 for a, b in zip(scores, words, strict=True)), (scores, words)
    return f"{name}, {', '.join(f'{result.metric_name} {result.metric_value:.4f}' for result in results)}"


for path in sys.argv[1:]:
    print(f"check_card: {path}: {check(path)}")
