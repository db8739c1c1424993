"""Whose licences a bundle is under, and what they ask of who passes it on: NOTICE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest

# What a licence asks of who passes on what is under it, by the beginning of its SPDX id or of the name that model cards give it.
# The texts themselves: https://spdx.org/licenses, and the owners' pages.
OBLIGATIONS: dict[str, str] = {
    "apache-2.0": "pass on the licence's text and the notices, and say what was changed",
    "mit": "pass on the copyright line and the licence's text",
    "bsd": "pass on the copyright line and the licence's text",
    "isc": "pass on the copyright line and the licence's text",
    "0bsd": "asks nothing",
    "zlib": "say what was changed; keep the licence's text with the source",
    "bsl": "pass on the licence's text with the source",
    "cc0": "asks nothing",
    "unlicense": "asks nothing",
    "cc-by-sa": "name the authors, link the licence, say what was changed, and pass it on under the same licence",
    "cc-by-nc": "name the authors, link the licence, say what was changed; no commercial use",
    "cc-by": "name the authors, link the licence, say what was changed",
    "llama": 'show "Built with Llama", pass on the licence and its notice, begin the model\'s name with Llama',
    "gemma": "pass on Google's Gemma Terms of Use and its prohibited uses, and say what was changed",
    "gpl": "pass on the source under the same licence",
    "lgpl": "pass on the source of the library under the same licence",
    "mpl": "pass on the source of the files under the same licence",
    "odc-by": "name the source of the data",
    "odbl": "name the source of the data, and pass on what derives from it under the same licence",
}
UNKNOWN = "read its text: edgekit does not know what it asks"


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Something that went into a bundle, and the licence that it is under; None where nobody says. kind: model, teacher, data or
    tool."""

    kind: str
    name: str
    licence: str | None


def licences(manifest: Manifest) -> list[Licence]:
    """All that went into a bundle, with their licences; those of tools are what their packages here say."""
    stated = manifest.licences
    found = [Licence(kind="model", name=manifest.name, licence=stated.get("this model"))]
    if "teacher" in manifest.lineage or "teacher" in stated:
        teacher = manifest.lineage.get("teacher", "teacher")
        found.append(Licence(kind="teacher", name=teacher, licence=stated.get("teacher")))
    found.append(Licence(kind="data", name=f"data of {manifest.recipe}", licence=stated.get("data")))
    tools = sorted(manifest.versions)
    return [*found, *(Licence(kind="tool", name=name, licence=package_licence(name)) for name in tools)]


def package_licence(name: str) -> str | None:
    """The licence that an installed package states: as SPDX, in one line, or by its classifier (PEP 639, PEP 301)."""
    try:
        said = metadata.metadata(name).json
    except metadata.PackageNotFoundError:
        return None
    if expression := said.get("license_expression"):
        return str(expression)
    lines = said.get("classifier", ())
    classified = [line.rpartition(" :: ")[2] for line in lines if line.startswith("License ::")]
    stated = str(said.get("license") or "").strip()
    if stated and len(stated) < 60 and "\n" not in stated:
        return _SPDX.get(stated, stated)
    return _SPDX.get(classified[0], classified[0]) if classified else None


# What packages write in place of SPDX's ids.
_SPDX = {
    "Apache Software License": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def obligation(licence: str) -> str:
    """What a licence asks, in a few words; where it joins several, what each of them does."""
    parts = licence.replace("(", " ").replace(")", " ").replace(" AND ", " OR ").split(" OR ")
    return "; ".join(dict.fromkeys(_of_one(part.strip()) for part in parts))


def _of_one(licence: str) -> str:
    lower = licence.lower()
    known = [begin for begin in OBLIGATIONS if lower.startswith(begin)]
    return OBLIGATIONS[max(known, key=len)] if known else UNKNOWN


def notice(manifest: Manifest) -> str:
    """NOTICE of a release: what it holds, under which licences, and what they ask."""
    kinds: Mapping[str, str] = {
        "model": "This model",
        "teacher": "It was distilled from, or is",
        "data": "It was trained or judged on",
        "tool": "It was made with",
    }
    lines = [
        manifest.name,
        "",
        "What went into this release, under which licence, and what that asks of who passes it on.",
        "",
    ]
    for entry in licences(manifest):
        asks = (
            obligation(entry.licence) if entry.licence else "no licence is stated: ask its owner before you pass it on"
        )
        version = f" {manifest.versions[entry.name]}" if entry.kind == "tool" else ""
        lines += [
            f"{kinds[entry.kind]}: {entry.name}{version}",
            f"  licence: {entry.licence or 'not stated'}",
            f"  it asks: {asks}",
        ]
    return "\n".join(lines) + "\n"
