"""The keys of a GGUF file that are not the tokenizer's: what the model is, how it is quantized, what it was made from.

Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing of the moment enters: equal inputs, equal keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit import __version__
from edgekit.embedding_files import read_embedding
from edgekit.errors import EdgekitError
from edgekit.formats.gguf.file import Value
from edgekit.formats.gguf.schemes import SCHEMES
from edgekit.formats.gguf.tensors import Tensor, plan, read_config
from edgekit.model import Model
from edgekit.model_card import read_card, texts

# ggml.h, GGML_QNT_VERSION.
_QUANTIZATION_VERSION = 2
# llama.h, enum llama_pooling_type, by the modes of sentence-transformers' Pooling layer.
_POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3}


@dataclass(frozen=True, kw_only=True)
class ImatrixOrigin:
    """The importance matrix that a file was quantized with: its file, its prompts, how many tensors and chunks it has."""

    file: str
    dataset: str
    entries: int
    chunks: int


def describe_model(
    model: Model, *, tensors: Sequence[Tensor] | None = None, name: str | None = None
) -> dict[str, Value]:
    """general.* and the architecture's keys of a checkpoint.

    tensors: what `plan` gives, where it is known already. name: what programs call the model, and what llama.cpp takes hints from
    (see `tokenizer.general_name`). Licence, base model, languages and tags are those of the folder's model card (README.md).
    Raises EdgekitError for what `plan` refuses.
    """
    family, config = read_config(model)
    described: dict[str, Value] = {
        "general.architecture": family.architecture,
        "general.type": "model",
        "general.size_label": size_label(
            sum(math.prod(tensor.shape) for tensor in (plan(model) if tensors is None else tensors))
        ),
        **_card(model.folder),
    }
    if name:
        described["general.name"] = name
    keys = family.keys(config)
    for key, value in keys.items():
        described[key if key.startswith("tokenizer.") else f"{family.architecture}.{key}"] = value
    if "attention.causal" in keys:
        described[f"{family.architecture}.pooling_type"] = _pooling(model.folder)
    return described


def describe_quantization(scheme: str, *, imatrix: ImatrixOrigin | None = None) -> dict[str, Value]:
    """What a file is mostly quantized to (of a mixture: see `types.main_file_type`), and the importance matrix that was used.

    Keys are those of llama.cpp's quantizer; a file or a data set without a name is left out.
    """
    keys: dict[str, Value] = {
        "general.file_type": SCHEMES[scheme].file_type,
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    if imatrix is not None:
        keys |= {"quantize.imatrix.file": imatrix.file} if imatrix.file else {}
        keys |= {"quantize.imatrix.dataset": imatrix.dataset} if imatrix.dataset else {}
        keys["quantize.imatrix.entries_count"] = np.int32(imatrix.entries)
        keys["quantize.imatrix.chunks_count"] = np.int32(imatrix.chunks)
    return keys


def describe_origin(fingerprints: Mapping[str, str], *, scheme: str) -> dict[str, Value]:
    """edgekit.*: version, scheme, and what the file was made from, as {what: sha256}."""
    origin: dict[str, Value] = {f"edgekit.{key}.sha256": digest for key, digest in fingerprints.items()}
    return origin | {"edgekit.version": __version__, "edgekit.scheme": scheme}


def note_context(model: Model) -> str | None:
    """What to tell a user where the file promises shorter contexts than the checkpoint: llama.cpp's graph has no window."""
    family, config = read_config(model)
    promised, own = family.keys(config)["context_length"], config.number("max_position_embeddings")
    if not family.head or promised == own:
        return None
    return (
        f"llama.cpp has no sliding window for this family: up to {promised} tokens it computes what the model computes, so the"
        f" file's context is {promised} tokens, not {own}"
    )


def size_label(parameters: int) -> str:
    """How large a model is, as in its name: 135M, 1.1B."""
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            share = parameters / unit
            digits = max(1 - math.floor(math.log10(share)), 0)
            return f"{share:.{digits}f}".removesuffix(".0") + letter
    return str(parameters)


def _pooling(folder: Path) -> int:
    """How a text's vectors become one: as the task makes them in float."""
    embedding = read_embedding(folder)
    others = [step.kind for step in embedding.steps if step.kind != "Normalize"]
    lacks = [f"module {kind} behind the pooling" for kind in others]
    lacks += [f"pooling {mode} (only {', '.join(_POOLINGS)})" for mode in embedding.modes if mode not in _POOLINGS]
    lacks += ["pooling that joins several"] if len(embedding.modes) > 1 else []
    lacks += ["pooling without the prompt's tokens"] if embedding.prompt and not embedding.include_prompt else []
    lacks += ["truncate_dim"] if embedding.truncate_dim is not None else []
    if lacks:
        raise EdgekitError(f'{folder}: llama.cpp has no {lacks[0]}; use format = "onnx"')
    return _POOLINGS[embedding.modes[0]]


def _card(folder: Path) -> dict[str, Value]:
    """The keys of GGUF for what the head of a model card says."""
    card = read_card(folder).metadata
    keys: dict[str, Value] = {}
    for key, name in (("license", "license"), ("license_name", "license.name"), ("license_link", "license.link")):
        if isinstance(value := card.get(key), str):
            keys[f"general.{name}"] = value
    for key, name in (("language", "languages"), ("tags", "tags")):
        if several := texts(card.get(key)):
            keys[f"general.{name}"] = several
    for index, source in enumerate(bases := texts(card.get("base_model"))):
        owner, _, model = source.rpartition("/")
        keys[f"general.base_model.{index}.name"] = model
        keys |= {f"general.base_model.{index}.organization": owner} if owner else {}
    return keys | ({"general.base_model.count": len(bases)} if bases else {})
