"""What somebody demands of a release, in a policy.toml: licences, evidence, who signs. Each broken clause is named.

[licences]                     what may go in, by SPDX ids; a list that is not there demands nothing
model = ["Apache-2.0"]
teacher = ["Apache-2.0", "MIT"]
data = ["CC0-1.0"]
tools = ["Apache-2.0", "MIT", "BSD-3-Clause"]

[evidence]
verdict = "pass"               # the least that every report must say: "pass" or "not proven"
checks = ["p95_ms"]            # of which each report must have passed
max_age_days = 30              # since it was measured
devices = ["Cortex-A76"]       # classes: for each a report of a device with this CPU, architecture or target
comparable = true              # times must be such as may be compared with others'
emulated = false               # an emulator measured none of them

[signer]
keys = ["642ed5e3..."]         # sha256 of the public key's PEM text, as `edgekit release` and model-signing name it
required = true
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import annotated_types

from edgekit.errors import EdgekitError
from edgekit.release.licences import licences
from edgekit.schema import parse, read_toml

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest
    from edgekit.evidence import Report


@dataclass(frozen=True, kw_only=True)
class LicencePolicy:
    """The licences that are allowed, by what they are of; None demands nothing."""

    model: tuple[str, ...] | None = None
    teacher: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class EvidencePolicy:
    """What every report must say, and of which devices there must be one."""

    verdict: Literal["pass", "not proven"] | None = None
    checks: tuple[str, ...] = ()
    max_age_days: Annotated[float, annotated_types.Gt(0)] | None = None
    devices: tuple[str, ...] = ()
    comparable: bool = False
    emulated: bool = True


@dataclass(frozen=True, kw_only=True)
class SignerPolicy:
    """Who may sign: sha256 of public keys; and whether somebody must."""

    keys: tuple[str, ...] = ()
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A policy.toml."""

    licences: LicencePolicy = field(default_factory=LicencePolicy)
    evidence: EvidencePolicy = field(default_factory=EvidencePolicy)
    signer: SignerPolicy | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a policy is held against: a bundle's manifest, its reports with the time that each was measured (ISO 8601, None where
    nobody knows), and the signing key's id; None of who signs without one. signed: whether anybody does."""

    manifest: Manifest
    reports: Sequence[tuple[Report, str | None]]
    key: str | None
    signed: bool


def read_policy(path: Path) -> Policy:
    """A policy's file; EdgekitError names the key that is unknown or holds something else."""
    policy = parse(Policy, read_toml(path), str(path))
    wrong = [key for key in (policy.signer.keys if policy.signer else ()) if not re.fullmatch(r"[0-9a-f]{64}", key)]
    if wrong:
        raise EdgekitError(
            f"{path}: signer.keys: {wrong[0]!r} is not the sha256 of a public key: 64 digits of 0-9 and a-f"
        )
    return policy


def find_breaches(policy: Policy, judged: Judged, now: datetime | None = None) -> list[str]:
    """The clauses that are broken, each with its name and why; empty where the policy is kept. now: with its time zone."""
    return [
        *_licences(policy.licences, judged.manifest),
        *_evidence(policy.evidence, judged, now or datetime.now(UTC)),
        *_signer(policy.signer, judged),
    ]


def _licences(policy: LicencePolicy, manifest: Manifest) -> Iterator[str]:
    clauses = {"model": policy.model, "teacher": policy.teacher, "data": policy.data, "tool": policy.tools}
    for entry in licences(manifest):
        allowed = clauses[entry.kind]
        clause = f"licences.{'tools' if entry.kind == 'tool' else entry.kind}"
        if allowed is None:
            continue
        if entry.licence is None:
            yield f"{clause}: nobody states the licence of {entry.name}; allowed: {', '.join(allowed)}"
        elif not allows(entry.licence, allowed):
            yield f"{clause}: {entry.name} is under {entry.licence}; allowed: {', '.join(allowed)}"


def allows(expression: str, allowed: Sequence[str]) -> bool:
    """Whether a licence, or an SPDX expression of several (SPDX 2.3, annex D), is allowed: of OR one side, of AND both, and of
    WITH what the exception is from, because it only grants more."""
    known = {one.lower() for one in allowed}
    if expression.lower() in known:
        return True
    tokens = re.findall(r"[()]|[^\s()]+", expression)

    def either() -> bool:
        found = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            found = both() or found
        return found

    def both() -> bool:
        found = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            found = one() and found
        return found

    def one() -> bool:
        word = tokens.pop(0) if tokens else ""
        if word == "(":
            found = either()
            return bool(tokens and tokens.pop(0) == ")") and found
        if tokens[:1] == ["WITH"]:
            del tokens[:2]
        return word.lower() in known

    return either() and not tokens


def _evidence(policy: EvidencePolicy, judged: Judged, now: datetime) -> Iterator[str]:
    for report, at in judged.reports:
        where = f"the report of {_device(report)}"
        low = {"pass": {"not proven", "fail"}, "not proven": {"fail"}, None: set[str]()}[policy.verdict]
        if report.verdict in low:
            yield f"evidence.verdict: {where} says {report.verdict}, at least {policy.verdict} is asked"
        verdicts = {check.name: check.verdict for check in report.checks}
        for name in policy.checks:
            if verdicts.get(name) != "pass":
                yield f"evidence.checks: {where} has {verdicts.get(name, 'nothing')} for {name}, a pass is asked"
        if policy.max_age_days is not None:
            yield from _age(policy.max_age_days, where, at, now)
        if policy.comparable and (report.comparable is None or report.comparable.comparable != "yes"):
            why = "; ".join(report.comparable.reasons) if report.comparable else "it does not say"
            yield f"evidence.comparable: the times of {where} may not be compared: {why}"
        if not policy.emulated and report.emulated:
            yield f"evidence.emulated: an emulator measured {where}"
    seen = [{report.device.get("cpu"), report.device.get("arch"), report.target} for report, _ in judged.reports]
    for device in policy.devices:
        if not any(device in names for names in seen):
            yield f"evidence.devices: no report is of {device}"


def _age(most: float, where: str, at: str | None, now: datetime) -> Iterator[str]:
    clause = "evidence.max_age_days"
    if at is None:
        yield f"{clause}: nobody knows when {where} was measured; say it with --measured-at"
        return
    age = (now - measured(at)) / timedelta(days=1)
    if age > most:
        yield f"{clause}: {where} is {age:.1f} days old, at most {most:g} are allowed"
    elif age < -1:
        yield f"{clause}: {where} is from the future, {at}"


def measured(at: str) -> datetime:
    """A date of ISO 8601, in UTC where it names no zone. EdgekitError where it is none."""
    try:
        found = datetime.fromisoformat(at)
    except ValueError as wrong:
        raise EdgekitError(f"{at}: not a date: write it as 2026-01-31 or 2026-01-31T12:00:00Z") from wrong
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _signer(policy: SignerPolicy | None, judged: Judged) -> Iterator[str]:
    if policy is None:
        return
    if policy.required and not judged.signed:
        yield "signer.required: nobody signs it"
    elif policy.keys and judged.signed and judged.key not in policy.keys:
        yield f"signer.keys: the key {(judged.key or 'of nobody')[:16]} is none of those that may sign"


def _device(report: Report) -> str:
    return f"{report.target} on {report.device.get('cpu') or report.device.get('arch')}"
