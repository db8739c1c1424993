"""A small classifier that int8 breaks: its values have a channel a thousand times larger than the others.

The weight behind that channel is as much smaller, so that the float model answers as before; one step of 8 bits for all
channels is then too coarse for the others. What reads that channel, kept float, mends it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import LABELS, PATTERNS, SUBJECTS, make_checkpoint

LARGER = 1000.0
RECIPE = """\
task = "text-classification"

[teacher]
source = "teacher"

[data]
path = "data"
max_length = 32
near_duplicates = "drop"
recover = 0.5

[accuracy]
student_margin = 0.05
teacher_margin = 0.05
"""
TARGET = """\
title = "A test machine"

[hardware]
arch = "x86_64"
cpu = "any"
cores = 2
features = []
memory_mb = 4096
sources = ["made up for a test"]

[export.text-classification]
format = "onnx"
scheme = "int8-dynamic"
float_layers = 0
smoothing = false

[runtime.onnxruntime]
threads = 1
"""


def make_fragile(folder: Path, rows: Mapping[str, int], *, blocks: int = 2) -> Path:
    """Write teacher/, data/, target.toml and recipe.toml into a folder; the recipe's path.

    rows: of each split. blocks: in how many of the two the values are spoilt. Labels are the float model's own answers.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    make_checkpoint(folder / "teacher", labels=LABELS)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "teacher").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
        for layer in model.bert.encoder.layer[:blocks]:
            layer.attention.self.value.weight[3] *= LARGER
            layer.attention.self.value.bias[3] *= LARGER
            layer.attention.output.dense.weight[:, 3] /= LARGER
        texts = _texts(rows)
        model.classifier.bias -= _logits(model, folder, texts["train"]).mean(dim=0)
    model.save_pretrained(folder / "teacher")
    (folder / "data").mkdir()
    for split, own in texts.items():
        best = _logits(model, folder, own).topk(2)
        # Those that the model is surest of: the others change their answer by any rounding.
        surest = (best.values[:, 1] - best.values[:, 0]).argsort()[: rows[split]]
        lines = [json.dumps({"text": own[index], "label": LABELS[best.indices[index, 0]]}) for index in surest]
        (folder / "data" / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "target.toml").write_text(TARGET, encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.toml"


def _texts(rows: Mapping[str, int]) -> dict[str, list[str]]:
    """Twice as many as asked for, of six words of the vocabulary each; no two have the same words."""
    words = sorted({word for phrase in (*PATTERNS.values(), *SUBJECTS) for word in phrase.split()} - {"{}"})
    rng, seen = random.Random(0), set[tuple[str, ...]]()
    found: dict[str, list[str]] = {}
    for split, count in rows.items():
        found[split] = []
        while len(found[split]) < 2 * count:
            chosen = rng.sample(words, 6)
            if (key := tuple(sorted(chosen))) not in seen:
                seen.add(key)
                found[split].append(" ".join(chosen))
    return found


def _logits(model: Any, folder: Path, texts: list[str]) -> Any:
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "teacher" / "tokenizer.json"))
    ids = torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])
    with torch.no_grad():
        return model(input_ids=ids).logits
