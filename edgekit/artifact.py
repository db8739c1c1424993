"""The artifact: what `export` makes, and all that verify, package and the bundle read of it.

It reads and writes its own JSON, the `facts` of the step's export.json, which has the keys of an artifact's own format and task
alone. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekit.evidence import LayerError
from edgekit.typed_json import IN_ITS_TABLE, MAY_BE_ABSENT, read_table, to_table

if TYPE_CHECKING:
    from edgekit.workspace import Product


@dataclass(frozen=True, kw_only=True)
class OnnxCache:
    """The key/value cache of an ONNX decoder, and the lengths in tokens that it is made for.

    windows: by layer, how many tokens it attends to at most (None: all). kv_bytes_per_token: of all layers.
    rope_switch: the length up to which longrope uses its short factors, None for every other rotary embedding.
    """

    context: int
    layers: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    kv_bytes_per_token: int
    rope_switch: int | None


@dataclass(frozen=True, kw_only=True)
class OnnxParts:
    """What only an .onnx file has: versions of ONNX, and the operators that it calls.

    Of what edgekit wrote: calibrate_score is how near its answers are to the float graph's on calibrate prompts (`score`, the
    float graph's own `float`, and how many prompts); layers, of an encoder, each Linear's error; generation, of a decoder.
    """

    opset: int
    ir_version: int
    operators: tuple[str, ...]
    calibrate_score: Mapping[str, float] | None = field(default=None, metadata=MAY_BE_ABSENT)
    layers: tuple[LayerError, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    generation: OnnxCache | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class GgufParts:
    """What only a .gguf file has. vocabulary: rows of its embedding, None where it has none; bits_per_weight: the mean of all
    tensors; cache_bytes_per_token: of keys and values in f16, None of what is no decoder or does not tell its heads."""

    architecture: str
    vocabulary: int | None
    parameters: int
    bits_per_weight: float
    cache_bytes_per_token: int | None


@dataclass(frozen=True, kw_only=True)
class ChatParity:
    """How a file's chat templates were compared with the checkpoint's: their names, how many conversations both rendered and
    which both refuse, what differs by nature, and the engine that ran the template (None: there is none)."""

    templates: tuple[str, ...]
    rendered: int
    refused: tuple[str, ...]
    limits: tuple[str, ...]
    engine: str | None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How the tokenizer in a file was compared with the checkpoint's: how many texts, how many of them the user's, of which
    kinds; what differs by nature; the ids that end a generation, by who says so."""

    texts: int
    user_texts: int
    kinds: tuple[str, ...]
    limits: tuple[str, ...]
    stops: Mapping[str, tuple[int, ...]]
    chat: ChatParity | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class Running:
    """How many sequences the runtime and the float model both ran, how far the logits are apart relative to their own spread,
    and how far they may be; both None where there was no sequence of two tokens."""

    sequences: int
    logits: float | None
    bound: float | None


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model's file in a format, whoever wrote it.

    name: of the main file; files: of this and those of its weights, over which sha256 goes. scheme: "unknown" where another tool
    wrote it. runtime_options: what it asks of its runtime. quantized: what was and what was not, as the format counts it.
    choices: what was tried for the scheme, and taken. bits: of a weight in the type that most have, and
    bytes_per_token: what decoding one token reads, of a decoder.

    Of what edgekit wrote: bytes_float, the size of its float weights; notes for the user; running, where a runtime's answers were
    compared. Of what carries its tokenizer: parity, or misread, the first difference from the checkpoint's.
    """

    format: str
    scheme: str
    name: str = field(metadata={"key": "file"})
    files: tuple[str, ...]
    bytes: int
    sha256: str
    minimum_runtime: str
    runtime_options: Mapping[str, object]
    quantized: Mapping[str, object]
    choices: Mapping[str, object]
    onnx: OnnxParts | None = field(default=None, metadata=IN_ITS_TABLE)
    gguf: GgufParts | None = field(default=None, metadata=IN_ITS_TABLE)
    bits: float | None = field(default=None, metadata=MAY_BE_ABSENT)
    bytes_per_token: int | None = field(default=None, metadata=MAY_BE_ABSENT)
    bytes_float: int | None = field(default=None, metadata=MAY_BE_ABSENT)
    notes: tuple[str, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    running: Running | None = field(default=None, metadata=MAY_BE_ABSENT)
    parity: Parity | None = field(default=None, metadata=MAY_BE_ABSENT)
    misread: str | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class Contentless:
    """How many texts that say nothing a classifier was asked, and those that it gave a class, with it."""

    asked: int
    accepted: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model's file with what its task needs to ask it and to read its answers.

    output: the task's OUTPUT. classes: a classifier's labels, in the order of its scores. settings: the task's, fitted on the
    calibrate prompts. contentless: of a classifier that rejects texts.
    """

    file: ModelFile = field(metadata=IN_ITS_TABLE)
    task: str
    output: str
    classes: tuple[str, ...]
    out_of_scope: str | None
    settings: Mapping[str, object]
    max_length: int
    pad_id: int
    contentless: Contentless | None = field(default=None, metadata=MAY_BE_ABSENT)

    def facts(self) -> dict[str, object]:
        """What the step's manifest says of it."""
        return to_table(self)


def read_artifact(product: Product) -> Artifact:
    """The artifact of a finished export step; EdgekitError where its manifest says something else of it."""
    # Which texts it has read is the step's (`pipeline.origin`), and no part of it.
    facts = {key: value for key, value in product.facts.items() if key != "read"}
    return read_table(Artifact, facts, f"{product.folder / 'export.json'}: facts")
