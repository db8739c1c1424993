"""What flows through a build: the plan for one target, the session, what was built; and how a step runs once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit.cost import Estimate, Fit
from edgekit.errors import CheckFailed, EdgekitError
from edgekit.evidence import Report
from edgekit.inputs import Inputs, identity
from edgekit.progress import Progress
from edgekit.recipe import Recipe
from edgekit.target import Target
from edgekit.typed_json import to_table
from edgekit.workspace import NotMade, Product, Workspace, file_sha256

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from edgekit.distill import Training
    from edgekit.formats import FormatOptions
    from edgekit.history import Entry
    from edgekit.verify.baseline import Against


def _no_progress(done: int, total: int, note: str) -> None:
    """Shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A recipe with its training tables as options, read once."""

    recipe: Recipe
    training: Training


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each step will get for one target: the recipe and the target, resolved and checked."""

    settings: Settings
    target: Target
    teacher: Path | None
    """The checkpoint that the recipe names; None where it is created, until it is."""
    source: Path | None
    """The folder that the recipe names: the teacher, or what it is made of (an adapter, a classifier with other names)."""
    revision: str | None
    splits: tuple[str, ...]
    format: str
    options: FormatOptions
    """Of the format: how the artifact is written."""
    mixes: bool
    """See `Format.mixes`."""
    runtimes: tuple[str, ...]
    """Those that may answer on the target, in its order: measurements choose (see `verify.choice`)."""
    prompts: Mapping[str, Any] = field(default_factory=dict)
    """What `prompts.gather` found: rows, labels, what was left out."""
    choice: tuple[str | None, str | None] = (None, None)
    """The format and the scheme that were asked for by name, which then are parts of the bundle's name."""
    estimate: Estimate = field(default_factory=Estimate)
    """What it will take: see `pipeline.cost`."""
    fit: Fit | None = None
    """How the student was chosen, where the recipe leaves that to the target's budget (`pipeline.fit`)."""

    @property
    def recipe(self) -> Recipe:
        """What to make."""
        return self.settings.recipe

    @property
    def scheme(self) -> str:
        """The scheme, as the options name it."""
        return str(vars(self.options)["scheme"])

    @property
    def name(self) -> str:
        """The bundle's name."""
        return "-".join(part for part in (self.recipe.name, self.target.name, *self.choice) if part)

    @property
    def export(self) -> dict[str, object]:
        """Format, scheme, and the format's options that are not the defaults."""
        return {"format": self.format, "scheme": self.scheme} | _changed(self.options)

    @property
    def usable_mb(self) -> int:
        """What a model and its process may take on the target."""
        return self.target.hardware.usable_mb or self.target.hardware.memory_mb

    def describe(self) -> dict[str, object]:
        """What `--dry-run` shows."""
        return {
            "recipe": self.recipe.name,
            "target": self.target.name,
            "bundle": self.name,
            "task": self.recipe.task,
            "teacher": str(self.source) if self.source else None,
            "revision": self.revision,
            "data": dict(self.prompts),
            "steps": list(self.steps),
            "export": self.export,
            "runtimes": list(self.runtimes),
            "usable_mb": self.usable_mb,
            "estimate": self.estimate.facts(),
            **({"fit": to_table(self.fit)} if self.fit else {}),
        }

    @property
    def steps(self) -> tuple[str, ...]:
        """The verbs that a build runs for it, in order."""
        from edgekit.linear import is_drawn

        recipe = self.recipe
        made = {
            "labels": recipe.labelling is not None,
            "create": recipe.teacher.create is not None,
            "finetune": recipe.teacher.finetune is not None,
            "answers": recipe.answers is not None,
            "importance": recipe.student is not None and recipe.student.by_importance,
            "signals": recipe.student is not None and self.settings.training.distill.signals == "recorded",
            "distill": recipe.student is not None,
            "control": self.settings.training.control,
            "linear": is_drawn(recipe, self.prompts),
            "qad": recipe.qad is not None,
        }
        return (
            *(step for step, wanted in made.items() if wanted),
            "record",
            "calibrate",
            "export",
            "verify",
            "package",
        )


def _changed(options: DataclassInstance) -> dict[str, object]:
    """The options that are not the defaults."""
    return {field.name: value for field in fields(options) if (value := getattr(options, field.name)) != field.default}


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build made for one target, or why it could not."""

    target: str
    report: Report | None = None
    bundle: Path | None = None
    archive: Path | None = None
    evidence: Path | None = None
    tuning: Path | None = None
    products: Mapping[str, Path] = field(default_factory=dict)
    error: EdgekitError | None = None
    against: Against | None = None
    """What became of it since a baseline, where one was asked for and has an earlier artifact of its line."""

    def exit_code(self, *, strict: bool = False) -> int:
        """What this one alone would end a command with: see `build.exit_code`."""
        verdict = self.report.verdict if self.report else None
        failed = verdict == "fail" or (strict and verdict == "not proven")
        return max(self.error.exit_code if self.error else 0, CheckFailed.exit_code if failed else 0)

    def files(self) -> dict[str, str | None]:
        """Where bundle and archive lie; None where they were not written."""
        return {
            "bundle": str(self.bundle) if self.bundle else None,
            "archive": str(self.archive) if self.archive else None,
        }

    def summary(self, *, strict: bool = False) -> dict[str, object]:
        """The entry of `build --json`."""
        report = self.report
        artifact, latency = (report.artifact, report.latency_ms) if report else (None, None)
        return {
            "target": self.target,
            "format": artifact.format if artifact else None,
            "scheme": artifact.scheme if artifact else None,
            "verdict": report.verdict if report else None,
            "exit_code": self.exit_code(strict=strict),
            **self.files(),
            "sha256": artifact.sha256 if artifact else None,
            "archive_sha256": file_sha256(self.archive) if self.archive else None,
            "bytes": artifact.bytes if artifact else None,
            "accuracy": report.accuracy if report else None,
            "p50_ms": latency.p50 if latency else None,
            "p95_ms": latency.p95 if latency else None,
            "memory_mb": report.memory_mb if report else None,
            "comparable": to_table(report.comparable) if report and report.comparable else None,
            "sustained": to_table(report.sustained) if report and report.sustained else None,
            "baseline": to_table(report.baseline) if report and report.baseline else None,
            "control": to_table(report.control) if report and report.control else None,
            "tuning": str(self.tuning) if self.tuning else None,
            "energy_j": to_table(report.energy_j) if report and report.energy_j else None,
            "report": str(self.evidence) if self.evidence else None,
            "error": self.error.message if self.error else None,
            **({"against": to_table(self.against)} if self.against else {}),
            **({"recovery": to_table(report.recovery)} if report and report.recovery else {}),
        }


class Listener:
    """What a build tells while it runs; the command line shows it, tests ignore it."""

    def begin(self, step: str, note: str = "", *, bundle: str = "") -> Progress:
        """A step starts, of a bundle where a build makes several; returns where its progress goes."""
        return _no_progress

    def end(self, step: str, product: Path, *, kept: bool, bundle: str = "") -> None:
        """A step's product is there, made now or kept from an earlier build."""

    @contextmanager
    def during(self, what: str, note: str = "") -> Iterator[None]:
        """What is no step and may take long: reading data, fetching a checkpoint."""
        yield

    def say(self, text: str) -> None:
        """A line for the user: what a verdict can prove, a warning."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where products are kept and who listens; `fresh` measures again, `final` judges on the recipe's final split.

    bundle: which one the steps are of, where a build makes several; the listener is told. baseline: earlier measurements that
    an artifact must not fall behind. recover: the minutes that may be spent on rungs where a gate fails (`pipeline.ladder`).
    """

    workspace: Workspace
    out: Path
    listener: Listener = field(default_factory=Listener)
    fresh: bool = False
    strict: bool = False
    final: bool = False
    bundle: str = ""
    baseline: tuple[Entry, ...] = ()
    recover: float | None = None


Given = TypeVar("Given", bound=Inputs)


def run_step(
    session: Session,
    inputs: Given,
    make: Callable[[Given, Path, Progress], Mapping[str, object]],
    *,
    note: str = "",
    at: Path | None = None,
    fresh: bool = False,
) -> Product:
    """Make a step's product of its inputs once: in the workspace, or at the folder that a stage command names."""
    name, progress = inputs.STEP, list[Progress]()

    def begin(out: Path) -> Mapping[str, object]:
        progress.append(session.listener.begin(name, note, bundle=session.bundle))
        return make(inputs, out, progress[0])

    product = session.workspace.once(name, identity(inputs), begin, at=at, fresh=fresh)
    session.listener.end(name, product.folder, kept=not progress, bundle=session.bundle)
    return product


def kept_product(session: Session, inputs: Inputs, *, at: Path | None = None) -> Product | None:
    """The product of these inputs where it is there, in the session's workspace or `at` a folder; makes none."""
    try:
        return Workspace(session.workspace.root, makes=False).once(inputs.STEP, identity(inputs), lambda _: {}, at=at)
    except NotMade:
        return None


def is_made(session: Session, inputs: Inputs, *, at: Path | None = None) -> bool:
    """Whether `kept_product` finds one."""
    return kept_product(session, inputs, at=at) is not None
