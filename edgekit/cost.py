"""Costs: what an artifact, a training and a build will take, predicted before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgekit.model import EMBEDDINGS, Model


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A predicted number and where it comes from."""

    value: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an artifact of one scheme takes, in bytes.

    file: on disk, and most where layers may stay float, which is decided at export; memory: of its weights, once they are
    loaded; read_per_token: of its weights, to decode one token, and cache_per_token: of an f16 cache of keys and values (None
    where the format does not tell them from headers). kept: what the format keeps for its next file of the same model. fitted:
    whether weights are rounded by what calibrate prompts put into them, which the float model reads once more for that.
    """

    scheme: str
    file: Figure
    memory: Figure
    read_per_token: Figure | None = None
    cache_per_token: Figure | None = None
    most: Figure | None = None
    kept: int = 0
    fitted: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What a training takes: floating-point operations in all, and bytes of memory beside the process itself."""

    operations: Figure
    memory: Figure

    def and_then(self, other: TrainingCost) -> TrainingCost:
        """Of this training and of another one behind it."""
        return TrainingCost(
            operations=replace(self.operations, value=self.operations.value + other.operations.value),
            memory=max(self.memory, other.memory, key=lambda figure: figure.value),
        )


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a model is: weights in all, those of the embedding, blocks, and channels."""

    weights: int
    embedding: int
    layers: int
    hidden: int

    @property
    def core(self) -> int:
        """Weights that every token is multiplied by."""
        return self.weights - self.embedding


def size_of(model: Model) -> Size:
    """A model's size, from its headers."""
    tables = [info for name, info in model.tensors.items() if name.endswith(EMBEDDINGS)]
    embedding = sum(info.shape[0] * info.shape[1] for info in tables)
    hidden = model.hidden
    return Size(weights=model.parameters, embedding=embedding, layers=model.layers, hidden=hidden)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A student that a target's budget may have room for, in a scheme.

    student: its keys of [student]. bytes: of the file, and most where a layer stays float, or "auto" takes its largest scheme;
    memory_mb and limits, the predicted figures by the keys of a budget (p50_ms and all that the target limits), are of that
    case. misses: by limit, how many times too much a figure is (1.2: a fifth); nothing where it fits.
    """

    student: Mapping[str, int]
    scheme: str
    bytes: int
    bytes_most: int
    memory_mb: float
    limits: Mapping[str, float]
    misses: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The factor of the limit that is missed by most; 0.0 where all hold."""
        return max(self.misses.values(), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Which student was chosen for a target, and beside which others.

    made_from: fingerprints of what decides (see `pipeline.fit`). candidates: the largest student first; chosen: an index into
    them. measured_on: the CPU and the device that were timed.
    """

    made_from: Mapping[str, str]
    candidates: tuple[Candidate, ...]
    chosen: int
    measured_on: str

    @property
    def choice(self) -> Candidate:
        """The chosen one."""
        return self.candidates[self.chosen]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a build will take; what was not estimated is 0.

    Of the build: floating-point operations by step (`pipeline.cost.seconds` tells how long they take here), memory_mb and disk_mb
    (1e6 bytes); control: the operations of a control run, None where there can be none. Of the artifact: artifact_mb, and
    artifact_most_mb where layers may stay float; needed_mb: the memory that it and its runtime need on the target. Of a decoder
    in a runtime that tells its cache: context (tokens), cache_mb, bytes_per_token. Where the scheme is found at export:
    schemes_mb, the size of each that may become the artifact, the smallest first, and judged_on, how many calibrate prompts
    decide at most.
    """

    operations: Mapping[str, float] = field(default_factory=dict)
    control: float | None = None
    memory_mb: int = 0
    disk_mb: float = 0.0
    artifact_mb: float = 0.0
    artifact_most_mb: float | None = None
    needed_mb: float = 0.0
    context: int | None = None
    cache_mb: float | None = None
    bytes_per_token: int | None = None
    schemes_mb: Mapping[str, float] | None = None
    judged_on: int | None = None

    def facts(self) -> dict[str, object]:
        """As `--dry-run --json` shows it, but for the seconds: without what is not known."""
        hidden = {"operations", "control"}
        known = {name: value for name, value in vars(self).items() if value is not None and name not in hidden}
        if self.context is None:
            del known["needed_mb"]
        return known
