"""Which ggml type each tensor of a scheme gets: the choice of llama.cpp's quantizer, as a table.

The rules are those of src/llama-quant.cpp (llama_tensor_get_type and tensor_type_fallback, llama.cpp as vendored by
llama-cpp-python 0.3.36), without what edgekit has no family for: mixtures of experts, Falcon, recurrent models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.ggml import TYPES
from edgekit.schema import pick

# Types whose quantizer weighs errors by the importance of the input channel; the others round the same with and without.
WEIGHTED = frozenset({"q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"})
# Where a row is no whole number of blocks: the type that llama.cpp takes instead, and f16 where that does not fit either.
FALLBACKS = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"}
# `general.file_type` of a file that is mostly of a type (llama_ftype in llama.h, chosen as llama.cpp's loader guesses).
FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 8,
    "q5_1": 9,
    "q8_0": 7,
    "q4_k": 15,
    "q5_k": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
}
TOKEN_EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
# Never quantized, whatever the scheme, though they have two dimensions.
_KEPT = re.compile(r"_norm\.weight$|(^|\.)position_embd\b|^token_types\.weight$")
_EXPERTS = re.compile(r"_exps\.|ffn_gate_inp\.")
_VALUES = re.compile(r"attn_(v|qkv|kv_b)\.weight$")
_DOWN = re.compile(r"ffn_down")
# The families of 70 billion parameters, which llama.cpp recognizes by their depth.
_LARGE = {"llama": 80, "qwen2": 80}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A tensor by its GGUF name; `columns` is the length of a row, `rows` how many there are (1: a vector, never quantized)."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the choice depends on besides the tensors: `architecture` is the GGUF's, heads are those of the first layer."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The type of every tensor by its GGUF name, and what a person should know of the choice.

    `fallbacks` has one sentence on the tensors whose rows do not fit the type that the scheme wants. `uncovered` are the
    tensors of layers whose type weighs errors by importance and that the importance matrix does not cover; of embedding,
    head and classifier nothing is asked, because llama-imatrix does not measure them.
    """

    types: Mapping[str, str]
    file_type: int
    fallbacks: tuple[str, ...] = ()
    uncovered: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Position:
    """Where a tensor stands among those of its role: its index of `count`."""

    index: int
    count: int
    shared_heads: int  # query heads for each key-value head
    imatrix: bool

    def first(self, share: int) -> bool:
        return self.index < self.count // share

    def more_bits(self) -> bool:
        """The first and the last eighth of the layers, and every third between them."""
        eighth = self.count // 8
        return self.index < eighth or self.index >= 7 * self.count // 8 or (self.index - eighth) % 3 == 2


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """The type that a tensor gets where `when` says so."""

    type: str
    when: Callable[[_Position], bool]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """`type` is that of most tensors; attention values and ffn_down have rules of their own."""

    file_type: int
    type: str
    values: _Rule | None = None
    down: _Rule | None = None


_MORE_Q6 = _Rule(type="q6_k", when=_Position.more_bits)
_GROUPED_Q5 = _Rule(type="q5_k", when=lambda position: position.shared_heads >= 4)
_EARLY_Q5_UNWEIGHTED = _Rule(type="q5_k", when=lambda position: position.first(8) and not position.imatrix)

SCHEMES: dict[str, Scheme] = {
    "f32": Scheme(file_type=0, type="f32"),
    "f16": Scheme(file_type=1, type="f16"),
    "bf16": Scheme(file_type=32, type="bf16"),
    "q8_0": Scheme(file_type=7, type="q8_0"),
    "q6_k": Scheme(file_type=18, type="q6_k"),
    "q5_k_m": Scheme(file_type=17, type="q5_k", values=_MORE_Q6, down=_MORE_Q6),
    "q4_k_m": Scheme(file_type=15, type="q4_k", values=_MORE_Q6, down=_MORE_Q6),
    "q4_k_s": Scheme(
        file_type=14,
        type="q4_k",
        values=_Rule(type="q5_k", when=lambda position: position.index < 4),
        down=_Rule(type="q5_k", when=lambda position: position.first(8)),
    ),
    "iq4_nl": Scheme(file_type=25, type="iq4_nl", values=_GROUPED_Q5, down=_EARLY_Q5_UNWEIGHTED),
    "iq4_xs": Scheme(file_type=30, type="iq4_xs", values=_GROUPED_Q5, down=_EARLY_Q5_UNWEIGHTED),
    "q4_1": Scheme(file_type=3, type="q4_1"),
    "q4_0": Scheme(
        file_type=2, type="q4_0", down=_Rule(type="q4_1", when=lambda position: position.imatrix and position.first(8))
    ),
}


def choose_types(tensors: Sequence[Shape], scheme: str, *, facts: ModelFacts, imatrix: Collection[str] = ()) -> Chosen:
    """The type of every tensor, equal to that of llama.cpp's quantizer given the same model and importance matrix.

    `imatrix` names the tensors that an importance matrix covers (none: there is no matrix). Raises EdgekitError for a scheme
    that is not in SCHEMES and for mixtures of experts.
    """
    wanted = pick(SCHEMES, scheme, "scheme")
    order = sorted(tensors, key=_loading_order)
    expert = next((tensor.name for tensor in order if _EXPERTS.search(tensor.name)), None)
    if expert is not None:
        raise EdgekitError(f"{expert}: edgekit has no type rules for mixtures of experts; choose a dense model")
    tied = not any(tensor.name == OUTPUT for tensor in order)
    values = [tensor.name for tensor in order if _VALUES.search(tensor.name)]
    downs = [tensor.name for tensor in order if quantizable(tensor) and _DOWN.search(tensor.name)]
    shared = facts.heads // facts.kv_heads if facts.kv_heads else 0

    types: dict[str, str] = {}
    fallbacks: list[tuple[str, str, int]] = []
    for tensor in order:
        if not quantizable(tensor):
            types[tensor.name] = "f32"
            continue
        kind = wanted.type
        if TYPES[kind].block > 1:
            position = _Position(index=0, count=0, shared_heads=shared, imatrix=bool(imatrix))
            if tensor.name == OUTPUT or (tied and tensor.name == TOKEN_EMBEDDING):
                kind = _output_type(tensor, kind)
            elif tensor.name in values:
                kind = _ruled(wanted.values, kind, position, values.index(tensor.name), len(values))
                if kind == "q4_k" and facts.layers == _LARGE.get(facts.architecture) and facts.heads != facts.kv_heads:
                    kind = "q5_k"
            elif tensor.name in downs:
                kind = _ruled(wanted.down, kind, position, downs.index(tensor.name), facts.layers)
        types[tensor.name] = fitting = fit(kind, tensor.columns)
        if fitting != kind:
            fallbacks.append((kind, fitting, tensor.columns))
    return Chosen(
        types=types,
        file_type=wanted.file_type,
        fallbacks=_fallback_notes(fallbacks, order, types, scheme),
        uncovered=uncovered(types, imatrix),
    )


def _fallback_notes(
    fallbacks: Sequence[tuple[str, str, int]], tensors: Sequence[Shape], types: Mapping[str, str], scheme: str
) -> tuple[str, ...]:
    """One sentence on the (wanted type, taken type, columns) of all that does not fit; what it comes to in bits a weight."""
    if not fallbacks:
        return ()
    kinds = [
        f"{kind} -> {fitting} ({count})" for (kind, fitting), count in Counter(pair[:2] for pair in fallbacks).items()
    ]
    widths = sorted({columns for _, _, columns in fallbacks})
    matrices = [tensor for tensor in tensors if quantizable(tensor)]
    values = {tensor.name: tensor.rows * tensor.columns for tensor in matrices}
    bits = sum(8 * TYPES[types[name]].bytes / TYPES[types[name]].block * count for name, count in values.items())
    usual = SCHEMES[scheme].type
    named = "" if usual in types.values() else f"; no tensor is {usual}, whatever the scheme is called"
    note = (
        f"{scheme}: rows of {', '.join(map(str, widths))} do not fit the types of {len(fallbacks)} of {len(matrices)} matrices:"
        f" {', '.join(kinds)}; {bits / sum(values.values()):.2f} bits a weight in all{named}"
    )
    return (note,)


def quantizable(tensor: Shape) -> bool:
    """Whether a scheme changes this tensor at all: no vectors, biases, norms, positions or token types."""
    return tensor.rows > 1 and tensor.name.endswith("weight") and not _KEPT.search(tensor.name)


def fit(kind: str, columns: int) -> str:
    """The type itself, or what llama.cpp takes where `columns` is no multiple of its block."""
    if columns % TYPES[kind].block == 0:
        return kind
    narrower = FALLBACKS.get(kind, kind)
    return narrower if columns % TYPES[narrower].block == 0 else "f16"


def uncovered(types: Mapping[str, str], imatrix: Collection[str]) -> tuple[str, ...]:
    """The layers' tensors whose type weighs errors by importance and that the matrix does not cover."""
    return tuple(
        sorted(name for name, kind in types.items() if kind in WEIGHTED and name not in imatrix and name[:4] == "blk.")
    )


def main_file_type(tensors: Sequence[Shape], types: Mapping[str, str]) -> int:
    """`general.file_type` of a mixture: that of the type which most weights have."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        weights[types[tensor.name]] = weights.get(types[tensor.name], 0) + tensor.rows * tensor.columns
    return FILE_TYPES[max(sorted(weights), key=lambda kind: weights[kind])]


def _output_type(tensor: Shape, kind: str) -> str:
    """The head, or the embedding that is the head: 6 bits, or 8."""
    return "q8_0" if kind == "q8_0" or tensor.columns % TYPES[kind].block else "q6_k"


def _ruled(rule: _Rule | None, kind: str, position: _Position, index: int, count: int) -> str:
    own = _Position(index=index, count=count, shared_heads=position.shared_heads, imatrix=position.imatrix)
    return rule.type if rule and rule.when(own) else kind


def _loading_order(tensor: Shape) -> tuple[int, str]:
    """llama.cpp walks tensors by layer, then by name; what has no layer comes first."""
    block = re.match(r"blk\.(\d+)\.", tensor.name)
    return (int(block[1]) if block else -1, tensor.name)
