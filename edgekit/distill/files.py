"""The files of a model folder: what a training leaves, and what goes along with it from the folder that it began from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from edgekit.outputs.rows import EMBEDDING, LOGITS
from edgekit.outputs.tokens import TOKENS
from edgekit.owners_tokenizer import quiet
from edgekit.schema import dump_json, read_json
from edgekit.typed_json import as_table

# Files that say how texts become ids and vectors become embeddings; they go along unchanged.
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
CHAT_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
EMBEDDING_FILES = (
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "*_*/config.json",
    "*_*/model.safetensors",
)
# What goes along with a model from the folder that it began from, by its output.
KEPT: dict[str, tuple[str, ...]] = {
    EMBEDDING.name: TOKENIZER_FILES + EMBEDDING_FILES,
    LOGITS.name: TOKENIZER_FILES,
    TOKENS.name: TOKENIZER_FILES + CHAT_FILES,
}


def save_model(module: nn.Module, out: Path) -> None:
    """Write a module's weights and configuration, as transformers does."""
    model: Any = module.model
    # Where a model was loaded from is this machine's business: without it equal models are equal bytes.
    model.config._name_or_path = ""
    with quiet():
        model.save_pretrained(out)


def copy_tokenizer(source: Path, out: Path) -> None:
    """Write a checkpoint's tokenizer as AutoTokenizer reads it, for a model of another family: its files then name its class.

    Raises what transformers raises for a tokenizer that it cannot read.
    """
    from transformers import AutoTokenizer

    with quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        tokenizer.save_pretrained(out)


def note_length(folder: Path, positions: int) -> None:
    """Have a checkpoint's own files say that a text has no more tokens than its model has positions."""
    for pattern, key in (("tokenizer_config.json", "model_max_length"), ("sentence_*_config.json", "max_seq_length")):
        for path in sorted(folder.glob(pattern)):
            table = as_table(read_json(path))
            if not (isinstance(said := table.get(key), int) and said <= positions):
                path.write_text(dump_json({**table, key: positions}), encoding="utf-8", newline="\n")


def copy_files(source: Path, out: Path, patterns: Sequence[str]) -> None:
    """Copy the files of a folder that the patterns name, subfolders included."""
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            copy = out / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
