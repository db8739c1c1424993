"""How wide a student is: what a recipe asks for, checked against its teacher; read without torch."""

from __future__ import annotations

from dataclasses import replace
from math import lcm
from typing import TYPE_CHECKING

from edgekit.architectures import find_architecture
from edgekit.architectures.widths import CUTS, Sizes, Widths
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.recipe import Student

# Blocks of q4_0, q8_0 and w4 hold so many weights of a row, and vector instructions take whole numbers of them.
MULTIPLE = 32
# The shares of neurons and of channels that narrower students have where a target's budget chooses: with half of its neurons a
# BERT is right on 99.3 % of the texts that it was right on, before any training (README, "Students").
TRIED = ((1 / 2, 1.0), (1 / 2, 2 / 3))


def find_widths(model: Model) -> Widths | None:
    """Where a model's family has its widths; None of a family that edgekit cuts no widths of."""
    family = find_architecture(model.architecture, str(model.folder / "config.json"))
    widths = getattr(family, "WIDTHS", None)
    assert widths is None or isinstance(widths, Widths)
    return widths


def choose_sizes(teacher: Model, student: Student, where: str) -> Sizes | None:
    """The sizes of a student that a recipe wants narrower than its teacher; None where it says nothing of them.

    Heads of keys and values go whole, with their query heads. Raises EdgekitError (beginning with `where`) for a family or size
    that cannot be cut, more than the teacher has, what is no multiple of MULTIPLE, and heads that do not fit together.
    """
    asked = {key: int(value) for key in CUTS if (value := getattr(student, key)) is not None}
    if not asked:
        return None
    widths = find_widths(teacher)
    if widths is None:
        raise EdgekitError(
            f"{where}.{next(iter(asked))}: edgekit cuts no widths of the family {teacher.architecture!r}; remove this key, and"
            " give fewer layers"
        )
    before = widths.sizes(teacher.text_config, str(teacher.folder / "config.json"))
    for key, value in asked.items():
        _check(key, value, before, widths, where)
    hidden, intermediate = asked.get("hidden", before.hidden), asked.get("intermediate", before.intermediate)
    choose = _heads_of_hidden if widths.head is None else _heads
    heads, kv_heads = choose(asked, before, hidden, where)
    positions = asked.get("positions", before.positions)
    wide = replace(before, hidden=hidden, intermediate=intermediate, positions=positions)
    return replace(wide, heads=heads, kv_heads=kv_heads)


def propose_widths(teacher: Model, *, channels: bool) -> list[dict[str, int]]:
    """Students that are narrower than a teacher, as keys of [student], the widest first; [] of a family that edgekit cuts no
    widths of. channels: whether those between blocks may go too.

    Of multiples of 256, 64 or 32 what is left is one too: K-quants pack 256 weights of a row, kernels take 64 or 32 at once.
    """
    widths = find_widths(teacher)
    if widths is None:
        return []
    before, found = widths.sizes(teacher.text_config, str(teacher.folder / "config.json")), list[dict[str, int]]()
    for inner, outer in TRIED:
        head = before.head if widths.head is None else 1
        asked = {"intermediate": _part(before.intermediate, inner, 1), "hidden": _part(before.hidden, outer, head)}
        free = {key for key in asked if key not in widths.fixed and (channels or key != "hidden")}
        keys = {key: value for key, value in asked.items() if key in free and 0 < value < int(getattr(before, key))}
        if keys and keys not in found:
            found.append(keys)
    return found


def _part(had: int, share: float, whole: int) -> int:
    """At most this share of a size, in the steps that the size itself is in, and in whole heads; 0 where that leaves nothing."""
    steps = [lcm(step, whole) for step in (256, 64, MULTIPLE) if had % step == 0]
    return next((part for step in steps if (part := int(had * share) // step * step)), 0)


def _check(key: str, value: int, before: Sizes, widths: Widths, where: str) -> None:
    had = int(getattr(before, key))
    if value == had:
        return
    if key == "positions" and not widths.has_positions:
        raise EdgekitError(
            f"{where}.positions: this family has no table of positions that could be cut; remove this key"
        )
    if value > had:
        raise EdgekitError(f"{where}.{key}: {value}: the teacher, which the student is cut from, has {had}; give fewer")
    if key in widths.fixed:
        raise EdgekitError(f"{where}.{key}: of this family it stays {had}: {widths.fixed[key]}; remove this key")
    if key in {"hidden", "intermediate"} and value % MULTIPLE:
        below = value // MULTIPLE * MULTIPLE
        above = min(below + MULTIPLE, had)
        near = f"{below} or {above}" if below else str(above)
        raise EdgekitError(
            f"{where}.{key}: {value}: kernels and blocks of quantized weights take multiples of {MULTIPLE}; give {near}"
        )


def _heads(asked: dict[str, int], before: Sizes, hidden: int, where: str) -> tuple[int, int]:  # noqa: ARG001 - one signature
    """Heads, and those of keys and values, where a head's width is a key of its own."""
    group = before.heads // before.kv_heads
    if "heads" not in asked:
        kv_heads = asked.get("kv_heads", before.kv_heads)
        return kv_heads * group, kv_heads
    heads = asked["heads"]
    if "kv_heads" not in asked:
        if heads % group:
            raise EdgekitError(
                f"{where}.heads: {heads}: {group} of the teacher's query heads share one head of keys and values, and go with it;"
                f" give a multiple of {group}, or kv_heads too"
            )
        return heads, heads // group
    kv_heads = asked["kv_heads"]
    if heads % kv_heads or heads // kv_heads > group:
        raise EdgekitError(
            f"{where}.kv_heads: {kv_heads}: each takes as many of the {heads} query heads, {group} at most; give heads ="
            f" {kv_heads * min(group, max(1, heads // kv_heads))}, or other kv_heads"
        )
    return heads, kv_heads


def _heads_of_hidden(asked: dict[str, int], before: Sizes, hidden: int, where: str) -> tuple[int, int]:
    """Heads where the configuration has no key for their width: it is hidden / heads."""
    if "kv_heads" in asked:
        raise EdgekitError(
            f"{where}.kv_heads: each head of this family has keys and values of its own; remove this key"
        )
    if hidden % before.head:
        below = max(hidden // before.head, 1) * before.head
        raise EdgekitError(
            f"{where}.hidden: {hidden}: must be whole heads, of {before.head} channels each; give {below} or"
            f" {below + before.head}"
        )
    heads = hidden // before.head
    if asked.get("heads", heads) != heads:
        raise EdgekitError(
            f"{where}.heads: {asked['heads']}: this family's configuration knows a head's width as hidden / heads alone, so heads"
            f" go with channels; give hidden = {asked['heads'] * before.head} instead"
        )
    return heads, heads
