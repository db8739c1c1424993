"""A whole small project made from nothing in a second: an encoder, its tokenizer, data, a recipe and two targets.

Benchmarks and tests that need many builds use it. The texts are separable by their words, so a model of 64 channels learns
them and every verdict is possible; they are made, not written, because nobody judges a model by them.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

LABELS = ("lights", "music", "timer", "weather")
WORDS_PER_LABEL = 10
FILLERS = 100
RECIPE = """\
task = "text-classification"
seed = 3

[teacher]
source = "base"

[teacher.finetune]
epochs = 6
learning_rate = 1e-3

[student]
layers = 2

[data]
path = "data"
out_of_scope = "oos"
max_length = 24

[distill]
epochs = 6
learning_rate = 1e-3
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
scheme = "{scheme}"

[runtime.onnxruntime]
threads = 1
"""


def make_project(folder: Path, *, train: int = 400, calibrate: int = 120, verify: int = 400, seed: int = 0) -> Path:
    """Write base/, data/, targets/first.toml, targets/second.toml and recipe.toml into a folder; returns the recipe's path."""
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(len(LABELS) * WORDS_PER_LABEL + FILLERS)]
    make_base(folder / "base", words)
    (folder / "data").mkdir(parents=True)
    seen: set[frozenset[str]] = set()
    for split, rows in {"train": train, "calibrate": calibrate, "verify": verify}.items():
        lines = [make_row(rng, words, seen) for _ in range(rows)]
        (folder / "data" / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "targets").mkdir()
    for name, scheme in {"first": "auto", "second": "auto", "third": "int8-dynamic"}.items():
        (folder / "targets" / f"{name}.toml").write_text(TARGET.format(scheme=scheme))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"


def make_row(rng: random.Random, words: list[str], seen: set[frozenset[str]]) -> dict[str, str]:
    """A text of three to five telling words among fillers, with its label; an out-of-scope text has fillers only."""
    fillers = words[len(LABELS) * WORDS_PER_LABEL :]
    while True:
        place = rng.randrange(len(LABELS) + 1)
        telling = words[place * WORDS_PER_LABEL : (place + 1) * WORDS_PER_LABEL] if place < len(LABELS) else fillers
        text = rng.sample(telling, rng.randint(3, 5)) + rng.sample(fillers, rng.randint(1, 4))
        rng.shuffle(text)
        # Texts that differ by one word are near duplicates.
        alike = {frozenset(text), *(frozenset(text) - {word} for word in text)}
        if not alike & seen:
            seen |= alike
            return {"text": " ".join(text), "label": LABELS[place] if place < len(LABELS) else "oos"}


def make_base(folder: Path, words: list[str]) -> None:
    """A BERT of 3 layers and 64 channels with random weights, and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: place for place, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
