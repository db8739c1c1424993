"""What two bundles say of themselves: which they are, what an app relies on, and how they are set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgekit.bundle.contract import relied_on
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.open import Bundle
from edgekit.diff.sides import Side
from edgekit.recipe import read_version
from edgekit.typed_json import as_table
from edgekit.workspace import file_sha256

# Said where the manifest has them: settings repeat them.
_TWICE = {"settings.threshold", "settings.out_of_scope"}


@dataclass(frozen=True, kw_only=True)
class Told:
    """Which one it is. bytes: of all its files; sha256: of the model. What only a bundle says is None of a model file alone."""

    path: str
    kind: str
    name: str
    version: str | None
    digest: str | None
    task: str | None
    target: str | None
    format: str
    scheme: str | None
    bytes: int
    model_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class LabelChange:
    """renamed: labels in whose place another stands, by the old name. reordered: those that stay are in another order."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    renamed: Mapping[str, str]
    reordered: bool


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting that is another: its key, and both values; None where a side has none."""

    key: str
    a: object
    b: object


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """A file that is not the same; its bytes are None where a side has none of that name."""

    name: str
    a: int | None
    b: int | None


def tell(side: Side) -> Told:
    """Which one a side is."""
    manifest = side.manifest
    if manifest is None:
        size = side.file.stat().st_size
        return Told(
            path=str(side.path), kind=side.kind, name=side.file.name, version=None, digest=None, task=None, target=None,
            format=side.file.suffix[1:], scheme=None, bytes=size, model_bytes=size, sha256=file_sha256(side.file),
        )  # fmt: skip
    return Told(
        path=str(side.path),
        kind=side.kind,
        name=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        task=manifest.task,
        target=manifest.target,
        format=manifest.artifact.format,
        scheme=manifest.artifact.scheme,
        bytes=sum(entry.bytes for entry in (manifest.files or {}).values()),
        model_bytes=manifest.artifact.bytes,
        sha256=manifest.artifact.sha256,
    )


def compare_labels(a: Sequence[str], b: Sequence[str]) -> LabelChange:
    """What became of A's labels."""
    renamed = {}
    if len(a) == len(b):
        renamed = {old: new for old, new in zip(a, b, strict=True) if old not in b and new not in a}
    stay = [[label for label in labels if label in a and label in b] for labels in (a, b)]
    return LabelChange(
        added=tuple(label for label in b if label not in a and label not in renamed.values()),
        removed=tuple(label for label in a if label not in b and label not in renamed),
        renamed=renamed,
        reordered=stay[0] != stay[1],
    )


def compare_settings(a: Manifest, b: Manifest) -> tuple[Setting, ...]:
    """Thresholds, prompts, stops, lengths and the runtime's options that are others."""
    mine, theirs = dict(_settings(a)), dict(_settings(b))
    keys = [key for key in {**mine, **theirs} if key not in _TWICE]
    return tuple(
        Setting(key=key, a=mine.get(key), b=theirs.get(key)) for key in keys if mine.get(key) != theirs.get(key)
    )


def _settings(manifest: Manifest) -> Iterator[tuple[str, object]]:
    for key in ("threshold", "out_of_scope", "max_length", "pad_id"):
        yield key, getattr(manifest, key)
    for part in ("settings", "runtime"):
        for key, value in as_table(getattr(manifest, part)).items():
            # Lists of a recipe are tuples here and there.
            yield f"{part}.{key}", list(value) if isinstance(value, tuple) else value


def compare_files(a: Manifest, b: Manifest) -> tuple[FileChange, ...]:
    """Files that are not the same."""
    mine, theirs = a.files or {}, b.files or {}
    return tuple(
        FileChange(
            name=name,
            a=mine[name].bytes if name in mine else None,
            b=theirs[name].bytes if name in theirs else None,
        )
        for name in sorted(mine.keys() | theirs.keys())
        if (mine[name].sha256 if name in mine else None) != (theirs[name].sha256 if name in theirs else None)
    )


def why_incompatible(a: Bundle, b: Bundle) -> list[str]:
    """Why an app that uses A cannot use B as it is; empty where it can."""
    mine, theirs = (relied_on(side.manifest, side.folder / side.manifest.model) for side in (a, b))
    reasons = [
        f"{key.replace('_', ' ')}: {_words(theirs[key])}, was {_words(mine[key])}"
        for key in mine
        if key != "labels" and mine[key] != theirs[key]
    ]
    before, after = a.manifest, b.manifest
    if mine["labels"] != theirs["labels"]:
        reasons.append(f"labels: {label_words(compare_labels(before.labels, after.labels))}")
    since = after.compatible_with.since if after.compatible_with else None
    if since and before.version and read_version(before.version, "version") < read_version(since, "compatible_with"):
        reasons.append(f"version: B is for apps of {since} and newer, and A is {before.version}")
    return reasons


def notes(a: Manifest, b: Manifest) -> list[str]:
    """What else somebody who replaces A by B should know."""
    found = []
    if a.version and b.version:
        before, after = read_version(a.version, "version"), read_version(b.version, "version")
        if after < before:
            found.append(f"B is older than A: {b.version}, not {a.version}; a loader that is told to refuses it")
        elif after == before and a.digest != b.digest:
            found.append(f"both say version {a.version}, and they are not the same: give B another one")
    minimum = (str(a.runtime["minimum"]), str(b.runtime["minimum"]))
    if a.runtime_name == b.runtime_name and minimum[0] != minimum[1]:
        found.append(f"B needs {b.runtime_name} {minimum[1]} or newer, A {minimum[0]}")
    return found


def label_words(change: LabelChange) -> str:
    """What became of the labels, in words."""
    renamed = [f"{old} is now {new}" for old, new in change.renamed.items()]
    parts = {"added": change.added, "removed": change.removed, "renamed": renamed}
    told = [f"{word} {_some(names)}" for word, names in parts.items() if names]
    return "; ".join([*told, *(["in another order"] if change.reordered else [])]) or "the same"


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _words(value: object) -> str:
    if isinstance(value, list):
        return _some([str(one) for one in value]) or "none"
    return "none" if value is None else str(value)
