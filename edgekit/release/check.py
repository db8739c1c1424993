"""Whether a release can be made again: its papers from the bundle and the evidence, its bundle from the recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.open import Bundle, open_bundle
from edgekit.errors import EdgekitError
from edgekit.evidence import read_report
from edgekit.release import contents
from edgekit.release.contents import BOM, BUNDLE, PROVENANCE, QUANTIZATION, read_release
from edgekit.release.quantization import find_sources, record
from edgekit.release.write import Papers, write_papers
from edgekit.schema import dump_json, read_json, read_text
from edgekit.typed_json import as_table

Builder = Callable[[Path], Path]
"""Builds the bundle again below a folder; where it lies."""


@dataclass(frozen=True, kw_only=True)
class Remade:
    """What was made again: the files that came out the same, the first difference (None: there is none), and what could not be
    made again, with why."""

    same: tuple[str, ...]
    difference: str | None
    not_remade: tuple[str, ...]


def check(folder: Path, cache: Path, build: Builder | None = None) -> Remade:
    """Make a release's papers again from its bundle and reports, and with a builder the bundle too, and compare every byte.

    Raises EdgekitError where the folder is no whole release, or the bundle cannot be built.
    """
    release = read_release(folder)
    bundle = open_bundle(folder / BUNDLE)
    left: list[str] = []
    texts = write_papers(bundle, _papers(folder, bundle, cache, release.reports, left))
    made = {name: text.encode() for name, text in sorted(texts.items()) if not (name == QUANTIZATION and left)}
    if build is None:
        left.append(f"{BUNDLE}: name its recipe to build it again: --recipe")
        return _compare(folder, made, left)
    with tempfile.TemporaryDirectory(prefix="edgekit-check-") as scratch:
        again = build(Path(scratch))
        names = [*(bundle.manifest.files or {}), "bundle.json"]
        made |= {f"{BUNDLE}/{name}": _bytes(again / name) for name in sorted(names)}
    return _compare(folder, made, left)


def _papers(folder: Path, bundle: Bundle, cache: Path, reports: int, left: list[str]) -> Papers:
    """What the papers were made from, as the release itself says."""
    evidence = []
    for number in range(1, reports + 1):
        predicate = as_table(read_json(folder / contents.measurement_name(number))["predicate"])
        at = predicate.get("at")
        evidence.append((read_report(folder / contents.report_name(number)), str(at) if at else None))
    kept = read_text(folder / QUANTIZATION)
    sources = find_sources(bundle, cache)
    if sources.student is None and '"largest_error": 0' in kept:
        left.append(f"{QUANTIZATION}: the float student is not in {cache}")
    else:
        kept = dump_json(record(bundle, sources))
    details = as_table(as_table(read_json(folder / PROVENANCE)["predicate"]).get("runDetails"))
    made = as_table(read_json(folder / BOM)["metadata"]).get("timestamp")
    return Papers(
        evidence=evidence,
        quantization=kept,
        builder=str(as_table(details.get("builder")).get("id")),
        made=str(made) if made else None,
    )


def _compare(folder: Path, made: dict[str, bytes], left: Sequence[str]) -> Remade:
    same: list[str] = []
    for name, content in made.items():
        kept = _bytes(folder / name)
        if kept != content:
            return Remade(same=tuple(same), difference=_difference(name, kept, content), not_remade=tuple(left))
        same.append(name)
    return Remade(same=tuple(same), difference=None, not_remade=tuple(left))


def _difference(name: str, kept: bytes, made: bytes) -> str:
    """Where two files differ first: the line of a text, the byte of anything else."""
    at = next(
        (index for index, (one, other) in enumerate(zip(kept, made, strict=False)) if one != other),
        min(len(kept), len(made)),
    )
    try:
        kept.decode()
        lines = [text.splitlines() for text in (kept.decode(), made.decode())]
    except UnicodeDecodeError:
        return f"{name}: differs from byte {at} on ({len(kept)} bytes are there, {len(made)} were made)"
    number = kept[:at].count(b"\n")
    was, now = (one[number].strip()[:80] if number < len(one) else "its end" for one in lines)
    return f"{name}: line {number + 1} is {was!r}, and was made again as {now!r}"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as failed:
        raise EdgekitError(f"{path}: cannot be read: {failed.strerror or failed}") from failed
