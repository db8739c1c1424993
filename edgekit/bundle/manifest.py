"""The manifest of a bundle: what bundle.json says of it, to the loader that ships and to whoever opens the bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgekit.schema import dump_json
from edgekit.typed_json import MAY_BE_ABSENT, read_table, to_table
from edgekit.workspace import fingerprint

# Of bundle.json: raised where an older edgekit would misread it.
MANIFEST_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of a bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShippedFile:
    """What the model's file is, by the artifact; the versions and operators of ONNX are None of other formats."""

    format: str
    scheme: str
    bytes: int
    sha256: str
    opset: int | None
    ir_version: int | None
    operators: tuple[str, ...] | None
    quantized: Mapping[str, object]
    choices: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Compatible:
    """Which apps can use a bundle as they are: those of an older one with the same `app`, whose version is `since` or newer.

    app: sha256 over what an app relies on (`bundle.contract`). since: None where the recipe sets no bound.
    """

    app: str
    since: str | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What bundle.json says. files and digest are there once all else of the bundle is.

    version, compatible_with: where the recipe gives a version; without one, no key says anything of it. runtime: its `name`, the
    oldest version that runs the model as `minimum`, and the options of a session. settings: the task's (prompt, prompts, stop,
    chat, ...). lineage: where the model comes from; licences: by what they are of. digest: sha256 over all else that the manifest
    says.
    """

    format_version: int
    edgekit: str
    name: str
    recipe: str
    target: str
    target_title: str
    task: str
    output: str
    labels: tuple[str, ...]
    out_of_scope: str | None
    threshold: float | None
    settings: Mapping[str, object]
    max_length: int
    pad_id: int
    model: str
    tokenizer: str | None
    runtime: Mapping[str, object]
    artifact: ShippedFile
    lineage: Mapping[str, str]
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    licences: Mapping[str, str]
    files: Mapping[str, FileEntry] | None = field(default=None, metadata=MAY_BE_ABSENT)
    digest: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    version: str | None = field(default=None, metadata=MAY_BE_ABSENT)
    compatible_with: Compatible | None = field(default=None, metadata=MAY_BE_ABSENT)

    @property
    def runtime_name(self) -> str:
        """The name of the runtime."""
        return str(self.runtime["name"])

    @property
    def chats(self) -> bool:
        """Whether the model takes conversations."""
        return bool(self.settings.get("chat"))

    @property
    def prompt(self) -> str:
        """What comes before each text, where none is named."""
        return str(self.settings.get("prompt", ""))

    @property
    def prompts(self) -> dict[str, str]:
        """What can come before a text, by name."""
        found = self.settings.get("prompts")
        return {str(name): str(text) for name, text in found.items()} if isinstance(found, Mapping) else {}

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        found = self.settings.get("stop")
        return [str(text) for text in found] if isinstance(found, list | tuple) else []

    def to_json(self) -> str:
        """The text of bundle.json."""
        return dump_json(to_table(self))

    def with_files(self, files: Mapping[str, FileEntry]) -> Manifest:
        """The manifest of a bundle with these files: whole, with its digest."""
        whole = replace(self, files=files, digest=None)
        return replace(whole, digest=digest_of(json.loads(whole.to_json())))


def digest_of(table: Mapping[str, object]) -> str:
    """The digest that belongs to what bundle.json says."""
    return fingerprint({key: value for key, value in table.items() if key != "digest"})


def read_manifest(table: object, where: str) -> Manifest:
    """The manifest by bundle.json's table; EdgekitError names the first key that is missing, unknown or holds something else."""
    return read_table(Manifest, table, where)
