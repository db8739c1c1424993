"""Verify a release, offline, on a machine that has never seen its build: each fault in a sentence of its own.

the files      those of release.json, no more and no fewer, each with its sha256
the bundle     as bundle.json says
the bill       its hashes, licences, references and metrics are those of the bundle and the evidence
the statements their subjects are the files that are here; what they say is what the reports say
the signature  of who is trusted, over all of it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit.bundle.open import check_bundle
from edgekit.errors import EdgekitError
from edgekit.evidence import Report, read_report
from edgekit.release import contents
from edgekit.release.bom import MODEL, performance_metrics
from edgekit.release.contents import BOM, BUNDLE, RELEASE, SIGNATURE, Release, names_in, read_release
from edgekit.release.policy import Judged, Policy, find_breaches
from edgekit.release.signature import Trusted, check, signed_files, signing_key
from edgekit.release.statements import MEASUREMENT_TYPE, PROVENANCE_TYPE, STATEMENT
from edgekit.schema import read_json
from edgekit.typed_json import as_table, to_table
from edgekit.workspace import file_sha256

# What a statement repeats of its report.
_SAID = ("verdict", "checks", "device", "runtime", "accuracy", "prompts")


def find_faults(folder: Path, trusted: Trusted | None, policy: Policy | None = None) -> list[str]:
    """All that is wrong with a release, in sentences; empty where nothing is. trusted: None leaves the signature out. policy:
    what it must keep, today.

    Raises EdgekitError where the folder is no release at all, and for a key that is none.
    """
    if not folder.is_dir():
        raise EdgekitError(f"{folder}: no such folder; name the folder that edgekit release wrote")
    signature = list(_signature(folder, trusted))
    try:
        release = read_release(folder)
    except EdgekitError as wrong:
        if not (folder / RELEASE).is_file() and not (folder / SIGNATURE).is_file():
            raise
        return [wrong.message, *signature]
    broken, faults = _files(folder, release)
    for part in (_bundle, _bill, _statements):
        faults += [fault for fault in part(folder, release, broken) if fault not in faults]
    if policy is not None and not faults:
        faults += [f"policy: {breach}" for breach in find_breaches(policy, _judged(folder, release))]
    return [*faults, *signature]


def _judged(folder: Path, release: Release) -> Judged:
    """A whole release, as a policy is held against it."""
    dates = []
    for number in range(1, release.reports + 1):
        _, predicate, _ = _statement(folder, contents.measurement_name(number), MEASUREMENT_TYPE)
        dates.append(predicate.get("at"))
    reports = [report for _, report in sorted(_reports(folder, release, set()).items())]
    return Judged(
        manifest=check_bundle(folder / BUNDLE),
        reports=[(report, str(at) if at else None) for report, at in zip(reports, dates, strict=True)],
        key=signing_key(folder),
        signed=(folder / SIGNATURE).is_file(),
    )


def _files(folder: Path, release: Release) -> tuple[set[str], list[str]]:
    """The names of files that are not as listed, and what is wrong with each."""
    there = set(names_in(folder)) - {RELEASE, SIGNATURE}
    owners: dict[str, list[str]] = {}
    for name, entry in release.files.items():
        owners.setdefault(entry.sha256, []).append(name)
    broken, faults = set(), []
    faults += [f"{name}: added: {RELEASE} does not list it" for name in sorted(there - release.files.keys())]
    for name, entry in sorted(release.files.items()):
        path = folder / name
        if name not in there:
            faults.append(f"{name}: missing")
        elif path.is_symlink() or not path.is_file():
            faults.append(f"{name}: a link or a folder in the place of a file")
        elif (sha256 := file_sha256(path)) != entry.sha256:
            other = next((owner for owner in owners.get(sha256, ()) if owner != name), None)
            said = (
                f"swapped: it is the file that {RELEASE} lists as {other}"
                if other
                else "changed: its sha256 is another"
            )
            faults.append(f"{name}: {said}")
        else:
            continue
        broken.add(name)
    return broken, faults


def _signature(folder: Path, trusted: Trusted | None) -> Iterator[str]:
    if trusted is None:
        return
    if not (folder / SIGNATURE).is_file():
        yield f"{SIGNATURE}: missing: the release is unsigned, so nobody vouches for it"
        return
    if fault := check(folder, trusted):
        yield fault
    signed = signed_files(folder)
    if signed and RELEASE not in signed:
        yield f"{SIGNATURE}: it is of another folder: no {RELEASE} is among the files that it signs"


def _bundle(folder: Path, release: Release, broken: set[str]) -> Iterator[str]:
    if any(name.startswith(f"{BUNDLE}/") for name in broken):
        return
    try:
        manifest = check_bundle(folder / BUNDLE)
    except EdgekitError as wrong:
        yield f"{BUNDLE}: {wrong.message.removeprefix(f'{folder / BUNDLE}/')}"
        return
    if manifest.digest != release.bundle or manifest.artifact.sha256 != release.artifact:
        yield f"{BUNDLE}: another bundle than the one that {RELEASE} names"


def _bill(folder: Path, release: Release, broken: set[str]) -> Iterator[str]:
    """The bill against the files, and against the bundle and the reports that it speaks of."""
    if BOM in broken:
        return
    try:
        bill = read_json(folder / BOM)
        model = next(one for one in bill["components"] if one["bom-ref"] == MODEL)
        hashes = {one["url"]: one["hashes"][0]["content"] for one in model["externalReferences"]}
        hashes |= {one["bom-ref"]: one["hashes"][0]["content"] for one in bill["components"] if one["type"] == "file"}
        metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
        model_hash = model["hashes"][0]["content"]
        stated = [
            one.get("expression") or one["license"].get("id", one["license"].get("name"))
            for one in model.get("licenses", ())
        ]
    except (EdgekitError, KeyError, IndexError, TypeError, AttributeError, StopIteration) as wrong:
        yield f"{BOM}: not a bill that edgekit wrote ({type(wrong).__name__})"
        return
    if model_hash != release.artifact:
        yield f"{BOM}: does not match: its model is another file than the bundle's"
    for name, sha256 in sorted(hashes.items()):
        if name not in broken and (name not in release.files or release.files[name].sha256 != sha256):
            yield f"{BOM}: does not match: {name} is another file than the one that it names"
    reports = _reports(folder, release, broken)
    if len(reports) == release.reports:
        measured = [metric for _, report in sorted(reports.items()) for metric in performance_metrics(report)]
        if metrics != measured:
            yield f"{BOM}: does not match: its metrics are not what the reports measured"
    if f"{BUNDLE}/bundle.json" not in broken:
        licence = read_json(folder / BUNDLE / "bundle.json")["licences"].get("this model")
        if [str(one).lower() for one in stated] != ([licence.lower()] if licence else []):
            yield f"{BOM}: does not match: its licence is not the bundle's, {licence or 'which states none'}"


def _statements(folder: Path, release: Release, broken: set[str]) -> Iterator[str]:
    yield from _provenance(folder, release, broken)
    reports = _reports(folder, release, broken)
    for number in range(1, release.reports + 1):
        name = contents.measurement_name(number)
        if name in broken:
            continue
        subjects, predicate, fault = _statement(folder, name, MEASUREMENT_TYPE)
        if fault:
            yield fault
            continue
        if set(subjects.values()) != {release.artifact}:
            yield f"{name}: evidence of another file: its subject is not this release's model"
        report = reports.get(number)
        if report is None:
            if contents.report_name(number) not in broken:
                yield f"{contents.report_name(number)}: not a report that this edgekit reads"
            continue
        if report.artifact.sha256 != release.artifact:
            yield f"{contents.report_name(number)}: evidence of another file: it judged another model than this release's"
        said = to_table(report)
        same = all(predicate.get(key) == said[key] for key in _SAID)
        times = as_table(predicate.get("times_ms")).get("raw") == said["latency_raw_ms"]
        of_it = predicate.get("report") == {"sha256": file_sha256(folder / contents.report_name(number))}
        if not (same and times and of_it):
            yield f"{name}: does not say what {contents.report_name(number)} says"
    verdicts = {report.verdict for report in reports.values()}
    if reports and len(reports) == release.reports and release.verdict not in verdicts:
        yield f"{RELEASE}: its verdict, {release.verdict}, is that of no report"


def _provenance(folder: Path, release: Release, broken: set[str]) -> Iterator[str]:
    if contents.PROVENANCE in broken:
        return
    subjects, _, fault = _statement(folder, contents.PROVENANCE, PROVENANCE_TYPE)
    if fault:
        yield fault
        return
    for name, sha256 in sorted(subjects.items()):
        if name not in release.files or release.files[name].sha256 != sha256:
            yield f"{contents.PROVENANCE}: provenance of another file: {name} is not the one that it names"


def _statement(folder: Path, name: str, kind: str) -> tuple[Mapping[str, str], Mapping[str, object], str | None]:
    """The subjects' sha256 by name and the predicate of an in-toto statement, or what is wrong with it."""
    try:
        table = read_json(folder / name)
        if table["_type"] != STATEMENT or table["predicateType"] != kind:
            return {}, {}, f"{name}: another statement than {kind}"
        subjects = {one["name"]: one["digest"]["sha256"] for one in table["subject"]}
        return subjects, as_table(table["predicate"]), None
    except (EdgekitError, KeyError, TypeError, ValueError) as wrong:
        return {}, {}, f"{name}: not an in-toto statement ({type(wrong).__name__})"


def _reports(folder: Path, release: Release, broken: set[str]) -> dict[int, Report]:
    """The reports that can be read, by number."""
    found = {}
    for number in range(1, release.reports + 1):
        name = contents.report_name(number)
        if name not in broken and (folder / name).is_file():
            try:
                found[number] = read_report(folder / name)
            except EdgekitError:
                continue
    return found
