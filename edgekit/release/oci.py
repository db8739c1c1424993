"""A release as an OCI artifact: the model in CNCF ModelPack's media types, and what is said of it as referrers.

    manifest   artifactType application/vnd.cncf.model.manifest.v1+json: every file of the release but those below, a layer each
    referrers  the bill, every in-toto statement and the signature, each a manifest whose subject is the model's

Specifications: https://github.com/modelpack/model-spec, docs/spec.md; https://github.com/opencontainers/image-spec, 1.1,
manifest.md and image-layout.md. Every byte follows from the release: no date is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.destination import partial
from edgekit.errors import EdgekitError
from edgekit.release import contents
from edgekit.release.contents import BOM, BUNDLE, PROVENANCE, SIGNATURE, Release
from edgekit.schema import read_json
from edgekit.typed_json import as_table
from edgekit.workspace import disk_error, file_sha256, make_folder, sync

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
_LAYER = "application/vnd.cncf.model.{}.v1.raw"
BILL = "application/vnd.cyclonedx+json"
STATEMENT = "application/vnd.in-toto+json"
SIGSTORE = "application/vnd.dev.sigstore.bundle.v0.3+json"
FILE_PATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
TAG = "org.opencontainers.image.ref.name"
LAYOUT = "oci-layout"
_CODE = (".py", ".mjs", ".js", ".ts", ".html", ".c", ".h", ".kt", ".swift")
_CONFIGURATION = (".json", ".jinja", "Modelfile", ".config")


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Bytes by their sha256: in a file, or here."""

    media_type: str
    sha256: str
    size: int
    path: Path | None = None
    content: bytes = b""
    name: str | None = None

    @property
    def digest(self) -> str:
        """As OCI names it."""
        return f"sha256:{self.sha256}"

    def descriptor(self) -> dict[str, object]:
        """What a manifest says of it; where it is a file of the release, under which name."""
        named = {"annotations": {FILE_PATH: self.name, TITLE: self.name}} if self.name else {}
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **named}


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A manifest, and the blobs that it names."""

    manifest: Blob
    kind: str
    blobs: tuple[Blob, ...]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A release as packs: the model's, and those that refer to it."""

    model: Pack
    referrers: tuple[Pack, ...]

    @property
    def packs(self) -> tuple[Pack, ...]:
        """All, the model's first."""
        return (self.model, *self.referrers)


def pack(folder: Path, release: Release) -> Packed:
    """A release's folder as an OCI artifact. Its files are read where they are when they are copied."""
    apart = {BOM: BILL, PROVENANCE: STATEMENT}
    apart |= {contents.measurement_name(number): STATEMENT for number in range(1, release.reports + 1)}
    manifest = as_table(read_json(folder / BUNDLE / "bundle.json"))
    files = {name: entry.sha256 for name, entry in release.files.items()}
    files[contents.RELEASE] = file_sha256(folder / contents.RELEASE)
    layers = [
        _file(folder, name, sha256, layer_type(name, str(manifest["model"])))
        for name, sha256 in sorted(files.items())
        if name not in apart
    ]
    config = _inline(CONFIG, _config(manifest, layers))
    model = _pack({"artifactType": MODEL}, config, layers)
    referrers = [
        _refer(_file(folder, name, files[name], kind), model.manifest)
        for name, kind in sorted(apart.items())
        if name in files
    ]
    if (folder / SIGNATURE).is_file():
        signature = _file(folder, SIGNATURE, file_sha256(folder / SIGNATURE), SIGSTORE)
        referrers.append(_refer(signature, model.manifest))
    return Packed(model=model, referrers=tuple(referrers))


def layer_type(name: str, model: str) -> str:
    """ModelPack's media type of a file of a release; model: the name of the model's file in its bundle."""
    inside = name.removeprefix(f"{BUNDLE}/")
    if inside == model or inside.startswith(f"{model}."):
        return _LAYER.format("weight")
    if name.endswith(_CODE):
        return _LAYER.format("code")
    if name.startswith(f"{BUNDLE}/") and name.endswith(_CONFIGURATION):
        return _LAYER.format("weight.config")
    return _LAYER.format("doc")


def write_layout(packed: Packed, place: Path, tag: str) -> None:
    """Write the artifact as an OCI image layout, beside its place and renamed. EdgekitError where something lies there."""
    with new_folder(place) as half:
        (half / "blobs" / "sha256").mkdir(parents=True)
        for blob in _blobs(packed):
            _copy(blob, half / "blobs" / "sha256" / blob.sha256)
        (half / "index.json").write_bytes(_json(layout_index(packed, tag)))
        (half / LAYOUT).write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
        sync(half / LAYOUT)


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Where a folder is filled beside its place, to which it is renamed as a whole. EdgekitError where something lies there."""
    if os.path.lexists(place) and not (place.is_dir() and not place.is_symlink() and not any(place.iterdir())):
        raise EdgekitError(f"{place}: is there; name a folder that is not")
    half = partial(place)
    try:
        make_folder(place.parent)
        shutil.rmtree(half, ignore_errors=True)
        yield half
        if place.exists():
            place.rmdir()
        half.rename(place)
    except OSError as failed:
        raise disk_error(place, failed) from failed
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(half)


def layout_index(packed: Packed, tag: str) -> dict[str, object]:
    """index.json of a layout: the model by its tag, and what refers to it."""
    model = {**packed.model.manifest.descriptor(), "artifactType": MODEL, "annotations": {TAG: tag}}
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": [model, *_referring(packed)]}


def referrers_index(packed: Packed) -> Blob:
    """The list of what refers to the model, for registries that keep none (distribution-spec 1.1, "referrers tag schema")."""
    return _inline(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": _referring(packed)})


def referrers_tag(packed: Packed) -> str:
    """The tag that such a list has."""
    return packed.model.manifest.digest.replace(":", "-")


def check_tag(tag: str, where: str) -> str:
    """A tag that registries take; EdgekitError where it is none."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", tag):
        raise EdgekitError(f"{where}: {tag!r} is no tag: letters, digits, '.', '_' and '-', 128 at most")
    return tag


def _referring(packed: Packed) -> list[dict[str, object]]:
    return [{**one.manifest.descriptor(), "artifactType": one.kind} for one in packed.referrers]


def _config(manifest: Mapping[str, object], layers: list[Blob]) -> dict[str, object]:
    """ModelPack's config (schema/config-schema.json)."""
    artifact = as_table(manifest["artifact"])
    licence = as_table(manifest["licences"]).get("this model")
    descriptor = {"name": manifest["name"], "version": str(manifest["digest"])[:16], "title": manifest["target_title"]}
    return {
        "descriptor": descriptor | ({"licenses": [licence]} if licence else {}),
        "config": {"format": artifact["format"], "quantization": artifact["scheme"]},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }


def _refer(blob: Blob, subject: Blob) -> Pack:
    return _pack({"artifactType": blob.media_type, "subject": subject.descriptor()}, _inline(EMPTY, {}), [blob])


def _pack(more: Mapping[str, object], config: Blob, layers: list[Blob]) -> Pack:
    listed = [layer.descriptor() for layer in layers]
    table = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": listed, **more}
    return Pack(manifest=_inline(MANIFEST, table), kind=str(more["artifactType"]), blobs=(config, *layers))


def _file(folder: Path, name: str, sha256: str, kind: str) -> Blob:
    path = folder / name
    return Blob(media_type=kind, sha256=sha256, size=path.stat().st_size, path=path, name=name)


def _inline(kind: str, table: Mapping[str, object]) -> Blob:
    content = _json(table)
    return Blob(media_type=kind, sha256=hashlib.sha256(content).hexdigest(), size=len(content), content=content)


def _json(table: Mapping[str, object]) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _blobs(packed: Packed) -> Iterator[Blob]:
    for one in packed.packs:
        yield from one.blobs
        yield one.manifest


def _copy(blob: Blob, path: Path) -> None:
    if path.exists():
        return
    if blob.path is None:
        path.write_bytes(blob.content)
    else:
        shutil.copyfile(blob.path, path)
    path.chmod(0o644)
    sync(path)
