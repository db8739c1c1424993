"""Package: an artifact, tokenizer, manifest, model card and loader become a bundle; the evidence lies beside it.

What ships holds nothing that a clock measured, so two builds from nothing on one machine give the same archive, byte
for byte.
"""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
import tempfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import __version__
from edgekit.artifact import read_artifact
from edgekit.bundle.archive import archive_hashes, write_archive
from edgekit.bundle.contract import issued
from edgekit.bundle.destination import MANIFEST, MARK, clear_leftovers, refuse_foreign, swap
from edgekit.bundle.destination import partial as partial_of
from edgekit.bundle.golden import GOLDEN, golden
from edgekit.bundle.manifest import MANIFEST_FORMAT, FileEntry, Manifest, ShippedFile
from edgekit.bundle.open import Bundle, check_bundle
from edgekit.bundle.sidecars import SIDECARS, Packing
from edgekit.errors import CheckFailed, EdgekitError
from edgekit.evidence import Report, read_report
from edgekit.formats import FORMATS, library_versions
from edgekit.modalities import MODALITIES
from edgekit.outcomes import FILE as OUTCOMES
from edgekit.outcomes import read_outcomes
from edgekit.report.page import write_html
from edgekit.runtimes import RUNTIMES
from edgekit.schema import dump_json, read_json
from edgekit.tasks import TASKS
from edgekit.typed_json import to_table
from edgekit.workspace import (
    Product,
    discard,
    disk_error,
    file_sha256,
    fingerprint,
    library_version,
    list_files,
    locked,
    make_folder,
    open_product,
    sync,
    write_atomically,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.artifact import Artifact
    from edgekit.recipe import Issue
    from edgekit.recovery import Recovery
    from edgekit.target import Target

log = logging.getLogger("edgekit")

LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """Where things lie: the bundle's folder and archive, and beside them the evidence (report.json, report.html; outcomes.json
    where answers are right or wrong) and, where it was measured, the best setting (tuning.json)."""

    bundle: Path
    archive: Path
    report: Path
    html: Path
    tuning: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where a model comes from: its teacher and that one's revision, those that taught beside it, the digests of both models, who
    wrote how many answers and labels of what it learned from, and the licences of the teacher, the data and the model itself.
    None where nobody says."""

    teacher: str | None = None
    teacher_revision: str | None = None
    other_teachers: str | None = None
    teacher_digest: str | None = None
    student_digest: str | None = None
    answers: str | None = None
    labels: str | None = None
    teacher_license: str | None = None
    data_license: str | None = None
    license: str | None = None

    def sources(self) -> dict[str, str]:
        """All but the licences."""
        return {key: value for key, value in vars(self).items() if value is not None and "license" not in key}

    def licences(self) -> dict[str, str]:
        """The licences, by what they are of."""
        of = {"this model": self.license, "teacher": self.teacher_license, "data": self.data_license}
        return {name: value for name, value in of.items() if value}


@dataclass(frozen=True, kw_only=True)
class PackageInputs:
    """What `package` is given: an export step's folder, a verify step's folder, what the bundle is called, the recipe's name, the
    target that was verified for, where the model comes from, and what may be done about a failure, which the evidence shows.

    calibrate: a folder of prompts; without it, or where the runtime is not on this machine, the bundle has no golden answers.
    issue: which version it is, where the recipe says one."""

    artifact: Path
    report: Path
    name: str
    recipe: str
    target: Target
    lineage: Lineage
    calibrate: Path | None = None
    recovery: Recovery | None = None
    issue: Issue | None = None


def package(inputs: PackageInputs, out: Path, *, strict: bool = False) -> Packaged:
    """Write the evidence, and where the verdict allows, the bundle `out`/`name` and its archive.

    Everything is written beside its place and renamed: an older bundle survives a failure. A failed verdict, or one not
    proven under `strict`, raises CheckFailed once the evidence is on disk and leaves an older bundle of that name as it was.
    Raises EdgekitError where something else lies at these places, where artifact and report do not belong together, a file was
    changed, or the folder cannot be written.
    """
    product, name, report = open_product(inputs.artifact, "export"), inputs.name, inputs.report
    product.check()
    content, artifact = replace(read_report(report), recovery=inputs.recovery), read_artifact(product)
    if content.artifact.sha256 != artifact.file.sha256:
        raise EdgekitError(f"{report}: this report is of another artifact than {inputs.artifact}; run: edgekit verify")
    put = Packaged(
        bundle=out / name,
        archive=out / f"{name}.tar.gz",
        report=out / f"{name}.report.json",
        html=out / f"{name}.report.html",
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(lock_file(put.bundle), f"{name}: another build is packaging this; waiting for it"):
            refuse_foreign(out, name)
            clear_leftovers(put.bundle, (put.archive, put.report, put.html))
            put = replace(put, tuning=_write_tuning(out / f"{name}.tuning.json", content))
            write_atomically(put.report, content.to_json())
            _write_outcomes(report, out / f"{name}.outcomes.json")
            write_html(content, put.html, recipe=inputs.recipe)
            _judge(content, put, strict=strict)
            packing = Packing(
                artifact=product.folder,
                manifest=_describe(product, artifact, inputs, content.runtime.name),
                report=content,
                arch=inputs.target.hardware.arch,
            )
            _write_bundle(packing, artifact.file.files, put, inputs.calibrate)
    except OSError as failed:
        # shutil names the file that was read; the disk that is full is the one that was written to.
        path = Path(failed.filename or out)
        path = path if path.is_relative_to(out) else out
        raise disk_error(path, OSError(failed.errno, failed.strerror, str(path))) from failed
    return put


def _write_tuning(path: Path, report: Report) -> Path | None:
    """The best setting, where it was measured of this artifact, now or before; one of another artifact goes."""
    if report.tuning is not None:
        write_atomically(path, dump_json(to_table(report.tuning)))
    elif path.is_file() and read_json(path)["artifact"] != report.artifact.sha256:
        path.unlink()
    return path if path.is_file() else None


def _write_outcomes(report: Path, path: Path) -> None:
    """What the artifact answered, prompt by prompt; a verdict that has none of that leaves none of an older artifact."""
    outcomes = read_outcomes(report / OUTCOMES)
    if outcomes is not None:
        write_atomically(path, outcomes.to_json())
    else:
        path.unlink(missing_ok=True)


def _judge(report: Report, put: Packaged, *, strict: bool) -> None:
    verdict = report.verdict
    if verdict == "pass" or (verdict == "not proven" and not strict):
        return
    culprits = [check for check in report.checks if check.verdict == verdict]
    remedies: dict[str, list[str]] = {}
    for check in culprits:
        remedies.setdefault(check.remedy or "no remedy is known", []).append(check.name)
    reasons = "; ".join(f"{', '.join(names)}: {remedy}" for remedy, names in remedies.items())
    left = f"; the older {put.archive.name} was left as it was" if put.archive.exists() else ""
    raise CheckFailed(f"{put.bundle.name}: {verdict}: {reasons} (no archive written{left}; evidence: {put.report})")


def _write_bundle(packing: Packing, model: Sequence[str], put: Packaged, calibrate: Path | None) -> None:
    """The folder and the archive. model: the names of the model's files; calibrate: the prompts of the golden answers."""
    partial = partial_of(put.bundle)
    partial.mkdir()
    (partial / MARK).touch()
    try:
        for name in model:
            shutil.copyfile(packing.artifact / name, partial / name)
        _write_sidecars(packing, partial)
        files = {name: FileEntry(**entry) for name, entry in list_files(partial).items() if name != MARK}
        manifest = _write_manifest(packing.manifest.with_files(files), partial)
        if calibrate is not None and _write_golden(manifest, partial, calibrate, put.bundle / GOLDEN):
            files[GOLDEN] = FileEntry(bytes=(partial / GOLDEN).stat().st_size, sha256=file_sha256(partial / GOLDEN))
            manifest = _write_manifest(packing.manifest.with_files(dict(sorted(files.items()))), partial)
        if _is_current(put, manifest):
            return
        (partial / MARK).unlink()
        for name in list_files(partial):
            (partial / name).chmod(0o644)
            sync(partial / name)
        write_archive(partial, put.archive, put.bundle.name)
        swap(partial, put.bundle)
    finally:
        with suppress(FileNotFoundError):
            discard(partial, last={MARK, MANIFEST})
        put.archive.with_name(f".{put.archive.name}.partial").unlink(missing_ok=True)


def _write_manifest(manifest: Manifest, folder: Path) -> Manifest:
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8", newline="\n")
    return manifest


def _write_golden(manifest: Manifest, folder: Path, calibrate: Path, before: Path) -> bool:
    """golden.json; False, and said, where this machine does not run the model. before: that of the bundle that is replaced."""
    try:
        text = golden(Bundle(folder=folder, manifest=manifest), calibrate, before)
    except EdgekitError as failed:
        log.warning("%s: it ships without golden answers: %s", manifest.name, failed.message)
        return False
    (folder / GOLDEN).write_text(text, encoding="utf-8", newline="\n")
    return True


def _write_sidecars(packing: Packing, folder: Path) -> None:
    for name, make in SIDECARS.items():
        content = make(packing)
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8", newline="\n")
        elif content is not None:
            shutil.copyfile(content, folder / name)


def _describe(product: Product, artifact: Artifact, inputs: PackageInputs, answers: str) -> Manifest:
    """What the bundle says of itself, before its files are there. answers: the runtime that was verified."""
    file, target = artifact.file, inputs.target
    format_ = FORMATS[file.format]
    runtime = RUNTIMES[answers]
    versions = {name: library_version(name) for name in LIBRARIES} | library_versions(format_, [answers])
    options = runtime.joined(target.runtime.get(runtime.NAME, {}), file.runtime_options)
    rejected, threshold = (
        artifact.settings.get("out_of_scope", artifact.out_of_scope),
        artifact.settings.get("threshold"),
    )
    manifest = Manifest(
        format_version=MANIFEST_FORMAT,
        edgekit=__version__,
        name=inputs.name,
        recipe=inputs.recipe,
        target=target.name,
        target_title=target.title,
        task=artifact.task,
        output=artifact.output,
        labels=artifact.classes,
        out_of_scope=rejected if isinstance(rejected, str) else None,
        threshold=threshold if isinstance(threshold, int | float) else None,
        settings=artifact.settings,
        max_length=artifact.max_length,
        pad_id=artifact.pad_id,
        model=file.name,
        tokenizer=None if format_.CARRIES_TOKENIZER else MODALITIES[TASKS[artifact.task].MODALITY].TOKENIZER,
        runtime={"name": runtime.NAME, "minimum": runtime.minimum(file.minimum_runtime), **options},
        artifact=ShippedFile(
            format=file.format,
            scheme=file.scheme,
            bytes=file.bytes,
            sha256=file.sha256,
            opset=file.onnx.opset if file.onnx else None,
            ir_version=file.onnx.ir_version if file.onnx else None,
            operators=file.onnx.operators if file.onnx else None,
            quantized=file.quantized,
            choices=file.choices,
        ),
        lineage=inputs.lineage.sources(),
        fingerprints={"export": product.digest, "export_inputs": fingerprint(product.manifest["inputs"])},
        versions=dict(sorted(versions.items())),
        licences=inputs.lineage.licences(),
    )
    return manifest if inputs.issue is None else issued(manifest, product.folder / file.name, inputs.issue)


def _is_current(put: Packaged, manifest: Manifest) -> bool:
    """Whether folder and archive already hold exactly this."""
    try:
        if check_bundle(put.bundle).digest != manifest.digest:
            return False
        expected = {f"{put.bundle.name}/{name}": entry.sha256 for name, entry in (manifest.files or {}).items()}
        expected[f"{put.bundle.name}/{MANIFEST}"] = file_sha256(put.bundle / MANIFEST)
        return expected == dict(archive_hashes(put.archive))
    except (EdgekitError, OSError, EOFError, tarfile.TarError, zlib.error):
        return False


def lock_file(path: Path) -> Path:
    """Not beside the path, which holds products only; a user's own, because a shared temporary folder lends no files."""
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    locks = Path(tempfile.gettempdir()) / f"edgekit-locks{user}"
    make_folder(locks)
    return locks / f"{fingerprint(str(path.resolve()))[:16]}.lock"
