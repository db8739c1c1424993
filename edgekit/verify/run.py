"""What one verify is about: the subject, the terms that it is held to, and where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import gate
from edgekit.evidence import Coverage, FloatModel, PromptFacts
from edgekit.progress import Progress
from edgekit.prompts import Prompt, PromptSet
from edgekit.recipe import AS_CALIBRATED, Rejection
from edgekit.reference import Reference
from edgekit.workspace import Product

if TYPE_CHECKING:
    from edgekit.artifact import Artifact
    from edgekit.devices import Device
    from edgekit.target import Budget, Target


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is judged, and beside what: the folders of export, record and prompts.

    foreign_teacher: why the record's teacher is not the recipe's, where it is not: then nothing is compared with it, and nothing
    passes.
    """

    artifact: Path
    reference: Path
    prompts: Path
    foreign_teacher: str | None = None


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the artifact is held to: a recipe's task and tables, a target's hardware and budget, and which look this is.

    accuracy: the recipe's `[accuracy]` table. out_of_scope: the label of texts that belong to no class.
    """

    task: str
    target: Target
    accuracy: Mapping[str, object]
    out_of_scope: str | None
    look: gate.Look
    rejection: Rejection = AS_CALIBRATED


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one verify is about."""

    subject: Subject
    terms: Terms
    artifact: Artifact
    recorded: Product
    reference: Reference
    device: Device
    runtimes: tuple[str, ...]
    """Those that the target lets answer, in its order."""
    runtime: str
    """The one that does."""
    options: Mapping[str, object]
    coverage: Coverage | None
    models: Mapping[str, FloatModel]
    data: PromptFacts | None
    progress: Progress
    out: Path

    @property
    def file(self) -> Path:
        """The artifact's main file."""
        return self.subject.artifact / self.artifact.file.name

    @property
    def budget(self) -> Budget:
        """The limits of the target for this task."""
        return self.terms.target.budget_for(self.terms.task)

    def split(self, name: str) -> list[Prompt]:
        """The prompts of a split."""
        return PromptSet(folder=self.subject.prompts).split(name)
