"""Package: an artifact, tokenizer, manifest, model card and loader become a bundle; the evidence lies beside it.

What ships holds nothing that a clock measured, so two builds from nothing on one machine give the same archive, byte
for byte.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tarfile
import tempfile
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekit import __version__
from edgekit.errors import CheckFailed, EdgekitError
from edgekit.formats import FORMATS
from edgekit.package_card import model_card
from edgekit.package_llama import modelfile
from edgekit.package_other import other_than_bundle
from edgekit.package_place import MANIFEST, MARK, clear_leftovers, refuse_foreign, swap
from edgekit.package_place import partial as partial_of
from edgekit.report import read_report
from edgekit.report_page import write_html
from edgekit.runtimes import RUNTIMES
from edgekit.schema import dump_json, read_json, read_text
from edgekit.tasks.text_generation import TEMPLATE
from edgekit.tokenizing import readable_part
from edgekit.workspace import (
    Product,
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
    from collections.abc import Iterator, Mapping, Sequence

    from edgekit.target import Target

log = logging.getLogger("edgekit")

# The loader that ships as load.py, by format and output.
LOADERS = {
    ("onnx", "logits"): "load.py",
    ("onnx", "embedding"): "load.py",
    ("onnx", "tokens"): "generate.py",
    ("gguf", "embedding"): "embed.py",
    ("gguf", "tokens"): "chat.py",
}
MANIFEST_FORMAT = 2
ARTIFACT_FACTS = ("format", "scheme", "bytes", "sha256", "opset", "ir_version", "operators", "quantized", "choices")
LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")
LICENCE_OF = {"license": "this model", "teacher_license": "teacher", "data_license": "data"}


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """Where things lie: the bundle's folder and archive, and the evidence (report.json, report.html) beside them."""

    bundle: Path
    archive: Path
    report: Path
    html: Path


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose files have the hashes that its manifest says; from an archive, it lives as long as this object."""

    folder: Path
    manifest: Mapping[str, Any]


def package(
    *,
    artifact: Path,
    report: Path,
    name: str,
    recipe: str,
    target: Target,
    lineage: Mapping[str, Any],
    out: Path,
    strict: bool = False,
) -> Packaged:
    """Write the evidence, and where the verdict allows, the bundle `out`/`name` and its archive.

    artifact: an export step's folder; report: a verify step's folder; lineage: where the model comes from (teacher,
    digests, licences), for the manifest. Everything is written beside its place and renamed: an older bundle survives
    a failure. A failed verdict, or one not proven under `strict`, raises CheckFailed once the evidence is on disk and
    leaves an older bundle of that name as it was. Raises EdgekitError where something else lies at these places, where
    artifact and report do not belong together, a file was changed, or the folder cannot be written.
    """
    product = open_product(artifact, "export")
    product.check()
    content = read_report(report)
    if content["artifact"]["sha256"] != product.facts["sha256"]:
        raise EdgekitError(f"{report}: this report is of another artifact than {artifact}; run: edgekit verify")
    put = Packaged(
        bundle=out / name,
        archive=out / f"{name}.tar.gz",
        report=out / f"{name}.report.json",
        html=out / f"{name}.report.html",
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(_lock_file(put.bundle), f"{name}: another build is packaging this; waiting for it"):
            refuse_foreign(out, name)
            clear_leftovers(put.bundle, (put.archive, put.report, put.html))
            write_atomically(put.report, read_text(report / "report.json"))
            write_html(content | {"recipe": recipe}, put.html)
            _judge(content, put, strict=strict)
            _write_bundle(product, _describe(product, name, recipe, target, lineage), content, put)
    except OSError as failed:
        # shutil names the file that was read; the disk that is full is the one that was written to.
        place = Path(failed.filename or out)
        place = place if place.is_relative_to(out) else out
        raise disk_error(place, OSError(failed.errno, failed.strerror, str(place))) from failed
    return put


def open_bundle(path: Path) -> Bundle:
    """Open a bundle's folder or archive and check it against its manifest.

    Raises EdgekitError for an edited manifest, a path outside the bundle, a file that is missing or changed, and what is no
    bundle, saying what it is.
    """
    if not (path.is_dir() or path.is_file()):
        raise EdgekitError(f"{path}: no such bundle; name a bundle's folder or its .tar.gz")
    if other := other_than_bundle(path):
        raise EdgekitError(other)
    if path.is_dir():
        return Bundle(folder=path, manifest=_check_bundle(path))
    scratch = Path(tempfile.mkdtemp(prefix="edgekit-"))
    try:
        folder = _extract(path, scratch)
        bundle = Bundle(folder=folder, manifest=_check_bundle(folder))
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(bundle, shutil.rmtree, scratch, ignore_errors=True)
    return bundle


def run_bundle(path: Path, texts: Sequence[str], *, prompt: str | None = None, threads: int | None = None) -> list[Any]:
    """A bundle's answer to each text, through the very loader that ships: {label, score, scores}, list[float] or a text.

    prompt: the name of what comes before each text; None: the model's default. Raises EdgekitError for whatever `open_bundle`
    refuses, a prompt that the bundle has not, and where the runtime cannot open the model.
    """
    bundle = open_bundle(path)
    before = _prompt(bundle, path, prompt)
    opened = load_bundle(bundle, path, threads=threads)
    named = {} if prompt is None else {"prompt": prompt}
    answers = [opened(_readable(opened, text, before), **named) for text in texts]
    if bundle.manifest["output"] == "tokens":
        return answers
    if bundle.manifest["output"] == "embedding":
        return [[float(value) for value in answer] for answer in answers]
    return [{"label": answer[0][0], "score": answer[0][1], "scores": dict(answer)} for answer in answers]


def _prompt(bundle: Bundle, path: Path, name: str | None) -> str:
    """What comes before a text: the prompt of that name, or the model's default; EdgekitError where it has none of that name."""
    settings = bundle.manifest["settings"] or {}
    if name is None:
        return str(settings.get("prompt", ""))
    prompts: Mapping[str, str] = settings.get("prompts") or {}
    if name not in prompts:
        known = f"it has {', '.join(sorted(prompts))}" if prompts else "it has none"
        raise EdgekitError(f"{path}: no prompt {name!r}: {known}")
    return prompts[name]


def _readable(opened: Any, text: str, before: str) -> str:
    """A text without what its loader's tokenizer would only cut off, which for megabytes takes half a minute."""
    if opened.manifest["output"] == "tokens" or not hasattr(opened, "tokenizer"):
        return text
    return readable_part(opened.tokenizer, text, before)


def open_speaker(path: Path, *, threads: int | None = None) -> Any:
    """The loader of a bundle that generates text, opened; None for a bundle that gives rows. Raises as `load_bundle` does."""
    bundle = open_bundle(path)
    return load_bundle(bundle, path, threads=threads) if bundle.manifest["output"] == "tokens" else None


def load_bundle(bundle: Bundle, path: Path, *, threads: int | None = None) -> Any:
    """The loader's own object over a bundle that was opened from `path`.

    The code that runs is edgekit's own copy, never a bundle's: a bundle may come from anywhere. Raises EdgekitError where the
    runtime is absent or cannot open the model.
    """
    manifest = bundle.manifest
    loader = loader_file(str(manifest["artifact"]["format"]), str(manifest["output"]))
    if manifest["files"].get("load.py", {}).get("sha256") != file_sha256(loader):
        log.warning("%s: its load.py is not that of edgekit %s, which answers here", path, __version__)
    runtime = RUNTIMES[FORMATS[str(manifest["artifact"]["format"])].RUNTIME]
    spec = importlib.util.spec_from_file_location("edgekit_bundle_loader", loader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        # What a loader says itself is a RuntimeError, or llama_cpp's ValueError.
        refusals: tuple[type[Exception], ...] = (*runtime.load_errors(), RuntimeError, ValueError)
        spec.loader.exec_module(module)
    except ModuleNotFoundError as absent:
        wanted = '"edgekit[gguf]"' if absent.name == "llama_cpp" else absent.name
        raise EdgekitError(f"{path}: {absent.name} is not installed; run: pip install {wanted}") from absent
    try:
        return module.Bundle(bundle.folder, threads=threads)
    except refusals as refused:
        raise EdgekitError(f"{path}: {str(refused).splitlines()[0]}") from refused


def loader_file(format_: str, output: str) -> Path:
    """The loader that ships with what a format makes of an output."""
    return Path(__file__).parent / "loader" / LOADERS[format_, output]


def write_archive(folder: Path, archive: Path, root: str) -> None:
    """Pack a folder's files below `root` in a .tar.gz of which every byte follows from names and contents."""
    partial = archive.with_name(f".{archive.name}.partial")
    with (
        partial.open("wb") as stream,
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in list_files(folder):
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size = (folder / name).stat().st_size
            entry.mode = 0o644
            with (folder / name).open("rb") as source:
                tar.addfile(entry, source)
    sync(partial)
    partial.replace(archive)


def _judge(content: Mapping[str, Any], put: Packaged, *, strict: bool) -> None:
    verdict = content["verdict"]
    if verdict == "pass" or (verdict == "not proven" and not strict):
        return
    culprits = [check for check in content["checks"] if check["verdict"] == verdict]
    remedies: dict[str, list[str]] = {}
    for check in culprits:
        remedies.setdefault(check.get("remedy") or "no remedy is known", []).append(str(check["name"]))
    reasons = "; ".join(f"{', '.join(names)}: {remedy}" for remedy, names in remedies.items())
    left = f"; the older {put.archive.name} was left as it was" if put.archive.exists() else ""
    raise CheckFailed(f"{put.bundle.name}: {verdict}: {reasons} (no archive written{left}; evidence: {put.report})")


def _write_bundle(product: Product, manifest: dict[str, Any], report: Mapping[str, Any], put: Packaged) -> None:
    partial = partial_of(put.bundle)
    partial.mkdir()
    (partial / MARK).touch()
    try:
        for name in manifest["ships"]:
            shutil.copyfile(product.folder / name, partial / name)
        shutil.copyfile(loader_file(str(product.facts["format"]), str(manifest["output"])), partial / "load.py")
        if manifest["runtime"]["name"] == "llama-cpp":
            (partial / "Modelfile").write_text(modelfile(manifest), encoding="utf-8", newline="\n")
        (partial / "README.md").write_text(model_card(manifest, report), encoding="utf-8", newline="\n")
        del manifest["ships"]
        files = {name: entry for name, entry in list_files(partial).items() if name != MARK}
        manifest["files"] = files
        manifest = json.loads(dump_json(manifest))
        manifest["digest"] = fingerprint(manifest)
        (partial / MANIFEST).write_text(dump_json(manifest), encoding="utf-8", newline="\n")
        if _is_current(put, manifest):
            return
        (partial / MARK).unlink()
        for name in list_files(partial):
            (partial / name).chmod(0o644)
            sync(partial / name)
        write_archive(partial, put.archive, put.bundle.name)
        swap(partial, put.bundle)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        put.archive.with_name(f".{put.archive.name}.partial").unlink(missing_ok=True)


def _describe(product: Product, name: str, recipe: str, target: Target, lineage: Mapping[str, Any]) -> dict[str, Any]:
    facts = product.facts
    settings = dict(facts.get("settings") or {})
    format_ = FORMATS[str(facts["format"])]
    runtime = format_.RUNTIME
    tokenizer = None if format_.CARRIES_TOKENIZER else "tokenizer.json"
    beside = [tokenizer, *([TEMPLATE] if settings.get("chat") else [])] if tokenizer else []
    libraries = sorted({*LIBRARIES, *format_.LIBRARIES})
    return {
        # What the bundle's folder takes from the artifact's; not a part of the manifest that ships.
        "ships": [*facts["files"], *beside],
        "format_version": MANIFEST_FORMAT,
        "edgekit": __version__,
        "name": name,
        "recipe": recipe,
        "target": target.name,
        "target_title": target.title,
        "task": facts["task"],
        "output": facts["output"],
        "labels": list(facts["classes"]),
        "out_of_scope": settings.get("out_of_scope", facts.get("out_of_scope")),
        "threshold": settings.get("threshold"),
        "settings": settings,
        "max_length": facts["max_length"],
        "pad_id": facts["pad_id"],
        "model": facts["file"],
        "tokenizer": tokenizer,
        "runtime": {
            "name": runtime,
            "minimum": facts["minimum_runtime"],
            **RUNTIMES[runtime].joined(target.runtime.get(runtime, {}), facts["runtime_options"]),
        },
        "artifact": {key: facts.get(key) for key in ARTIFACT_FACTS},
        "lineage": {key: value for key, value in lineage.items() if value is not None and "license" not in key},
        "fingerprints": {"export": product.digest, "export_inputs": fingerprint(product.manifest["inputs"])},
        "versions": {library: library_version(library) for library in libraries},
        "licences": {LICENCE_OF[key]: value for key, value in lineage.items() if value and key in LICENCE_OF},
    }


def _is_current(put: Packaged, manifest: Mapping[str, Any]) -> bool:
    """Whether folder and archive already hold exactly this."""
    try:
        if _check_bundle(put.bundle)["digest"] != manifest["digest"]:
            return False
        expected = {f"{put.bundle.name}/{name}": entry["sha256"] for name, entry in manifest["files"].items()}
        expected[f"{put.bundle.name}/{MANIFEST}"] = file_sha256(put.bundle / MANIFEST)
        return expected == dict(_archive_hashes(put.archive))
    except (EdgekitError, OSError, EOFError, tarfile.TarError, zlib.error):
        return False


def _archive_hashes(archive: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(archive, "r|gz") as tar:
        for entry in tar:
            source = tar.extractfile(entry)
            yield entry.name, hashlib.file_digest(source, "sha256").hexdigest() if source else ""  # type: ignore[arg-type]


def _check_bundle(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise EdgekitError(f"{folder}: no {MANIFEST} in it: not a bundle")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or {"digest", "files", "format_version", "model", "tokenizer"} - set(manifest):
        raise EdgekitError(f"{path}: not a manifest that edgekit wrote")
    if manifest["format_version"] != MANIFEST_FORMAT:
        raise EdgekitError(
            f"{path}: format_version {manifest['format_version']}: written by another edgekit; build it again"
        )
    names = [*manifest["files"], manifest["model"], *([manifest["tokenizer"]] if manifest["tokenizer"] else [])]
    for name in names:
        if not _stays_inside(folder, str(name)):
            raise EdgekitError(f"{path}: names a path outside the bundle: {name}; do not use this bundle")
    if fingerprint({key: value for key, value in manifest.items() if key != "digest"}) != manifest["digest"]:
        raise EdgekitError(
            f"{path}: changed after it was written (its digest does not match); package the artifact again"
        )
    for name in names:
        file = folder / name
        if name not in manifest["files"] or not file.is_file():
            raise EdgekitError(f"{file}: missing; fetch or package the bundle again")
        if file_sha256(file) != manifest["files"][name]["sha256"]:
            raise EdgekitError(f"{file}: its sha256 is not the manifest's; fetch or package the bundle again")
    return manifest


def _stays_inside(folder: Path, name: str) -> bool:
    parts = PurePosixPath(name).parts
    plain = bool(parts) and not name.startswith("/") and "\\" not in name and ":" not in parts[0] and ".." not in parts
    return plain and (folder / name).resolve().is_relative_to(folder.resolve())


def _extract(archive: Path, scratch: Path) -> Path:
    """Unpack plain files only, each below the scratch folder; returns the folder that holds the manifest."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                if not entry.isfile() or not _stays_inside(scratch, entry.name):
                    raise EdgekitError(
                        f"{archive}: holds {entry.name}, which is a link or outside the bundle; do not use it"
                    )
                source = tar.extractfile(entry)
                assert source is not None
                place = scratch / entry.name
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as bad:
        raise EdgekitError(f"{archive}: not a whole .tar.gz: {bad}; fetch or package it again") from bad
    found = sorted(scratch.glob(f"*/{MANIFEST}"))
    if len(found) != 1:
        raise EdgekitError(f"{archive}: no {MANIFEST} in it: not a bundle's archive")
    return found[0].parent


def _lock_file(place: Path) -> Path:
    """Not beside the place, which holds products only; a user's own, because a shared temporary folder lends no files."""
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    locks = Path(tempfile.gettempdir()) / f"edgekit-locks{user}"
    make_folder(locks)
    return locks / f"{fingerprint(str(place.resolve()))[:16]}.lock"
