"""Inputs: what a step is given, as one frozen dataclass, whose fields are the step's arguments and what its fingerprint covers.

So nothing that a step reads can be missing from the fingerprint, and nothing has to be listed twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

# The metadata of a field that came later than the first products. While it has its default no fingerprint knows of it, so that
# what was made of the same inputs before stays theirs.
LATER: Mapping[str, bool] = {"later": True}
# The metadata of a field that changes nothing of what is made: no fingerprint covers it.
BESIDE: Mapping[str, bool] = {"beside": True}

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


class Inputs(Protocol):
    """A frozen dataclass of Json values, contents and further such dataclasses."""

    STEP: ClassVar[str]
    """The step that they are for: a key of `workspace.STEPS`."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """A folder or file that a step reads, known by what is in it and not by where it lies.

    digest: sha256 over all of it, or over each part that the step reads, by name.
    """

    path: Path
    digest: str | Mapping[str, str]


def identity(inputs: object) -> dict[str, Json]:
    """What a fingerprint covers of inputs: every field but what is BESIDE and what came LATER and is not used, of a content its
    digest.

    Raises TypeError for a field whose value has no canonical JSON: a path, a function.
    """
    if not dataclasses.is_dataclass(inputs):
        raise TypeError(f"{inputs!r}: inputs are a dataclass")
    fields = [field for field in dataclasses.fields(inputs) if not _is_unused(field, inputs)]
    return {field.name: _identity(getattr(inputs, field.name)) for field in fields}


def _is_unused(field: dataclasses.Field[object], inputs: object) -> bool:
    later = bool(field.metadata.get("later")) and getattr(inputs, field.name) == field.default
    return later or bool(field.metadata.get("beside"))


def _identity(value: object) -> Json:
    if isinstance(value, Content):
        return value.digest
    if dataclasses.is_dataclass(value):
        return identity(value)
    if isinstance(value, Mapping):
        return {str(key): _identity(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r}: has no canonical JSON, so no fingerprint can cover it")
