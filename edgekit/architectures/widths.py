"""Widths: what the axes of a family's tensors are made of, so that a narrower model of the same family can be cut from one.

An axis is one of
- model: the channels that go from block to block
- query, key: the channels of all query heads, of all heads of keys and values
- inner: the neurons of a block's MLP
- pooled: the channels that a classifier reads
- positions: the rows of a table of positions
or several of them behind each other ("query+key+key"), or "" for one that stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit.errors import EdgekitError

Axes = tuple[str, ...]
KV_HEADS, POSITIONS = "num_key_value_heads", "max_position_embeddings"
# What a recipe may cut, by the names that a recipe has for it.
CUTS = ("hidden", "heads", "kv_heads", "intermediate", "positions")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How wide a model is: channels between blocks, heads, heads of keys and values, channels of a head, neurons of an MLP.

    positions: tokens that a text may have, 0 where no table says it; reserved: rows of that table before the first of them.
    """

    hidden: int
    heads: int
    kv_heads: int
    head: int
    intermediate: int
    positions: int = 0
    reserved: int = 0

    def extent(self, axis: str) -> int:
        """How long an axis is."""
        return sum(self._extent(part) for part in axis.split("+"))

    def _extent(self, part: str) -> int:
        if part in {"query", "key"}:
            return self.head * (self.heads if part == "query" else self.kv_heads)
        if part == "positions":
            return self.positions + self.reserved
        return self.intermediate if part == "inner" else self.hidden


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Where a family has its widths.

    blocks: the axes of the weight of each layer by its path inside a block; its bias has the first one. places: the same by the
    end of a path outside the blocks. keys: what the configuration calls the sizes. head: its key for the channels of a head;
    None where they are hidden / heads. padded: whether positions count from the padding's id + 1 (transformers'
    create_position_ids_from_input_ids). fixed: why one of CUTS cannot be cut.
    """

    blocks: Mapping[str, Axes]
    places: Mapping[str, Axes] = field(default_factory=dict)
    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    intermediate: str = "intermediate_size"
    head: str | None = None
    padded: bool = False
    fixed: Mapping[str, str] = field(default_factory=dict)

    def sizes(self, config: Mapping[str, object], where: str) -> Sizes:
        """The sizes in a configuration; EdgekitError (beginning with `where`) for one that is missing."""
        hidden, heads, intermediate = (
            _number(config, key, where) for key in (self.hidden, self.heads, self.intermediate)
        )
        head = config.get(self.head) if self.head else None
        pairs = config.get(KV_HEADS)
        rows = _number(config, POSITIONS, where) if self.has_positions else 0
        reserved = _number(config, "pad_token_id", where, least=0) + 1 if self.padded else 0
        return Sizes(
            hidden=hidden,
            heads=heads,
            kv_heads=pairs if isinstance(pairs, int) else heads,
            head=head if isinstance(head, int) else hidden // heads,
            intermediate=intermediate,
            positions=rows - reserved,
            reserved=reserved,
        )

    @property
    def has_positions(self) -> bool:
        """Whether there is a table of positions."""
        return any("positions" in axes for axes in self.places.values())

    def changed(self, before: Sizes, after: Sizes) -> dict[str, int]:
        """What a configuration must say of the sizes that differ."""
        found = {
            key: wanted
            for key, had, wanted in (
                (self.hidden, before.hidden, after.hidden),
                (self.heads, before.heads, after.heads),
                (self.intermediate, before.intermediate, after.intermediate),
                (POSITIONS, before.extent("positions"), after.extent("positions")),
            )
            if had != wanted
        }
        if self.head and (before.hidden, before.heads) != (after.hidden, after.heads):
            found |= {KV_HEADS: after.kv_heads, self.head: after.head}
        return found

    def axes(self, name: str, layers: str) -> tuple[int | None, Axes]:
        """The block that a tensor is in (None: in none), and its axes, () where none of them changes.

        name: transformers' of the tensor. layers: the family's LAYERS.
        """
        path, _, kind = name.rpartition(".")
        inside = re.search(rf"(?:^|\.){re.escape(layers)}\.(\d+)\.(.+)$", path)
        if inside:
            block, axes = int(inside[1]), self.blocks.get(inside[2], ())
        else:
            block = None
            axes = next((axes for end, axes in self.places.items() if f".{path}".endswith(f".{end}")), ())
        return block, axes[:1] if kind == "bias" else axes


def _number(config: Mapping[str, object], key: str, where: str, least: int = 1) -> int:
    value = config.get(key)
    if type(value) is not int or value < least:
        raise EdgekitError(
            f"{where}: {key}: {value!r}: a student can be cut narrower where this is a number from {least} on"
        )
    return value
