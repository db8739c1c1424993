"""MODALITIES: what prompts are made of, and so what a model is given. A task names its own.

A prompt becomes named arrays, the inputs of the task's module by their names; what is batched, padded and fed by name is the
modality's to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgekit.modalities import text
from edgekit.modalities.encoded import Encoded


class Modality(Protocol):
    """What every modality's module offers."""

    NAME: str

    @property
    def WORDED(self) -> bool:  # noqa: N802 - a module's constant
        """Whether prompts are words, of which a vocabulary can be made."""

    @property
    def TOKENIZER(self) -> str | None:  # noqa: N802 - a module's constant
        """What the tokenizer's file is called, which ships where an artifact does not hold it; None where there is none."""

    def reads(self, folder: Path) -> bool:
        """Whether a checkpoint takes prompts of this kind, by its files."""

    def lacks(self, folder: Path) -> str | None:
        """What a checkpoint must have to be given prompts and has not, with the remedy; None where it has all."""

    def read_shipped(self, folder: Path, texts: Sequence[str], settings: Mapping[str, object], pad_id: int) -> Encoded:
        """Prompts as an app reads them by the files that ship beside an artifact, whose `settings` these are."""


# Text reads every checkpoint that none below it does.
MODALITIES: dict[str, Modality] = {text.NAME: text}


def find_modality(folder: Path) -> Modality:
    """What prompts a checkpoint takes: the last entry of MODALITIES that reads it."""
    return next(kind for kind in reversed(MODALITIES.values()) if kind.reads(folder))
