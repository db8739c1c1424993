"""PUBLISHERS: where a release goes, by what stands before the first colon of its address."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import CheckFailed, EdgekitError, first_line, require
from edgekit.release.contents import Release, names_in, read_release
from edgekit.release.oci import check_tag, new_folder, pack, write_layout
from edgekit.release.registry import push as push_to_registry
from edgekit.release.registry import read_reference
from edgekit.release.verify import find_faults

Tell = Callable[[str], None]
Publisher = Callable[[Path, Release, str, Tell], str]
"""Puts a release's folder at an address, telling what it does; what names it there, a digest or an address."""


def publish(folder: Path, address: str, tell: Tell) -> str:
    """Put a release where an address says, once its files fit together; what names it there.

    Raises CheckFailed for a release with a fault (its signature is not asked), EdgekitError where the place does not take it.
    """
    kind, colon, rest = address.partition(":")
    if not (colon and kind in PUBLISHERS):
        kind, rest = "docker", address
    if faults := find_faults(folder, None):
        raise CheckFailed(f"{folder}: not pushed: {faults[0]}")
    return PUBLISHERS[kind](folder, read_release(folder), rest, tell)


def _layout(folder: Path, release: Release, rest: str, tell: Tell) -> str:
    """oci:FOLDER[:TAG], an OCI image layout on disk, as skopeo and oras name one."""
    place, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag or len(place) < 2:
        place, tag = rest, "latest"
    packed = pack(folder, release)
    tell(f"{place}: {len(packed.packs)} manifests")
    write_layout(packed, Path(place), check_tag(tag, f"oci:{rest}"))
    return packed.model.manifest.digest


def _registry(folder: Path, release: Release, rest: str, tell: Tell) -> str:
    """HOST/REPOSITORY:TAG, a registry."""
    return push_to_registry(pack(folder, release), read_reference(rest.removeprefix("//")), tell)


def _hub(folder: Path, release: Release, rest: str, tell: Tell) -> str:
    """hf:OWNER/NAME, a repository on the Hugging Face Hub or on $HF_ENDPOINT, with the token that huggingface_hub finds."""
    hub = require("huggingface_hub")
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # re-exported there for its users

    try:
        api = hub.HfApi()
        api.create_repo(rest, exist_ok=True)
        tell(f"{rest}: {len(release.files)} files")
        done = api.upload_folder(
            repo_id=rest, folder_path=folder, commit_message=f"edgekit {release.edgekit}: {release.name}"
        )
    except (httpx.HTTPError, OSError, ValueError) as failed:
        raise EdgekitError(
            f"hf:{rest}: the hub did not take it: {first_line(failed)[:200]}; sign in with: hf auth login (or set HF_TOKEN)"
        ) from failed
    return str(done)


def _hub_folder(folder: Path, release: Release, rest: str, tell: Tell) -> str:
    """hf-folder:FOLDER, what such a repository holds, to look at or to commit with git."""
    place = Path(rest)
    with new_folder(place) as half:
        tell(f"{place}: {len(release.files)} files")
        shutil.copytree(folder, half)
    return f"{len(names_in(place))} files"


PUBLISHERS: dict[str, Publisher] = {"oci": _layout, "docker": _registry, "hf": _hub, "hf-folder": _hub_folder}
