"""Target: where the model must run. One TOML file per board or device; adding one needs no Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.recipe import packaged
from edgekit.schema import nearest, parse, read_toml


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What is known of the device, with its sources.

    arch: "x86_64" or "aarch64" (`uname -m`), "wasm32" for browsers. cpu: the model's name on x86 ("Intel(R) N100"), the cores'
    on ARM ("Cortex-A76", clusters joined by " + ", largest first). features: as Linux prints them in /proc/cpuinfo (asimddp,
    avx512_vnni, ...), of those that matrix products use. usable_mb: what a model and its process may take. bandwidth_gbs:
    copy bandwidth of one core, bytes read plus written, GB/s. int8_gops and fp32_gflops: throughput of one core's matrix
    product, 10^9 operations (multiply and add are two) per second. All are measured or derived from a measurement: sources
    says whose, notes says what is not certain, and what nobody has published is absent. generic: the facts are a floor that
    many machines meet, not one machine's.
    """

    arch: str
    cpu: str
    cores: int
    features: list[str]
    memory_mb: int
    sources: list[str]
    usable_mb: int | None = None
    clock_ghz: float | None = None
    bandwidth_gbs: float | None = None
    int8_gops: float | None = None
    fp32_gflops: float | None = None
    generic: bool = False
    accelerator: str | None = None
    notes: str | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits. p95_ms is for batch 1 at `sequence` tokens; memory_mb is the peak of the whole process; bytes the artifact's."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    memory_mb: float | None = None
    bytes: int | None = None
    sequence: int = 64


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where it must run. The tables `export` (per task), `runtime` (per runtime) and `device` stay raw: the entry that
    each names checks the rest."""

    title: str
    hardware: Hardware
    export: dict[str, dict[str, Any]]
    runtime: dict[str, dict[str, Any]] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=lambda: {"kind": "local"})
    budget: dict[str, Any] = field(default_factory=dict)
    # Set by load_target, not by the file.
    name: str = ""
    path: Path = Path()

    def budget_for(self, task: str) -> Budget:
        """The limits for a task: `[budget]` with `[budget.<task>]` over it."""
        shared = {key: value for key, value in self.budget.items() if not isinstance(value, dict)}
        return parse(Budget, shared | self.budget.get(task, {}), f"{self.path}: budget")

    def export_for(self, task: str) -> dict[str, Any]:
        """The raw `[export.<task>]` table; EdgekitError where the target has none."""
        if task not in self.export:
            raise EdgekitError(
                f"{self.path}: export.{task}: missing; this target cannot build {task} (has: {', '.join(sorted(self.export))})"
            )
        return self.export[task]


def load_target(name: str) -> Target:
    """Find a target by path (ending in .toml), then in ./targets, then among the packaged ones, and read it.

    Raises EdgekitError for an unknown name and for unknown, missing or wrongly typed keys.
    """
    path = Path(name) if name.endswith(".toml") else find_targets().get(name)
    if path is None:
        raise EdgekitError(
            f"target {name!r}: unknown{nearest(name, find_targets())}; `edgekit targets list` shows them all"
        )
    table = read_toml(path)
    for key in ("name", "path"):
        if key in table:
            raise EdgekitError(
                f"{path}: {key}: this key is set by edgekit (the file's name is the target's); remove it"
            )
    target = parse(Target, table, str(path))
    return replace(target, name=path.stem, path=path)


def find_targets() -> dict[str, Path]:
    """Every target that can be named: the packaged ones, and those in ./targets over them."""
    found: dict[str, Path] = {}
    for folder in (packaged("targets"), Path("targets")):
        found |= {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return dict(sorted(found.items()))


def check_targets(paths: Iterable[Path]) -> list[str]:
    """What is wrong with target files, a line each: keys, types, budgets, and facts without a source; none where all is well.

    The tables `export`, `runtime` and `device` are checked further by the entries that they name (`build.check_target`).
    """
    problems = []
    for path in paths:
        try:
            _check_target(load_target(str(path)))
        except EdgekitError as bad:
            problems.append(bad.message)
    return problems


def _check_target(target: Target) -> None:
    if not target.export:
        raise EdgekitError(f"{target.path}: export: empty; name a task, such as [export.text-classification]")
    if not any(source.strip() for source in target.hardware.sources):
        raise EdgekitError(f"{target.path}: hardware.sources: empty; say where the facts come from")
    for task in target.budget.keys() | target.export.keys():
        if task in target.export or isinstance(target.budget[task], dict):
            target.budget_for(task)
