"""What a release holds, and release.json, which lists it.

release.json                    this list: every other file but the signature, with bytes and sha256
model.sig                       the signature over all the rest (OpenSSF model signing)
bundle/                         the bundle, unchanged
bom.cdx.json                    the bill of materials (CycloneDX 1.7)
quantization.json               how every tensor is held, and how far it is from the float one
evidence/report-N.json          what verify measured, device by device
evidence/measurement-N.intoto.json  the same as a statement about the model's file
provenance.intoto.json          where the bundle comes from (SLSA v1)
NOTICE                          whom the licences want named
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.bundle import destination
from edgekit.bundle.manifest import FileEntry, digest_of
from edgekit.errors import EdgekitError
from edgekit.schema import dump_json, read_json
from edgekit.typed_json import MAY_BE_ABSENT, read_table, to_table

RELEASE = "release.json"
SIGNATURE = destination.SIGNATURE
BUNDLE = "bundle"
BOM = "bom.cdx.json"
QUANTIZATION = "quantization.json"
PROVENANCE = "provenance.intoto.json"
NOTICE = "NOTICE"
CARD = "README.md"
# Of release.json: raised where an older edgekit would misread it.
FORMAT = 1


def report_name(number: int) -> str:
    """The name in a release of the n-th report, from 1."""
    return f"evidence/report-{number}.json"


def measurement_name(number: int) -> str:
    """The name in a release of the statement about the n-th report, from 1."""
    return f"evidence/measurement-{number}.intoto.json"


@dataclass(frozen=True, kw_only=True)
class Release:
    """What release.json says: which bundle of which edgekit, for which target, its worst verdict, and every file.

    artifact: sha256 of the model. reports: how many there are. policy: sha256 of the policy that it was held against. digest:
    sha256 over all else that it says; there once the files are.
    """

    format_version: int
    edgekit: str
    name: str
    target: str
    bundle: str
    artifact: str
    verdict: str
    reports: int
    policy: str | None
    files: Mapping[str, FileEntry]
    digest: str | None = field(default=None, metadata=MAY_BE_ABSENT)

    def whole(self) -> Release:
        """The same with its digest."""
        bare = replace(self, digest=None)
        return replace(bare, digest=digest_of(json.loads(bare.to_json())))

    def to_json(self) -> str:
        """The text of release.json."""
        return dump_json(to_table(self))


def read_release(folder: Path) -> Release:
    """What a release's release.json says; EdgekitError where there is none, it is of another edgekit, or was edited."""
    path = folder / RELEASE
    if not path.is_file():
        raise EdgekitError(f"{folder}: no {RELEASE} in it: not a release that edgekit made")
    table = read_json(path)
    if not isinstance(table, dict) or {"digest", "files", "format_version"} - set(table):
        raise EdgekitError(f"{path}: not a list that edgekit release wrote")
    if table["format_version"] != FORMAT:
        raise EdgekitError(
            f"{path}: format_version {table['format_version']}: written by another edgekit; use that one"
        )
    release = read_table(Release, table, str(path))
    if digest_of(table) != table["digest"] or path.read_bytes() != release.to_json().encode():
        raise EdgekitError(f"{path}: changed after it was written (its digest does not match); fetch the release again")
    return release


def names_in(folder: Path) -> list[str]:
    """Every file, link and empty folder below a folder, as posix paths, sorted; links are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        where = Path(place).relative_to(folder)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(where / name).as_posix() for name in (*files, *links)]
        if place != str(folder) and not folders and not files:
            found.append(where.as_posix())
    return sorted(found)
