"""The evidence about an artifact: `Report`, which verify writes as report.json, and all that is in it.

It reads and writes its own JSON and draws nothing: `report` shows it, `verify` makes it. Times are milliseconds, sizes bytes,
memory MiB; a *role* is "teacher", "student" (the float student), "control" (the same without its teacher) or "artifact".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgekit import gate
from edgekit.errors import EdgekitError
from edgekit.recovery import Recovery
from edgekit.schema import dump_json, read_json
from edgekit.times import Comparable, Roofline, Sustained, Tuning
from edgekit.typed_json import MAY_BE_ABSENT, read_table, to_table

FILE = "report.json"
Interval = tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One verdict. `loss`, `bound` and `interval` are None where nothing was estimated; `looks` counts those at the
    prompts, or of a time the measurements.

    detail says in words what a bare figure leaves open.
    """

    name: str
    measured: int | float | str | None
    limit: int | float | str | None
    verdict: gate.Verdict
    loss: float | None = None
    bound: float | None = None
    interval: Interval | None = None
    looks: int = 1
    remedy: str | None = None
    detail: str | None = None

    def finite(self) -> Check:
        """As report.json has it: JSON has no infinity, so a bound or an interval that is none is None there."""
        bounded = self.interval is not None and all(end is None or math.isfinite(end) for end in self.interval)
        return replace(
            self,
            measured=self.measured if isinstance(self.measured, str | None) else finite(self.measured),
            limit=self.limit if isinstance(self.limit, str | None) else finite(self.limit),
            loss=finite(self.loss),
            bound=finite(self.bound),
            interval=self.interval if bounded else None,
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One candidate against one reference in one metric. A margin of None is shown and not judged.

    loss, bound, lo: fractions (cosine: 1 - cosine, 0..2), bound being the upper one; None where JSON has no such number. flips:
    prompts lost and gained (of neighbours: changed). divergence: mean KL in nats or mean cosine, whichever the output has.
    prompts_needed: of a fresh set, to prove the margin if loss and flips stay as they are. reason: why nothing can be proven,
    where that is not chance's doing.
    """

    reference: str
    candidate: str
    metric: str
    score: float | None
    reference_score: float | None
    loss: float | None
    lo: float | None
    bound: float | None
    margin: float | None
    prompts: int
    prompts_needed: int | None
    flips: Mapping[str, int]
    agreement: float | None
    divergence: Mapping[str, float]
    verdict: gate.Verdict | None
    alpha: float = gate.ALPHA
    reason: str | None = None

    def finite(self) -> Comparison:
        """As report.json has it: JSON has no infinity, so a bound that is none is None there."""
        return replace(
            self,
            score=finite(self.score),
            reference_score=finite(self.reference_score),
            loss=finite(self.loss),
            lo=finite(self.lo),
            bound=finite(self.bound),
            margin=finite(self.margin),
            agreement=finite(self.agreement),
        )


def finite(value: float | None) -> float | None:
    """A number that JSON can hold: None for what is infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class ArtifactFacts:
    """Which artifact was judged."""

    format: str
    scheme: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One timed call: prompts, tokens of each, and threads (None: the runtime's own choice). Of a decoder `sequence` is the
    number of tokens before the one that is timed."""

    batch: int
    sequence: int
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """The median of some times, and the one that 19 of 20 do not exceed."""

    p50: float
    p95: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """An artifact's times: of a call over all processes, of the first call, and of opening the file.

    bounds: by quantile, the bounds over all processes, each one-sided. first_ten: the calls that an app makes first, one by one;
    cold: from the start of the process, its libraries and all, to its first answer. None where nobody measured them.
    """

    p50: float
    p95: float
    first: float
    load: float
    p99: float | None = field(default=None, metadata=MAY_BE_ABSENT)
    bounds: Mapping[str, Interval] | None = field(default=None, metadata=MAY_BE_ABSENT)
    first_ten: tuple[float, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    cold: float | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class EnergyUse:
    """Joules of one call, of a decoder of one new token: of all that the meter covers, and above its idle power. method: which
    meter."""

    net: float
    gross: float
    method: str


@dataclass(frozen=True, kw_only=True)
class OwnLengths:
    """Times at the prompts' own lengths, which have so many tokens on average."""

    p50: float
    p95: float
    mean_tokens: float


@dataclass(frozen=True, kw_only=True)
class RuntimeVersion:
    """The runtime that answered."""

    name: str
    version: str


@dataclass(frozen=True, kw_only=True)
class RuntimeTime:
    """A runtime that could have answered, and its median call on the device, of several processes, in ms."""

    name: str
    version: str
    p50_ms: float


@dataclass(frozen=True, kw_only=True)
class Vouches:
    """Whether the machine that measured may vouch for the target.

    foreign: why it may not; scales: what a lower and an upper bound of a time are multiplied with; rule: what a machine must be.
    """

    scales: tuple[float, float]
    foreign: tuple[str, ...]
    rule: str = field(metadata={"key": "told"})


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Tokens per second: written, and read of a prompt."""

    decode: float
    prefill: float


@dataclass(frozen=True, kw_only=True)
class TimedAt:
    """A float model's times at one shape, batch 1."""

    sequence: int
    threads: int
    p50: float
    p95: float


@dataclass(frozen=True, kw_only=True)
class FloatModel:
    """What a float model costs in torch, by the record: on the prompts' own lengths, and `at` shapes of artifacts.

    busy: the load average then, None where the system does not tell. ttft_ms, tokens_per_second: of a decoder.
    """

    bytes: int
    latency_ms: Quantiles
    at: tuple[TimedAt, ...]
    memory_mb: float | None
    threads: int
    busy: float | None
    ttft_ms: float | None = field(default=None, metadata=MAY_BE_ABSENT)
    tokens_per_second: Rates | None = field(default=None, metadata=MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class PromptFacts:
    """What `prompts.gather` says: rows of each split, labels, rows left out or unusual by split and reason, and all in words."""

    rows: Mapping[str, int]
    labels: int
    dropped: Mapping[str, Mapping[str, int]]
    unusual: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CoveredLengths:
    """Quartiles of tokens (least, 25 %, 50 %, 75 %, most), and the share of verify prompts longer than all calibrate prompts."""

    seen: tuple[int, ...]
    held_out: tuple[int, ...]
    longer_share: float


@dataclass(frozen=True, kw_only=True)
class CoveredWords:
    """How many words the calibrate prompts have, and the share of the verify prompts' words that are new."""

    words: int
    new_share: float


@dataclass(frozen=True, kw_only=True)
class CoveredLabels:
    """How many labels have a calibrate prompt, which have none, and how few prompts the rarest has."""

    seen: int
    unseen: tuple[str, ...]
    fewest: int


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How well the calibrate prompts (`seen`) cover the verify prompts (`held_out`): see `calibrate.cover`.

    outside_ranges: by layer, the share of activations outside the calibrated range, where there are any.
    """

    seen: int
    held_out: int
    length: CoveredLengths
    vocabulary: CoveredWords
    labels: CoveredLabels
    truncated: int
    outside_ranges: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """A layer's squared error as a share of its output's power."""

    name: str
    error: float


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A mistake, `answer` for `label`: how often the artifact makes it and the float student does not, and the reverse."""

    label: str = field(metadata={"key": "from"})
    answer: str = field(metadata={"key": "to"})
    gained: int
    lost: int


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """KL divergence from the float student, nats per token; None where the artifact's answers are no numbers."""

    mean: float | None
    p99: float | None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a decoder ran: bytes read per token and the share of the memory's bandwidth that this is, memory by moment, threads
    of prefill and decode, and the times of the first token in a cold process by prompt length."""

    bytes_per_token: float
    memory_mb: Mapping[str, float]
    roofline_share: float
    threads: Mapping[str, object]
    ttft_cold_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The line that an artifact must be above to earn its place: a linear model of hashed n-grams, fitted on the train split's
    labels, in int8 (`edgekit.linear`), answered on this machine.

    accuracy: of the labelled verify prompts, of which there are so many; difference: the artifact's less this one, and interval:
    its paired bounds, each one-sided. p50_ms: at the artifact's shape, one thread, where the build ran; None where the device is
    another machine. note: what to ship instead, where the artifact is not proven better.
    """

    accuracy: float
    bytes: int
    p50_ms: float | None
    difference: float
    interval: Interval
    prompts: int
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Control:
    """What the teacher added: the float student beside the same one that had no teacher, both on the verify prompts. It began
    from the same weights and saw the same batches, as many steps, by labels or next tokens alone.

    metric: accuracy, the share of right answers; or nats, of a decoder: the mean surprise of a token, where less is better.
    student, control: of each; difference: what the teacher made better (its sign is that of the gain), and interval: its paired
    bounds, each one-sided, None where nothing bounds it. prompts: how many were judged. note: what to do where the teacher is
    proven to harm, or nothing is proven.
    """

    metric: Literal["accuracy", "nats"]
    student: float
    control: float
    difference: float
    interval: Interval
    prompts: int
    note: str | None


@dataclass(frozen=True, kw_only=True)
class OnHost:
    """The same artifact on the same prompts, on the device and on the machine that ran edgekit, both against the float student.

    ratio: the device's mean error by this machine's, with its interval; an error is what `unit` says. cpu: of this machine;
    exact: whether its products of bytes were. moved: prompts whose answers differ by more than rounding. diagnosis: the cause, as
    far as one was found; predicted, recall, precision: of a cause that says which prompts (saturation), how many, and how that
    meets the ones that differ.
    """

    cpu: str
    exact: bool
    unit: str
    ratio: float | None
    interval: Interval
    prompts: int
    moved: int
    diagnosis: str | None
    predicted: int | None
    recall: float | None
    precision: float | None
    verdict: gate.Verdict


@dataclass(frozen=True, kw_only=True)
class Report:
    """What verify found about one artifact on one device, judged against the target's budget and the recipe's margins.

    The last fields are absent from the JSON of outputs that have none: latency_real is of what gives a row per prompt, scope (by
    role) and confusion of a classifier, all from kl on of a decoder (perplexity by role, ttft_ms by prompt length).
    runtimes: those that the target let measurements choose from, where there were several. emulated: whether an emulator did:
    then no speed and no memory of it is the device's. comparable is of every report that this edgekit writes; sustained and
    tuning are where they were asked for. roofline: of a call on the CPU, of a decoder of one new token, roofline_prompt of its
    longest prompt; None where a speed was not measured. host: where the device is another
    machine, how its answers compare with this machine's. baseline: of a classifier whose train split has labels. control: where
    the recipe asks for a student without its teacher; control_offer: how to ask for one, where there is none and can be.
    accuracy, models: by role. device, work: what the machine is and what one call does, as the probe says it. prompts: how many
    were judged. margins: the limits of the recipe, with defaults. coverage, data: None where nobody knows.
    energy_j: what a call costs, where a meter told; no_energy: else why none did.
    latency_raw_ms are all timed calls, latency_processes_ms the quantiles of each process, of this, the n-th, `measurement`.
    """

    verdict: gate.Verdict
    accuracy_only: bool
    target: str
    artifact: ArtifactFacts
    checks: tuple[Check, ...]
    comparisons: tuple[Comparison, ...]
    accuracy: Mapping[str, float | None]
    margins: Mapping[str, int | float | None]
    look: gate.Look
    prompts: int
    latency_ms: Latency
    latency_processes_ms: tuple[Quantiles, ...]
    latency_raw_ms: tuple[float, ...]
    measurement: int
    memory_mb: float | None
    shape: Shape
    device: Mapping[str, object]
    runtime: RuntimeVersion
    work: Mapping[str, object]
    vouches: Vouches
    busy: float | None
    disturbed: tuple[str, ...]
    models: Mapping[str, FloatModel]
    layers: tuple[LayerError, ...]
    coverage: Coverage | None
    data: PromptFacts | None
    notes: tuple[str, ...]
    latency_real: OwnLengths | None = field(default=None, metadata=MAY_BE_ABSENT)
    scope: Mapping[str, Mapping[str, float]] | None = field(default=None, metadata=MAY_BE_ABSENT)
    confusion: tuple[Confusion, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    kl: Divergence | None = field(default=None, metadata=MAY_BE_ABSENT)
    top1: float | None = field(default=None, metadata=MAY_BE_ABSENT)
    perplexity: Mapping[str, float | None] | None = field(default=None, metadata=MAY_BE_ABSENT)
    tokens: int | None = field(default=None, metadata=MAY_BE_ABSENT)
    ttft_ms: Mapping[str, float] | None = field(default=None, metadata=MAY_BE_ABSENT)
    tokens_per_second: Rates | None = field(default=None, metadata=MAY_BE_ABSENT)
    generation: Generation | None = field(default=None, metadata=MAY_BE_ABSENT)
    runtimes: tuple[RuntimeTime, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)
    energy_j: EnergyUse | None = field(default=None, metadata=MAY_BE_ABSENT)
    no_energy: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    emulated: bool | None = field(default=None, metadata=MAY_BE_ABSENT)
    comparable: Comparable | None = field(default=None, metadata=MAY_BE_ABSENT)
    sustained: Sustained | None = field(default=None, metadata=MAY_BE_ABSENT)
    tuning: Tuning | None = field(default=None, metadata=MAY_BE_ABSENT)
    roofline: Roofline | None = field(default=None, metadata=MAY_BE_ABSENT)
    roofline_prompt: Roofline | None = field(default=None, metadata=MAY_BE_ABSENT)
    host: OnHost | None = field(default=None, metadata=MAY_BE_ABSENT)
    baseline: Baseline | None = field(default=None, metadata=MAY_BE_ABSENT)
    control: Control | None = field(default=None, metadata=MAY_BE_ABSENT)
    control_offer: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    recovery: Recovery | None = field(default=None, metadata=MAY_BE_ABSENT)

    def to_json(self) -> str:
        """The text of report.json: equal reports are equal bytes."""
        return dump_json(to_table(self))

    def verdicts(self) -> dict[str, object]:
        """The verdict, and those of the checks by name: what the step's manifest says."""
        return {"verdict": self.verdict, "checks": {check.name: check.verdict for check in self.checks}}


def read_report(path: Path) -> Report:
    """The report of a verify step's folder, or of a file; EdgekitError where it is none, or one of another version."""
    path = path / FILE if path.is_dir() else path
    content = read_json(path)
    try:
        return read_table(Report, content, str(path))
    except EdgekitError as wrong:
        raise EdgekitError(f"{wrong.message}; not a report that edgekit verify wrote") from wrong


def whole_verdict(checks: Sequence[Check]) -> gate.Verdict:
    """fail where any check fails, pass only where all pass, else not proven."""
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "not proven"
