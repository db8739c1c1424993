"""What verify is given, and what one run of it has opened of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgekit import gate
from edgekit.evidence import Coverage, FloatModel, PromptFacts
from edgekit.inputs import LATER, Content, Json
from edgekit.progress import Progress
from edgekit.prompts import Prompt, PromptSet
from edgekit.recipe import AS_CALIBRATED, Rejection
from edgekit.reference import Reference
from edgekit.target import Measure
from edgekit.typed_json import read_table
from edgekit.workspace import Product, open_product

if TYPE_CHECKING:
    from edgekit.artifact import Artifact
    from edgekit.devices import Device
    from edgekit.target import Budget, Hardware


@dataclass(frozen=True, kw_only=True)
class VerifyInputs:
    """What verify is given: what is judged and beside what, the terms that it is held to, where it runs, and which look this is.

    artifact, reference: the folders of export and record; settings: a fingerprint of what export says of the artifact. student,
    teacher: the digest and the origin of the models that were recorded. foreign_teacher: why that teacher is not the recipe's,
    where it is not: then nothing is compared with it, and nothing passes. prompts: their folder, and data: what is said of them
    in a report. calibration: of the float student, where the report says how well it covers the prompts.

    task, max_length, out_of_scope (the label of texts that belong to no class), rejection and accuracy (its table) are the
    recipe's. target is the target's name; hardware, runtime (its tables) and budget (for the task) are what it says. libraries:
    the versions of what the answers depend on. measure: how much is measured beside what the limits need. device is who the
    device is, facts what it says of itself; host is what this machine's arithmetic depends on, where the device is another one:
    its answers are compared with those here. linear: the linear model that the report draws as a line, and hashed: whether the
    student is a table of n-grams itself, so that none is advised. control: the record of the student without its teacher, and
    taught: of the one with it, where the reference is of what a later step made of that. who_taught: in words, where several did.
    """

    STEP: ClassVar[str] = "verify"
    artifact: Content
    settings: str
    reference: Content
    student: str
    teacher: str
    foreign_teacher: str | None = None
    prompts: Content
    data: Mapping[str, Json]
    calibration: Content | None = None
    task: str
    max_length: int
    out_of_scope: str | None
    rejection: Rejection = AS_CALIBRATED
    accuracy: Mapping[str, object]
    target: str
    hardware: Hardware
    runtime: Mapping[str, Mapping[str, object]]
    budget: Budget
    measure: Measure = field(default_factory=Measure)
    libraries: Mapping[str, str]
    device: str
    facts: Mapping[str, object]
    host: Mapping[str, object] = field(default_factory=dict)
    look: gate.Look
    linear: Content | None = None
    hashed: bool = False
    control: Content | None = None
    taught: Content | None = None
    who_taught: str | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One verify: its inputs, and what was opened of them."""

    inputs: VerifyInputs
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
    control_offer: str | None
    models: Mapping[str, FloatModel]
    data: PromptFacts | None
    progress: Progress
    out: Path

    @property
    def file(self) -> Path:
        """The artifact's main file."""
        return self.inputs.artifact.path / self.artifact.file.name

    @property
    def budget(self) -> Budget:
        """The limits of the target for this task."""
        return self.inputs.budget

    def split(self, name: str) -> Sequence[Prompt]:
        """The prompts of a split."""
        return PromptSet(folder=self.inputs.prompts.path).split(name)


def read_facts(prompts: Path) -> PromptFacts | None:
    """What `gather` says of the prompts: rows, labels, what was left out; None of a folder that it did not make."""
    if not (prompts / "prompts.json").is_file():
        return None
    facts = open_product(prompts, "prompts").facts
    known = {key: facts[key] for key in ("rows", "dropped", "unusual", "notes")}
    return read_table(PromptFacts, {**known, "labels": len(facts["labels"])}, f"{prompts / 'prompts.json'}: facts")
