"""Target: where the model must run. One TOML file per board or device; adding one needs no Python."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from edgekit.errors import EdgekitError
from edgekit.recipe import packaged
from edgekit.schema import nearest, parse, read_text, read_toml
from edgekit.workspace import make_folder, write_atomically

QUANTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """`[hardware.gpu]`: an accelerator. copy_gbs: bytes read plus written by a copy in its memory, GB/s; fp16_gflops: throughput
    of a product of 16-bit floats, 10^9 operations a second; both in onnxruntime. Absent is what nobody has measured."""

    name: str
    memory_mb: Annotated[int, Gt(0)] | None = None
    copy_gbs: Annotated[float, Gt(0)] | None = None
    fp16_gflops: Annotated[float, Gt(0)] | None = None
    driver: str | None = None
    cuda: str | None = None
    vulkan: str | None = None


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What is known of the device, with its sources.

    arch: "x86_64" or "aarch64" (`uname -m`), "wasm32" for browsers. cpu: the model's name on x86 ("Intel(R) N100"), the cores'
    on ARM ("Cortex-A76", clusters joined by " + ", largest first). features: as Linux prints them in /proc/cpuinfo (asimddp,
    avx512_vnni, ...), of those that matrix products use. usable_mb: what a model and its process may take. bandwidth_gbs:
    copy bandwidth of one core, bytes read plus written, GB/s. int8_gops and fp32_gflops: throughput of one core's matrix
    product, 10^9 operations (multiply and add are two) per second. All are measured or derived from a measurement: sources
    says whose, notes says what is not certain, and what nobody has published is absent. generic: the facts are a floor that
    many machines meet, not one machine's. gpu: of the accelerator that does the work, in a target for one; `accelerator` names
    it, or one that is not used.
    """

    arch: str
    cpu: str
    cores: Annotated[int, Ge(1)]
    features: list[str]
    memory_mb: Annotated[int, Gt(0)]
    sources: list[str]
    usable_mb: Annotated[int, Gt(0)] | None = None
    clock_ghz: Annotated[float, Gt(0)] | None = None
    bandwidth_gbs: Annotated[float, Gt(0)] | None = None
    int8_gops: Annotated[float, Gt(0)] | None = None
    fp32_gflops: Annotated[float, Gt(0)] | None = None
    generic: bool = False
    accelerator: str | None = None
    gpu: Gpu | None = None
    notes: str | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits. p50_ms, p95_ms and p99_ms are for batch 1 at `sequence` tokens; memory_mb is the peak of the whole process; bytes
    the artifact's.

    Of text-generation these three are of one new token, ttft_ms of the first one behind a prompt of `sequence` tokens, and
    tokens_per_second are the least that a target wants written.
    """

    p50_ms: Annotated[float, Gt(0)] | None = None
    p95_ms: Annotated[float, Gt(0)] | None = None
    p99_ms: Annotated[float, Gt(0)] | None = None
    memory_mb: Annotated[float, Gt(0)] | None = None
    bytes: Annotated[int, Gt(0)] | None = None
    ttft_ms: Annotated[float, Gt(0)] | None = None
    tokens_per_second: Annotated[float, Gt(0)] | None = None
    sequence: Annotated[int, Ge(1)] = 64

    @property
    def limits_time(self) -> bool:
        """Whether any limit is one of speed."""
        return bool(self.quantiles) or self.ttft_ms is not None or self.tokens_per_second is not None

    @property
    def quantiles(self) -> dict[str, float]:
        """The quantiles of a call's time that are limited, by the limit's key."""
        return {key: q for key, q in QUANTILES.items() if getattr(self, key) is not None}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How much is measured, beside what the limits need: `[measure]`.

    processes: how many time an artifact at most; more than the default eight prove a limit that is nearly reached, and it ends
    at looks that are fixed beforehand. sustained_s: calls without a pause for so many seconds, shown as a curve. sweep: which
    threads and cores are the best, for tuning.json.
    """

    processes: Annotated[int, Ge(5), Le(64)] | None = None
    sustained_s: Annotated[float, Gt(0), Le(3000)] | None = None
    sweep: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where it must run. The tables `export` (per task), `runtime` (per runtime) and `device` stay raw: the entry that
    each names checks the rest. probed: what `edgekit targets probe` saw of the board on that day; nothing is judged by it."""

    title: str
    hardware: Hardware
    export: dict[str, dict[str, object]]
    runtime: dict[str, dict[str, object]] = field(default_factory=dict)
    device: dict[str, object] = field(default_factory=lambda: {"kind": "local"})
    budget: dict[str, object] = field(default_factory=dict)
    probed: dict[str, object] = field(default_factory=dict)
    measure: Measure = field(default_factory=Measure)
    # Set by load_target, not by the file.
    name: str = ""
    path: Path = Path()

    def budget_for(self, task: str) -> Budget:
        """The limits for a task: `[budget]` with `[budget.<task>]` over it; EdgekitError for what is no limit."""
        own = self.budget.get(task, {})
        if not isinstance(own, dict):
            raise EdgekitError(f"{self.path}: budget.{task}: should be a table of limits, got {own!r:.60}")
        shared = {key: value for key, value in self.budget.items() if not isinstance(value, dict)}
        return parse(Budget, shared | own, f"{self.path}: budget")

    def export_for(self, task: str) -> dict[str, object]:
        """The raw `[export.<task>]` table; EdgekitError where the target has none."""
        if task not in self.export:
            raise EdgekitError(
                f"{self.path}: export.{task}: missing; this target cannot build {task} (has: {', '.join(sorted(self.export))})"
            )
        return self.export[task]


def with_export(target: Target, task: str, changes: Mapping[str, object], format_name: str | None = None) -> Target:
    """The target with other options of a task's format; of another format than its own, over that one's defaults.

    Raises EdgekitError where the target has no table for the task.
    """
    table = target.export_for(task)
    if format_name is not None and format_name != table.get("format"):
        table = {"format": format_name}
    return replace(target, export={**target.export, task: {**table, **changes}})


def load_target(name: str) -> Target:
    """Find a target by path (ending in .toml), then in ./targets, then among the packaged ones, and read it.

    Raises EdgekitError for an unknown name, for unknown, missing or wrongly typed keys, and for values out of their bounds.
    """
    path = Path(name) if name.endswith(".toml") else find_targets().get(name)
    if path is None:
        raise EdgekitError(
            f"target {name!r}: unknown{nearest(name, find_targets())}; looked among the packaged ones and in"
            f" {Path('targets').resolve()}; `edgekit targets list` shows them all"
        )
    table = read_toml(path)
    for key in ("name", "path"):
        if key in table:
            raise EdgekitError(
                f"{path}: {key}: this key is set by edgekit (the file's name is the target's); remove it"
            )
    target = parse(Target, table, str(path))
    _check_threads(target, path)
    return replace(target, name=path.stem, path=path)


def copy_target(name: str, new: str, *, out: Path = Path("targets"), force: bool = False) -> Path:
    """Write a target's file as `out`/NEW.toml, to be edited; the new file's path.

    Raises EdgekitError for an unknown target, a name that is no file name or is a target already (unless `force`), and a folder
    that cannot be written.
    """
    source = load_target(name).path
    path = check_new_name(new, out=out, force=force)
    make_folder(out)
    write_atomically(
        path, f"# A copy of {source.stem}; a file in ./targets is a target of its own.\n{read_text(source)}"
    )
    return path


def check_new_name(name: str, *, out: Path, force: bool) -> Path:
    """The file that a new target of this name gets; EdgekitError where it cannot be one, or is there (unless `force`)."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name.endswith(".toml"):
        raise EdgekitError(f"{name!r}: not a target's name; use letters, digits, '-', '_' and '.' only, without .toml")
    path = out / f"{name}.toml"
    there = path if os.path.lexists(path) else find_targets().get(name)
    if there is not None and not force:
        raise EdgekitError(f"{there}: this target is there already; choose another name, or replace it with --force")
    return path


def find_targets() -> dict[str, Path]:
    """Every target that can be named: the packaged ones, and those in ./targets over them."""
    found: dict[str, Path] = {}
    for folder in (packaged("targets"), Path("targets")):
        found |= {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return dict(sorted(found.items()))


def check_targets(names: Iterable[str], check_entries: Callable[[Target, str], object]) -> dict[str, str | None]:
    """What is wrong with each target file, None where all is well: keys, types, bounds, budgets, facts without a source.

    `check_entries` checks the tables of one task by the entries that they name: `build.check_target`, which stands above this.
    """
    problems: dict[str, str | None] = {}
    for name in names:
        try:
            target = load_target(name)
            _check_target(target)
            for task in target.export:
                check_entries(target, task)
            problems[name] = None
        except EdgekitError as bad:
            problems[name] = bad.message
    return problems


def _check_target(target: Target) -> None:
    if not target.export:
        raise EdgekitError(f"{target.path}: export: empty; name a task, such as [export.text-classification]")
    if not any(source.strip() for source in target.hardware.sources):
        raise EdgekitError(f"{target.path}: hardware.sources: empty; say where the facts come from")
    for task, table in target.budget.items():
        if isinstance(table, dict):
            target.budget_for(task)


def _check_threads(target: Target, path: Path) -> None:
    """Here because the entries of `runtimes` travel to devices, with no library that knows bounds."""
    for name, table in target.runtime.items():
        threads = table.get("threads")
        if isinstance(threads, int) and threads < 1:
            raise EdgekitError(
                f"{path}: runtime.{name}.threads: should be at least 1, got {threads}; without it the runtime chooses"
            )
