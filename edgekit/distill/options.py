"""What a recipe may say about training; read without torch, so that a bad key is told in a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from edgekit.distill import losses
from edgekit.errors import EdgekitError
from edgekit.schema import nearest, parse

# Above this much memory the teacher answers each batch anew instead of once per text.
SIGNAL_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train. `holdout` is the share of train texts kept aside for the early stop; `patience` counts epochs.

    `device` is where: "auto" takes the accelerator that torch finds, else the CPU.

    Without `learning_rate`: 2e-4 at 384 channels, falling as 1 / width (Adam's rate for hidden weights under maximal update
    parametrisation, arXiv:2203.03466, table 3).
    """

    epochs: Annotated[int, Gt(0)] = 10
    learning_rate: Annotated[float, Gt(0)] | None = None
    batch: Annotated[int, Gt(0)] = 32
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.1
    weight_decay: Annotated[float, Ge(0)] = 0.01
    clip: Annotated[float, Gt(0)] = 1.0
    holdout: Annotated[float, Ge(0), Lt(0.5)] = 0.05
    patience: Annotated[int, Gt(0)] = 3
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


@dataclass(frozen=True, kw_only=True)
class CreateOptions(TrainingOptions):
    """A decoder made from nothing: its size, and how to train it.

    `vocabulary` is the most tokens that its tokenizer may have (special tokens included), `kv_heads` are as many as `heads`
    where not given, and `intermediate` is three times `hidden`. For llama.cpp's K-quants `hidden` and `intermediate` must be
    multiples of 256. Without `learning_rate`: 2e-3 at 256 channels, falling as 1 / width. A small `batch` makes the most of few
    tokens: on the stories, 2,280 steps of 2 texts ended at a held-out perplexity of 2.5, 912 steps of 4 at 4.2.
    """

    family: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"
    vocabulary: Annotated[int, Ge(300)] = 4096
    hidden: Annotated[int, Gt(0)] = 256
    layers: Annotated[int, Gt(0)] = 4
    heads: Annotated[int, Gt(0)] = 4
    kv_heads: Annotated[int, Gt(0)] | None = None
    intermediate: Annotated[int, Gt(0)] | None = None
    context: Annotated[int, Gt(1)] = 512
    tied: bool = True
    batch: Annotated[int, Gt(0)] = 4
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.05
    weight_decay: Annotated[float, Ge(0)] = 0.1


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainingOptions):
    """How to teach a student. `losses` maps names in LOSSES to weights; {"labels": 1.0} alone is a run without a teacher."""

    temperature: Annotated[float, Gt(0)] = 2.0
    losses: dict[str, Annotated[float, Ge(0)]] | None = None


def read_distill_options(
    table: Mapping[str, object], output: str, where: str
) -> tuple[DistillOptions, dict[str, float]]:
    """A recipe's [distill] table, and the weights of the losses that count, for a kind of output (logits, embedding, tokens).

    Raises EdgekitError for unknown keys and losses, and for a loss that the output has no use for.
    """
    options = parse(DistillOptions, table, where)
    defaults = default_losses(output)
    weights = defaults if options.losses is None else options.losses
    for name in weights:
        if name not in defaults:
            problem = f"does not apply to {output}" if name in losses.LOSSES else "unknown loss"
            raise EdgekitError(f"{where}.losses.{name}: {problem}{nearest(name, defaults)}")
    chosen = {name: weight for name, weight in sorted(weights.items()) if weight > 0}
    if not chosen:
        raise EdgekitError(f"{where}.losses: every weight is zero; give at least one of {', '.join(sorted(defaults))}")
    return options, chosen


def default_losses(output: str) -> dict[str, float]:
    """The losses that make sense for a kind of output, and their weights where a recipe names none."""
    return {name: loss.weights[output] for name, loss in losses.LOSSES.items() if output in loss.weights}


def read_create_options(table: Mapping[str, object], max_length: int, where: str) -> CreateOptions:
    """A recipe's [teacher.create] table; EdgekitError for unknown keys and for sizes that do not fit together.

    `max_length` is how many tokens the model sees at once in training.
    """
    options = parse(CreateOptions, table, where)
    kv_heads = options.kv_heads or options.heads
    if options.hidden % options.heads or (options.hidden // options.heads) % 2:
        raise EdgekitError(
            f"{where}.heads: {options.heads}: hidden ({options.hidden}) must be heads times an even number of channels"
        )
    if options.heads % kv_heads:
        raise EdgekitError(f"{where}.kv_heads: {kv_heads}: must divide heads ({options.heads})")
    if max_length > options.context:
        raise EdgekitError(
            f"{where}.context: {options.context}: shorter than data.max_length ({max_length}); raise it, or shorten the texts"
        )
    return options


def choose_blocks(depth: int, layers: int | None, keep: Sequence[int] | None, where: str) -> list[int]:
    """Which of the teacher's blocks (0 is the first) the student keeps.

    `keep` names them; `layers` takes that many, evenly spaced from the first to the last. For 12 to 6 that is
    [0, 2, 4, 7, 9, 11], as DistilBERT does (arXiv:1910.01108; scripts/extract_distilbert.py); evenly spaced blocks beat the
    last ones in patient knowledge distillation too (PKD-Skip, arXiv:1908.09355).
    Raises EdgekitError (beginning with `where`) for a number or an index that the teacher does not have.
    """
    if keep is not None and layers is not None:
        raise EdgekitError(f"{where}: give either layers or keep, not both")
    if keep is not None:
        if not keep or sorted(set(keep)) != list(keep) or keep[0] < 0 or keep[-1] >= depth:
            raise EdgekitError(f"{where}.keep: {list(keep)}: expected rising indices from 0 to {depth - 1}")
        return list(keep)
    if layers is None:
        raise EdgekitError(
            f"{where}.layers: missing; how many of the teacher's {depth} layers should the student have?"
        )
    if not 1 <= layers <= depth:
        raise EdgekitError(f"{where}.layers: {layers}: the teacher has {depth} layers; choose from 1 to {depth}")
    if layers == 1:
        return [0]
    # Halves go down, in integers: round((depth - 1) * index / (layers - 1)).
    return [(2 * (depth - 1) * index + layers - 2) // (2 * (layers - 1)) for index in range(layers)]
