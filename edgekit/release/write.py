"""Release: a bundle and what was measured of it become one folder that foreign tools verify unchanged.

All but the signature follows from the bundle, its reports, the build's cache and the policy: no clock, time zone, locale or name
of a folder is in it. The folder is written beside its place and renamed; what a killed run left is no release.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgekit import __version__
from edgekit.bundle.destination import marked_half, old, refuse_foreign_half, swap
from edgekit.bundle.manifest import FileEntry
from edgekit.bundle.open import Bundle, open_bundle
from edgekit.bundle.package import lock_file
from edgekit.errors import CheckFailed, EdgekitError
from edgekit.evidence import Report, read_report
from edgekit.history import folder as history_folder
from edgekit.history import read as read_history
from edgekit.release import contents
from edgekit.release.bom import Billed, write_bom
from edgekit.release.card import write_card
from edgekit.release.contents import BUNDLE, RELEASE, SIGNATURE, Release, names_in, read_release
from edgekit.release.licences import notice
from edgekit.release.policy import Judged, Policy, find_breaches, read_policy
from edgekit.release.quantization import find_sources, record
from edgekit.release.scan import refuse_secrets
from edgekit.release.signature import Signer, key_id, sign
from edgekit.release.statements import BUILDER, measurement, provenance
from edgekit.schema import dump_json
from edgekit.workspace import discard, disk_error, file_sha256, list_names, locked, make_folder, sync

_WORST = {"fail": 0, "not proven": 1, "pass": 2}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A report about a bundle's model, and when it was measured, ISO 8601; None where nobody knows."""

    path: Path
    report: Report
    at: str | None


@dataclass(frozen=True, kw_only=True)
class Papers:
    """What the papers of a release are made from beside the bundle: reports with the time that each was measured, the text of
    quantization.json, who built (a URI), and the date of the release, where it has one."""

    evidence: Sequence[tuple[Report, str | None]]
    quantization: str
    builder: str
    made: str | None


@dataclass(frozen=True, kw_only=True)
class ReleaseInputs:
    """What `release` is given: a bundle's folder or archive, its reports, the cache of its build, who signs (None: nobody), who
    built as a URI, and the file of the policy that must be kept (None: there is none)."""

    bundle: Path
    evidence: Sequence[Evidence]
    cache: Path
    signer: Signer | None = None
    builder: str = BUILDER
    policy: Path | None = None


def gather(bundle: Path, reports: Sequence[Path], measured_at: str | None = None) -> list[Evidence]:
    """The evidence about a bundle: these reports, or where none is named the one that lies beside it.

    measured_at: when, where the user says so; else the history of this machine tells of measurements made here. Raises
    EdgekitError where there is no report, or one is of another model.
    """
    name = bundle.name.removesuffix(".tar.gz")
    paths = list(reports) or [bundle.with_name(f"{name}.report.json")]
    sha256 = open_bundle(bundle).manifest.artifact.sha256
    found = []
    for path in paths:
        if not path.exists():
            raise EdgekitError(f"{path}: no such report: a release carries what was measured; name it with --report")
        report = read_report(path)
        if report.artifact.sha256 != sha256:
            raise EdgekitError(f"{path}: this report is of another model than {bundle}; run: edgekit verify")
        found.append(Evidence(path=path, report=report, at=measured_at or _when(report)))
    return found


def release(inputs: ReleaseInputs, out: Path) -> Release:
    """Write the release of a bundle as the folder `out`; an older release there stays until the new one is whole.

    Raises EdgekitError where something else lies there or was changed, a file holds a secret or a path of this machine, a library
    is missing, or nobody can sign; CheckFailed where the policy is not kept.
    """
    bundle = open_bundle(inputs.bundle)
    if inputs.policy is not None:
        _keep(read_policy(inputs.policy), bundle, inputs)
    try:
        make_folder(out.parent)
        with locked(lock_file(out), f"{out}: another edgekit is writing it; waiting for it"):
            _refuse_foreign(out)
            _clear_leftovers(out)
            with marked_half(out) as inner:
                found = _fill(inner, bundle, inputs)
                if inputs.signer is not None:
                    sign(inner, inputs.signer)
                for name in names_in(inner):
                    (inner / name).chmod(0o644)
                    sync(inner / name)
                swap(inner, out, last={RELEASE})
                sync(out.parent)
    except OSError as failed:
        raise disk_error(out, failed) from failed
    return found


def _keep(policy: Policy, bundle: Bundle, inputs: ReleaseInputs) -> None:
    """Raise CheckFailed with every clause of a policy that the release would break."""
    signer = inputs.signer
    judged = Judged(
        manifest=bundle.manifest,
        reports=[(one.report, one.at) for one in inputs.evidence],
        key=key_id(signer) if signer and policy.signer else None,
        signed=signer is not None,
    )
    if breaches := find_breaches(policy, judged):
        raise CheckFailed(f"{inputs.policy}: no release: {' | '.join(breaches)}")


def _fill(folder: Path, bundle: Bundle, inputs: ReleaseInputs) -> Release:
    """Write all of a release but its signature."""
    manifest, evidence = bundle.manifest, inputs.evidence
    for name in (*(manifest.files or {}), "bundle.json"):
        (folder / BUNDLE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, folder / BUNDLE / name)
    papers = Papers(
        evidence=[(one.report, one.at) for one in evidence],
        quantization=dump_json(record(bundle, find_sources(bundle, inputs.cache))),
        builder=inputs.builder,
        made=_epoch(),
    )
    texts = write_papers(bundle, papers)
    (folder / "evidence").mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    names = names_in(folder)
    refuse_secrets(folder, names)
    listed = Release(
        format_version=contents.FORMAT,
        edgekit=__version__,
        name=manifest.name,
        target=manifest.target,
        bundle=str(manifest.digest),
        artifact=manifest.artifact.sha256,
        verdict=min((one.report.verdict for one in evidence), key=_WORST.__getitem__),
        reports=len(evidence),
        policy=file_sha256(inputs.policy) if inputs.policy else None,
        files={name: _entry(folder / name) for name in names},
    ).whole()
    (folder / RELEASE).write_text(listed.to_json(), encoding="utf-8", newline="\n")
    return listed


def write_papers(bundle: Bundle, papers: Papers) -> dict[str, str]:
    """All that is said of a bundle, by the names of its files in a release; the bill refers to the others by their hashes."""
    manifest, reports = bundle.manifest, [report for report, _ in papers.evidence]
    texts = {
        contents.QUANTIZATION: papers.quantization,
        contents.PROVENANCE: provenance(manifest, papers.builder),
        contents.NOTICE: notice(manifest),
        contents.CARD: write_card(manifest, reports, (bundle.folder / "README.md").read_text(encoding="utf-8")),
    }
    for number, (report, at) in enumerate(papers.evidence, 1):
        said = report.to_json()
        texts[contents.report_name(number)] = said
        texts[contents.measurement_name(number)] = measurement(manifest, report, sha256=_sha256(said), at=at)
    referred = {name: _sha256(text) for name, text in texts.items()}
    billed = Billed(manifest=manifest, reports=reports, referred=referred, made=papers.made)
    return texts | {contents.BOM: write_bom(billed)}


def _entry(path: Path) -> FileEntry:
    return FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _when(report: Report) -> str | None:
    """When a report was measured, by the history of this machine: the entry of the same file with the same times."""
    where = history_folder()
    if not where.is_dir() or not any(where.glob("*.jsonl")):
        return None
    times = tuple(process.p50 for process in report.latency_processes_ms)
    entries = [
        entry for entry in read_history(where) if entry.sha256 == report.artifact.sha256 and entry.p50_ms == times
    ]
    return entries[-1].at if entries else None


def _epoch() -> str | None:
    """The date that $SOURCE_DATE_EPOCH gives a release (https://reproducible-builds.org/specs/source-date-epoch), ISO 8601."""
    said = os.environ.get("SOURCE_DATE_EPOCH")
    if not said:
        return None
    try:
        return datetime.fromtimestamp(int(said), UTC).isoformat()
    except (ValueError, OverflowError, OSError) as wrong:
        raise EdgekitError(f"SOURCE_DATE_EPOCH={said}: seconds since 1970 expected") from wrong


def _refuse_foreign(out: Path) -> None:
    """Raise EdgekitError where what lies at the place, or beside it, is no release that edgekit wrote and nobody changed."""
    for place in (out, old(out)):
        if not os.path.lexists(place) or (place.is_dir() and not place.is_symlink() and not any(place.iterdir())):
            continue
        if place.is_symlink() or not (place / RELEASE).is_file():
            raise EdgekitError(f"{place}: is there and is not a release; move it away or choose another --out")
        listed = read_release(place)
        if added := sorted(list_names(place) - listed.files.keys() - {RELEASE, SIGNATURE}):
            raise EdgekitError(f"{place / added[0]}: not of the release that edgekit wrote there; move it away")
        for name, entry in listed.files.items():
            if (place / name).is_file() and file_sha256(place / name) != entry.sha256:
                raise EdgekitError(
                    f"{place / name}: changed after it was released, and a new release would replace it; move it away"
                )
    refuse_foreign_half(out)


def _clear_leftovers(out: Path) -> None:
    """What a killed run left: the older release comes back."""
    older = old(out)
    if older.exists() and not out.exists():
        older.rename(out)
    if older.exists():
        discard(older, last={RELEASE})
