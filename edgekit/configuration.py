"""What the keys of a checkpoint's configuration must look like, so that a wrong one is told by its name where it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from edgekit.errors import EdgekitError
from edgekit.schema import read_json
from edgekit.typed_json import as_table

# Files beside config.json that hold a JSON object, where they are there.
_OBJECTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a value must be, in words and as a test. null is a value of every kind: transformers writes it for "not set"."""

    wanted: str
    fits: Callable[[object], bool]


def _whole(value: object) -> TypeGuard[int]:
    return type(value) is int


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(fits(item) for item in value)


COUNT = Kind(wanted="a whole number above zero", fits=lambda value: _whole(value) and value > 0)
NATURAL = Kind(wanted="a whole number from 0", fits=lambda value: _whole(value) and value >= 0)
TOKEN = Kind(wanted="a token id", fits=_whole)
TOKENS = Kind(wanted="a token id or a list of them", fits=lambda value: _whole(value) or _list_of(_whole)(value))
NUMBER = Kind(wanted="a number", fits=_finite)
POSITIVE = Kind(wanted="a number above zero", fits=lambda value: _finite(value) and value > 0)
NUMBERS = Kind(wanted="a list of numbers", fits=_list_of(_finite))
FLAG = Kind(wanted="true or false", fits=lambda value: isinstance(value, bool))
TEXT = Kind(wanted="a text", fits=lambda value: isinstance(value, str))
TEXTS = Kind(wanted="a list of texts", fits=_list_of(lambda item: isinstance(item, str)))
TABLE = Kind(wanted="a JSON object", fits=lambda value: isinstance(value, dict))

# The keys that edgekit and the families' own code compute with.
KEYS: dict[str, Kind] = {
    "architectures": TEXTS,
    "attention_bias": FLAG,
    "attention_dropout": NUMBER,
    "bos_token_id": TOKENS,
    "dim": COUNT,
    "eos_token_id": TOKENS,
    "head_dim": COUNT,
    "hidden_act": TEXT,
    "hidden_dim": COUNT,
    "hidden_size": COUNT,
    "id2label": TABLE,
    "initializer_range": NUMBER,
    "intermediate_size": COUNT,
    "is_decoder": FLAG,
    "layer_norm_eps": POSITIVE,
    "layer_types": TEXTS,
    "max_position_embeddings": COUNT,
    "mlp_bias": FLAG,
    "model_type": TEXT,
    "n_heads": COUNT,
    "n_layers": COUNT,
    "num_attention_heads": COUNT,
    "num_hidden_layers": COUNT,
    "num_key_value_heads": COUNT,
    "original_max_position_embeddings": COUNT,
    "pad_token_id": TOKEN,
    "partial_rotary_factor": POSITIVE,
    "problem_type": TEXT,
    "rms_norm_eps": POSITIVE,
    "rope_parameters": TABLE,
    "rope_scaling": TABLE,
    "rope_theta": POSITIVE,
    "sliding_window": NATURAL,
    "text_config": TABLE,
    "tie_word_embeddings": FLAG,
    "type_vocab_size": NATURAL,
    "vocab_size": COUNT,
}
# Those of rope_parameters (rope_scaling until transformers 4), which may be a table of such tables, one for each kind of layer.
ROPE_KEYS: dict[str, Kind] = {
    "attention_factor": POSITIVE,
    "beta_fast": NUMBER,
    "beta_slow": NUMBER,
    "factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "long_factor": NUMBERS,
    "low_freq_factor": POSITIVE,
    "mscale": NUMBER,
    "mscale_all_dim": NUMBER,
    "original_max_position_embeddings": COUNT,
    "partial_rotary_factor": POSITIVE,
    "rope_theta": POSITIVE,
    "rope_type": TEXT,
    "short_factor": NUMBERS,
    "type": TEXT,
}


def read_configuration(path: Path) -> dict[str, object]:
    """A config.json whose keys are of their kinds.

    Raises EdgekitError, which names file and key, for a value of another kind, labels that are not numbered from 0, and
    frequencies of Llama 3.1 that leave nothing between them.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise EdgekitError(f"{path}: not a transformers configuration; expected a JSON object")
    _check(content, KEYS, str(path))
    for part, where in ((content, str(path)), (as_table(content.get("text_config")), f"{path}: text_config")):
        _check(part, KEYS, where)
        for key in ("rope_parameters", "rope_scaling"):
            _check_rope(as_table(part.get(key)), f"{where}: {key}")
    _check_labels(as_table(content.get("id2label")), f"{path}: id2label")
    return content


def check_files(folder: Path) -> None:
    """Raises EdgekitError for a JSON file of a checkpoint that transformers would not read.

    That is one with a byte order mark, or that holds something else than an object where one is expected.
    """
    for path in sorted(folder.glob("*.json")):
        with path.open("rb") as stream:
            marked = stream.read(len(_MARK)) == _MARK
        if marked:
            raise EdgekitError(
                f"{path}: begins with a byte order mark, with which transformers cannot read it; save it as UTF-8 without one"
            )
        if path.name in _OBJECTS and not isinstance(read_json(path), dict):
            raise EdgekitError(f"{path}: expected a JSON object; save the model again")


def _check(content: Mapping[str, object], kinds: Mapping[str, Kind], where: str) -> None:
    for key, value in content.items():
        kind = kinds.get(key)
        if kind is not None and value is not None and not kind.fits(value):
            raise EdgekitError(f"{where}: {key}: {value!r:.60} is not {kind.wanted}")


def _check_rope(table: Mapping[str, object], where: str) -> None:
    nested = {key: inner for key, inner in table.items() if isinstance(inner, dict)}
    for key, inner in nested.items():
        _check_rope(inner, f"{where}: {key}")
    _check({key: value for key, value in table.items() if key not in nested}, ROPE_KEYS, where)
    low, high = table.get("low_freq_factor"), table.get("high_freq_factor")
    if _finite(low) and _finite(high) and low >= high:
        raise EdgekitError(f"{where}: low_freq_factor: {low} is not below high_freq_factor ({high})")


def _check_labels(named: Mapping[str, object], where: str) -> None:
    # Keys are the indices of the logits; transformers counts them to size the head.
    numbers = set(map(str, range(len(named))))
    if set(named) != numbers:
        wrong = next((key for key in named if key not in numbers), "")
        raise EdgekitError(f'{where}: {wrong!r} is not one of the classes\' numbers "0" to "{len(named) - 1}"')
