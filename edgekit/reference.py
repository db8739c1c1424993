"""The reference: what `record` says of the teacher's and the float student's answers, which lie beside it in reference.npz.

It reads and writes its own JSON, the `facts` of the step's record.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.evidence import FloatModel
from edgekit.typed_json import MAY_BE_ABSENT, read_table, to_table

if TYPE_CHECKING:
    from edgekit.workspace import Product


@dataclass(frozen=True, kw_only=True)
class OwnersRows:
    """How a float model's ids and rows differ from those of its owner's library, `by`, on the verify prompts.

    ids_equal, answers_equal: of how many of the `rows` prompts both are the same, None where nobody could be asked; compared: on
    how many edgekit's own model answered too. first: the first difference; failed: why the library could not be asked; limits:
    what could not be compared.
    """

    by: str | None
    rows: int
    ids_equal: int | None
    answers_equal: int | None
    first: str | None
    failed: str | None
    limits: str | None
    compared: int


@dataclass(frozen=True, kw_only=True)
class OwnersAnswers:
    """How decoders' ids and greedy answers differ from those of transformers' `generate`: how many were compared and were equal,
    and the first difference in words."""

    rows: int
    ids_equal: int
    answers: int
    answers_equal: int
    difference: str | None


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """What was recorded of decoders: how many passages, and tokens of them, are scored, how many verify prompts are not
    (`left_out`), and how many choices are compared.

    shared_vocabulary: whether a token means the same to both models. max_new: most new tokens of an answer; stop: the ids that
    end one.
    """

    passages: int
    tokens: int
    left_out: int
    choices: int
    shared_vocabulary: bool
    max_new: int
    stop: tuple[int, ...]
    as_original: OwnersAnswers


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What was recorded, whatever the kind of answer: prompts by split, the longest text in tokens, what the float models cost.

    original: of rows, by role; sequences: of decoders.
    """

    output: str
    classes: tuple[str, ...]
    rows: Mapping[str, int]
    max_length: int
    models: Mapping[str, FloatModel]
    warnings: tuple[str, ...]
    original: Mapping[str, OwnersRows] | None = field(default=None, metadata=MAY_BE_ABSENT)
    sequences: Sequences | None = field(default=None, metadata=MAY_BE_ABSENT)

    def facts(self) -> dict[str, object]:
        """What the step's manifest says of it."""
        return to_table(self)


def read_reference(product: Product) -> Reference:
    """The reference of a finished record step; EdgekitError where its manifest says something else of it."""
    # Which texts it has read, and of what it is a recording, is the step's (`pipeline.origin`), and no part of it.
    facts = {key: value for key, value in product.facts.items() if key not in {"read", "recording"}}
    try:
        return read_table(Reference, facts, f"{product.folder / 'record.json'}: facts")
    except EdgekitError as wrong:
        raise EdgekitError(f"{wrong.message}; another version recorded this: run `edgekit record` again") from wrong
