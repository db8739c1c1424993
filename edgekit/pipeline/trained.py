"""Trainings as steps: what memory made one do is kept in the recipe's lock file, and the next build does the same.

How many rows of a batch went through at once decides the last bits of a model's weights (`distill.room`). A step's fingerprint
does not know of it, so that a machine of less memory begins nothing anew; what the lock file says is done, and a product that
was made otherwise is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from edgekit.errors import EdgekitError
from edgekit.inputs import Content, Inputs, identity
from edgekit.pipeline.lock import REMEDY, lock_path, read_lock, write_lock
from edgekit.pipeline.plan import Session, is_made, kept_product, run_step
from edgekit.progress import Progress
from edgekit.recipe import Recipe
from edgekit.workspace import Product, fingerprint

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from edgekit.distill import Rows

PART = "rows_at_once"
# Of a training's inputs what is another one on another machine, beside the contents that steps before it made.
_ELSEWHERE = ("machine", "libraries")


class Trains(Inputs, Protocol):
    """The inputs of a training."""

    @property
    def rows_at_once(self) -> Rows:
        """What memory made its trainings do before."""


Given = TypeVar("Given", bound=Trains)


def train_step(
    recipe: Recipe,
    session: Session,
    inputs: Given,
    make: Callable[[Given, Path, Progress], Mapping[str, object]],
    *,
    note: str = "",
    at: Path | None = None,
) -> Product:
    """`run_step` of a training, as the lock file says; what memory made it do is then in there.

    Raises EdgekitError for a lock file that is damaged.
    """
    before = _locked(recipe, session, inputs)
    given = inputs if before is None else cast("Given", replace(cast("DataclassInstance", inputs), rows_at_once=before))
    fresh = is_made(session, given, at=at) and not is_trained(recipe, session, inputs, at=at)
    product = run_step(session, given, make, note=note, at=at, fresh=fresh)
    found = product.facts.get(PART, {})
    if found != (before or {}):
        path = lock_path(recipe, session)
        write_lock(path, PART, {**read_lock(path, PART), _name(inputs): found})
    return product


def is_trained(recipe: Recipe, session: Session, inputs: Trains, *, at: Path | None = None) -> bool:
    """Whether the product of a training is there, made as the lock file says."""
    made, before = kept_product(session, inputs, at=at), _locked(recipe, session, inputs)
    return made is not None and (before is None or made.facts.get(PART, {}) == before)


def _locked(recipe: Recipe, session: Session, inputs: Trains) -> Rows | None:
    """What the lock file says of a training; None where it says nothing."""
    path, name = lock_path(recipe, session), _name(inputs)
    kept = read_lock(path, PART)
    return _read(kept[name], f"{path}: {PART}.{name}") if name in kept else None


def _name(inputs: Trains) -> str:
    """A training's name in the lock file: the step, and a fingerprint of what the recipe asks for."""
    asked, known = identity(inputs), vars(inputs)
    for name in [*_ELSEWHERE, *(name for name, value in known.items() if isinstance(value, Content))]:
        asked.pop(name, None)
    return f"{inputs.STEP} {fingerprint(asked)[:12]}"


def _read(table: object, where: str) -> Rows:
    """What a lock file says of a training; EdgekitError for what edgekit did not write."""
    good = isinstance(table, dict) and all(
        isinstance(plan, dict) and all(step.isdigit() and _is_rows(rows) for step, rows in plan.items())
        for plan in table.values()
    )
    if not good:
        raise EdgekitError(f"{where}: not what edgekit writes; {REMEDY}")
    return cast("Rows", table)


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and one >= 0 for one in value)
