"""What a family's module says about GGUF: where each of its tensors goes, and which keys describe it to llama.cpp.

The names and keys are those that llama.cpp's loader reads: https://github.com/ggml-org/llama.cpp, src/llama-arch.cpp,
llama-model.cpp and models/. What its graph cannot compute as transformers does is refused here, never written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.schema import nearest
from edgekit.typed_json import as_list

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What transformers computes beside that (modeling_rope_utils.ROPE_INIT_FUNCTIONS).
_OTHER_ROPES = frozenset({"linear", "dynamic", "yarn", "llama3", "longrope", "proportional"})
Keys = dict[str, str | bool | int | float | list[bool]]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration in transformers' words, complete with its family's defaults; `where` begins its errors."""

    values: Mapping[str, object]
    where: str

    def get(self, key: str, default: object = None) -> object:
        """The value of a key; the default where the key is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def number(self, key: str) -> int:
        """A whole number above zero; EdgekitError where it is missing or something else."""
        value = self.values.get(key)
        if type(value) is not int or value <= 0:
            raise self.error(key, f"{value!r} is not a number above zero")
        return value

    def natural(self, key: str) -> int:
        """A whole number from 0; EdgekitError where it is missing or something else."""
        value = self.values.get(key)
        if type(value) is not int or value < 0:
            raise self.error(key, f"{value!r} is not a whole number from 0")
        return value

    def real(self, key: str) -> float:
        """A number above zero; EdgekitError where it is missing or something else."""
        value = self.values.get(key)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.error(key, f"{value!r} is not a number above zero")
        return float(value)

    def optional(self, key: str) -> float | None:
        """A number of any sign; None where it is missing, null or something else."""
        value = self.values.get(key)
        return value if isinstance(value, int | float) else None

    def window(self, usual: int | None = None) -> int | None:
        """The sliding window in tokens: `usual` where the key is missing, None where it is null."""
        value = self.values.get("sliding_window", usual)
        return value if isinstance(value, int) else None

    def error(self, key: str, what: str) -> EdgekitError:
        """What to tell a user about a key."""
        return EdgekitError(f"{self.where}: {key}: {what}")

    def must(self, key: str, *wanted: object) -> None:
        """Raises EdgekitError unless a key has one of these values: llama.cpp computes no other in this family."""
        if self.values.get(key) not in wanted:
            known = " or ".join(repr(value) for value in wanted if value is not None) or "none"
            raise self.error(
                key, f"llama.cpp computes {known} in this family, not {self.values.get(key)!r}; export as ONNX"
            )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the tensors of one layer go: `<name>.weight` and, where there is one, `<name>.bias`.

    name: GGUF's, with {} for the block's index. shape: of the weight, as names of the family's sizes, rows before columns.
    bias: whether there is one; None where there may be. optional: whether the weight may be missing.
    heads: the size that says how many heads the rows are made of, where llama.cpp wants each head's rows interleaved.
    add: what is added to every value. skip: the size that says how many of the first rows are left out.
    """

    name: str
    shape: tuple[str, ...]
    bias: bool | None = False
    optional: bool = False
    heads: str | None = None
    add: float = 0.0
    skip: str | None = None


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """How a family is written as GGUF.

    architecture: llama.cpp's name. places: by the path of a layer in the bare model (without `prefixes`), outside the blocks;
    blocks: by its path inside the block `<block>.<index>`. ignored: what begins the names of tensors that llama.cpp does not
    need. defaults: of keys that a configuration may leave out. tied: whether the head is the embedding by default.
    sizes, keys, constants: from a configuration, the extents of `Place.shape`, the architecture's keys (without its name in
    front) and further float32 tensors.
    """

    architecture: str
    sizes: Callable[[Config], dict[str, int]]
    keys: Callable[[Config], Keys]
    places: Mapping[str, Place]
    blocks: Mapping[str, Place]
    block: str = "layers"
    prefixes: tuple[str, ...] = ("model.language_model.", "language_model.model.", "language_model.", "model.")
    ignored: tuple[str, ...] = ()
    head: str | None = "lm_head"
    tied: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)
    constants: Callable[[Config], dict[str, NDArray[np.float32]]] = lambda _: {}

    def config(self, values: Mapping[str, object], where: Path) -> Config:
        """A configuration of this family as transformers completes it; a text model's part of a larger one."""
        text = values.get("text_config")
        given = {**values, **text} if isinstance(text, dict) else values
        present = {key: value for key, value in given.items() if key not in self.defaults or value is not None}
        return Config(values={**self.defaults, **present}, where=str(where))


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions turn queries and keys: kind, base, share of each head, original context, and the kind's own numbers."""

    kind: str
    theta: float
    partial: float
    original: int
    parameters: Config


def rope(config: Config, kinds: Collection[str], layers: str = "full_attention", *, partial: bool = False) -> Rope:
    """The rotary embedding of a kind of layers, from keys that transformers 4 or 5 wrote.

    kinds: what llama.cpp computes in this family. partial: whether the family may turn a share of each head only; in the others
    transformers' own code takes no notice of partial_rotary_factor. Raises EdgekitError for another kind.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise config.error("rope_parameters", f"{given!r} is not a table")
    nested = given.get(layers)
    values = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor") if config.get(key) is not None}
    values |= nested if isinstance(nested, dict) else given
    parameters = Config(values=values, where=f"{config.where}: rope_parameters")
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    if kind not in kinds:
        if kind in _OTHER_ROPES:
            raise parameters.error(
                "rope_type", f"llama.cpp computes {' or '.join(kinds)} in this family, not {kind!r}; export as ONNX"
            )
        raise parameters.error("rope_type", f"unknown value {kind!r}{nearest(kind, kinds)}")
    share = parameters.real("partial_rotary_factor") if parameters.get("partial_rotary_factor") else 1.0
    if share != 1.0 and not partial and kind != "default":
        raise parameters.error(
            "partial_rotary_factor", f"transformers' code of this family fails at it with rope_type {kind!r}"
        )
    # transformers gives the configuration's own key the word over the dictionary's.
    key = "original_max_position_embeddings"
    original = next((table.number(key) for table in (config, parameters) if table.get(key)), None)
    return Rope(
        kind=kind,
        theta=parameters.real("rope_theta") if parameters.get("rope_theta") else 10000.0,
        partial=share if partial else 1.0,
        original=original or config.number("max_position_embeddings"),
        parameters=parameters,
    )


def head_width(config: Config) -> int:
    """The channels of one head; EdgekitError where the heads do not divide the model's width."""
    if config.get("head_dim"):
        return config.number("head_dim")
    width, rest = divmod(config.number("hidden_size"), config.number("num_attention_heads"))
    if rest:
        raise config.error("num_attention_heads", f"does not divide hidden_size ({config.number('hidden_size')})")
    return width


def decoder_sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes of decoders are made of."""
    heads, width = config.number("num_attention_heads"), head_width(config)
    pairs = config.number("num_key_value_heads") if config.get("num_key_value_heads") else heads
    if heads % pairs or width % 2:
        raise config.error("num_key_value_heads", f"{heads} heads of {width} channels on {pairs} do not fit together")
    return {
        "vocabulary": config.number("vocab_size"),
        "model": config.number("hidden_size"),
        "heads": heads,
        "key_heads": pairs,
        "head": width,
        "query": heads * width,
        "key": pairs * width,
        "fused": (heads + 2 * pairs) * width,
        "hidden": config.number("intermediate_size"),
        "gate_up": 2 * config.number("intermediate_size"),
    }


def decoder_keys(config: Config, turning: Rope, *, context: int | None = None) -> Keys:
    """The keys that every decoder has. context: tokens, where it is not max_position_embeddings."""
    sizes = decoder_sizes(config)
    return {
        "vocab_size": sizes["vocabulary"],
        "context_length": context or config.number("max_position_embeddings"),
        "embedding_length": sizes["model"],
        "block_count": config.number("num_hidden_layers"),
        "feed_forward_length": sizes["hidden"],
        "attention.head_count": sizes["heads"],
        "attention.head_count_kv": sizes["key_heads"],
        "attention.key_length": sizes["head"],
        "attention.value_length": sizes["head"],
        "attention.layer_norm_rms_epsilon": config.real("rms_norm_eps"),
        "rope.dimension_count": int(sizes["head"] * turning.partial),
        "rope.freq_base": turning.theta,
        **_scaling_keys(config, turning),
    }


def _scaling_keys(config: Config, turning: Rope) -> Keys:
    if turning.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": turning.parameters.real("factor")}
    if turning.kind in {"longrope", "su"}:
        return {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": turning.original,
            "rope.scaling.attn_factor": _longrope_attention(config, turning),
        }
    if turning.kind != "yarn":
        return {}
    # llama.cpp's loader takes these from no file of these families.
    for key, only in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True)):
        turning.parameters.must(key, None, only)
    factor = turning.parameters.real("factor")
    keys: Keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": turning.original,
    }
    own = _yarn_scale(factor)
    if (wanted := _yarn_attention(turning, factor)) != own:
        keys["rope.scaling.attn_factor"] = wanted / own
    return keys


def _yarn_scale(factor: float, scale: float = 1.0) -> float:
    """The square root of the attention's temperature that YaRN recommends (arXiv:2309.00071, eq. 22)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _yarn_attention(turning: Rope, factor: float) -> float:
    """What transformers multiplies sines and cosines with (modeling_rope_utils._compute_yarn_parameters)."""
    given = turning.parameters
    if given.get("attention_factor") is not None:
        return given.real("attention_factor")
    if (scale := given.optional("mscale")) and (of_all := given.optional("mscale_all_dim")):
        return _yarn_scale(factor, scale) / _yarn_scale(factor, of_all)
    return _yarn_scale(factor)


def _longrope_attention(config: Config, turning: Rope) -> float:
    """As transformers computes it (modeling_rope_utils._compute_longrope_parameters; arXiv:2402.13753)."""
    if turning.parameters.get("attention_factor") is not None:
        return turning.parameters.real("attention_factor")
    factor = turning.parameters.optional("factor") or config.number("max_position_embeddings") / turning.original
    return math.sqrt(1 + math.log(factor) / math.log(turning.original)) if factor > 1.0 else 1.0


def longrope_factors(config: Config, turning: Rope) -> dict[str, NDArray[np.float32]]:
    """The divisors of the frequencies below and above the original context length; none where positions are not LongRoPE's."""
    import numpy as np

    if turning.kind not in {"longrope", "su"}:
        return {}
    wanted = int(head_width(config) * turning.partial) // 2
    tensors = {}
    for side in ("long", "short"):
        factors = turning.parameters.get(f"{side}_factor")
        numbers = [factor for factor in as_list(factors) if type(factor) in {int, float}]
        if factors != numbers or len(numbers) != wanted:
            raise turning.parameters.error(f"{side}_factor", f"must be a list of {wanted} numbers")
        tensors[f"rope_factors_{side}.weight"] = np.array(numbers, np.float32)
    return tensors


def llama3_factors(config: Config, turning: Rope) -> dict[str, NDArray[np.float32]]:
    """The divisors of the frequencies of Llama 3.1 (transformers' modeling_rope_utils._compute_llama3_parameters)."""
    import numpy as np

    if turning.kind != "llama3":
        return {}
    factor, low, high = (turning.parameters.real(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise turning.parameters.error("low_freq_factor", f"{low} is not below high_freq_factor ({high})")
    width = head_width(config)
    unit = np.float32(1)
    lengths = np.float32(2 * math.pi) * np.float32(turning.theta) ** (np.arange(0, width, 2, dtype=np.float32) / width)
    smooth = (np.float32(turning.original) / lengths - np.float32(low)) / np.float32(high - low)
    between = unit / ((unit - smooth) / np.float32(factor) + smooth)
    scaled = np.where(lengths > turning.original / low, np.float32(factor), between)
    return {"rope_freqs.weight": np.where(lengths < turning.original / high, unit, scaled).astype(np.float32)}


def context_within(config: Config, window: int | None) -> int:
    """The context length within which attention to all tokens is attention to the window, where llama.cpp has no window."""
    limit = config.number("max_position_embeddings")
    return min(limit, window) if window else limit


def window_keys(config: Config, period: int, *, full_first: bool = False) -> Keys:
    """The sliding window and which layers have it; `period`: one layer in how many is of full attention to llama.cpp."""
    layers = config.number("num_hidden_layers")
    full = 0 if full_first else period - 1
    usual = ["full_attention" if index % period == full else "sliding_attention" for index in range(layers)]
    kinds = [str(kind) for kind in as_list(config.get("layer_types", usual))]
    if len(kinds) != layers or set(kinds) - set(usual) - {"full_attention", "sliding_attention"}:
        raise config.error("layer_types", f"must name sliding_attention or full_attention for each of {layers} layers")
    keys: Keys = {"attention.sliding_window": config.number("sliding_window")}
    if kinds != usual:
        keys["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
    return keys
