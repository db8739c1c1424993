"""Importance: how much a model's blocks, heads, neurons and channels do on texts, and which of them a smaller student keeps.

Of a block its influence, 1 - the mean cosine of what goes into it and what comes out (ShortGPT, arXiv:2403.03853, equation 1). Of
widths what is active (Minitron, arXiv:2407.14679, section 2.2): of a head the L2 norm of its output, of a neuron of an MLP and of
what a classifier reads the magnitude, of a channel between blocks the magnitude behind each norm; means over all real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from edgekit.architectures.widths import Sizes, Widths
from edgekit.distill.tap import find_blocks, find_family

if TYPE_CHECKING:
    from edgekit.distill.signals import Batch

FILE = "importance.safetensors"
Importance = Mapping[str, Tensor]
"""influence [blocks], query [blocks, heads], inner [blocks, neurons], model [blocks + 1, channels] (the last: of norms outside
the blocks), pooled [1, channels]; float64, and of widths only what the family's WIDTHS name."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which channels stay: of each of the student's blocks by axis (query, key, inner), and of all (model, pooled); rising."""

    blocks: Sequence[Mapping[str, Tensor]]
    whole: Mapping[str, Tensor]

    def indices(self, block: int | None, axis: str, before: Sizes) -> Tensor:
        """What stays of an axis that may be several behind each other; `before` says how long each was."""
        own = self.whole if block is None else {**self.whole, **self.blocks[block]}
        found, begin = [], 0
        for part in axis.split("+"):
            found.append(own[part] + begin)
            begin += before.extent(part)
        return torch.cat(found)


def find_sizes(module: nn.Module) -> tuple[Widths, Sizes] | None:
    """Where a loaded model has its widths, and how wide it is; None of a family that edgekit cuts no widths of."""
    config = cast(Any, module.model).config.get_text_config()
    widths = getattr(find_family(module), "WIDTHS", None)
    return None if widths is None else (widths, widths.sizes(config.to_dict(), type(config).__name__))


class _Means:
    """Means of what is seen of real tokens, by name and block."""

    def __init__(self) -> None:
        self.mask = torch.zeros(0)
        self._sums: dict[tuple[str, int], tuple[Tensor, int]] = {}

    def add(self, name: str, block: int, values: Tensor) -> None:
        """values: [rows, tokens, ...], or [rows, channels] of whole texts."""
        seen = values[self.mask] if name != "pooled" else values
        total, count = self._sums.get((name, block), (0, 0))
        self._sums[name, block] = (total + seen.sum(dim=0).cpu().double(), count + len(seen))

    def found(self) -> dict[str, Tensor]:
        """The means of each name, blocks below each other."""
        rows: dict[str, list[Tensor]] = {}
        for (name, _), (total, count) in sorted(self._sums.items(), key=lambda entry: entry[0]):
            rows.setdefault(name, []).append(total / count)
        return {name: torch.stack(each) for name, each in rows.items()}


def measure(
    module: nn.Module, batches: Iterable[Batch], told: Callable[[int], None] = lambda _rows: None
) -> dict[str, Tensor]:
    """The `Importance` of a module's parts on batches that are on its device; told: is called with how many rows were seen."""
    means, rows = _Means(), 0
    module.eval()
    with torch.no_grad(), _watched(module, means):
        for batch in batches:
            means.mask = batch.mask.bool()
            module(batch.tokens, batch.mask)
            rows += len(batch.tokens)
            told(rows)
    return means.found()


@contextmanager
def _watched(module: nn.Module, means: _Means) -> Iterator[None]:
    """Hooks on all that is measured, for a while."""
    blocks, known = find_blocks(module), find_sizes(module)
    hooks: list[Any] = [
        block.register_forward_hook(_influence(means, index), with_kwargs=True) for index, block in enumerate(blocks)
    ]
    for path, part in cast(nn.Module, module.model).named_modules() if known else ():
        if not hasattr(part, "weight"):
            continue
        widths, sizes = cast("tuple[Widths, Sizes]", known)
        block, axes = widths.axes(f"{path}.weight", find_family(module).LAYERS)
        place = len(blocks) if block is None else block
        if axes == ("model",):
            hooks.append(part.register_forward_hook(_given(means, place)))
        elif axes[1:] and axes[1] in {"query", "inner", "pooled"}:
            hooks.append(part.register_forward_pre_hook(_taken(means, axes[1], place, sizes.head)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _influence(means: _Means, block: int) -> Callable[..., None]:
    def see(_part: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor], output: object) -> None:
        before = inputs[0] if inputs else named["hidden_states"]
        after = cast(Tensor, output[0] if isinstance(output, tuple) else output)
        means.add("influence", block, 1 - torch.cosine_similarity(before.float(), after.float(), dim=-1))

    return see


def _given(means: _Means, block: int) -> Callable[..., None]:
    return lambda _part, _inputs, output: means.add("model", block, output.float().abs())


def _taken(means: _Means, axis: str, block: int, head: int) -> Callable[..., None]:
    def see(_part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        heads = values.view(*values.shape[:-1], -1, head).norm(dim=-1) if axis == "query" else values.abs()
        means.add(axis, block, heads)

    return see


def read_importance(path: Path) -> Importance:
    """What `measure` found, from its file."""
    from safetensors.torch import load_file

    return load_file(path)


def choose_influential(importance: Importance, layers: int) -> list[int]:
    """The indices of so many blocks that change most of what passes through them, rising."""
    return _largest(importance["influence"], layers).tolist()


def choose_channels(importance: Importance, keep: Sequence[int], before: Sizes, after: Sizes) -> Chosen:
    """Which channels of the blocks `keep` stay in a student of the sizes `after`; the first ones where nothing was measured.

    Heads of keys and values stay with the query heads that share them, those whose query heads do most together. Channels between
    blocks are chosen by the norms that stay.
    """
    alike = {axis: torch.ones(before.extent(axis)) for axis in ("inner", "model", "pooled", "positions")}
    blocks = []
    for block in keep:
        neurons = importance["inner"][block] if "inner" in importance else alike["inner"]
        heads = importance["query"][block] if "query" in importance else torch.ones(before.heads)
        groups, each = heads.view(before.kv_heads, -1), after.heads // after.kv_heads
        pairs = _largest(groups.sum(dim=1), after.kv_heads)
        stay = torch.cat([_largest(groups[pair], each) + pair * groups.shape[1] for pair in pairs])
        query, key = _channels(stay, before.head), _channels(pairs, before.head)
        blocks.append({"inner": _largest(neurons, after.intermediate), "query": query, "key": key})
    norms = importance.get("model")
    whole = {
        "model": _largest(alike["model"] if norms is None else norms[[*keep, len(norms) - 1]].sum(dim=0), after.hidden),
        "pooled": _largest(importance["pooled"][0] if "pooled" in importance else alike["pooled"], after.hidden),
        "positions": _largest(alike["positions"], after.extent("positions")),
    }
    return Chosen(blocks=blocks, whole=whole)


def _largest(values: Tensor, count: int) -> Tensor:
    """The indices of the largest values, rising; among equals the first."""
    return values.argsort(descending=True, stable=True)[:count].sort().values


def _channels(heads: Tensor, head: int) -> Tensor:
    """The channels of some heads."""
    return (heads[:, None] * head + torch.arange(head)).flatten()
