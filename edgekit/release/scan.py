"""What must be in no release: private keys, tokens, and paths of the machine that built it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit.errors import EdgekitError

# How much of a file is looked at once, and how much of it again with what follows, so that nothing lies on a seam.
_PIECE, _SEAM = 1 << 22, 1 << 12
# Shapes of secrets, as their owners document them.
SECRETS: Mapping[str, re.Pattern[bytes]] = {
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a token of Hugging Face": re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),
    "a token of GitHub": re.compile(rb"\b(?:gh[oprsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})"),
    "a token of GitLab": re.compile(rb"\bglpat-[A-Za-z0-9_-]{20,}"),
    "a key of AWS": re.compile(rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
}
# Environment variables whose values are secrets, and from how many characters on a value is no chance.
_NAMES = re.compile(r"TOKEN|SECRET|PASSW|_KEY$|CREDENTIAL", re.IGNORECASE)
_LEAST = 12


def refuse_secrets(folder: Path, names: list[str]) -> None:
    """Raise EdgekitError for the first file below a folder that holds a key, a token or a path of this machine."""
    told = {**SECRETS, **_own()}
    for name in names:
        for found in scan(folder / name, told):
            raise EdgekitError(
                f"{name} holds {found}, and a release must not: build again with a recipe that names files relative to its own"
                " folder and holds no secret"
            )


def scan(path: Path, patterns: Mapping[str, re.Pattern[bytes]]) -> Iterator[str]:
    """What of the patterns a file holds, by their names."""
    left = dict(patterns)
    before = b""
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            text = before + piece
            for name in [name for name, pattern in left.items() if pattern.search(text)]:
                del left[name]
                yield name
            before = text[-_SEAM:]


def _own() -> dict[str, re.Pattern[bytes]]:
    """Patterns of this machine: the home folder, the folder where edgekit runs, and the secrets of the environment."""
    home = Path(os.path.expanduser("~"))
    places = {"a path of your home folder": home, "a path of the folder that edgekit runs in": Path.cwd()}
    found = {
        name: re.compile(rb"(?<![\w.-])" + re.escape(os.fsencode(place)) + rb"[/\\]")
        for name, place in places.items()
        if len(place.parts) > 1
    }
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= _LEAST and not value.startswith(("/", "http")):
            found[f"the value of ${name}"] = re.compile(re.escape(os.fsencode(value)))
    return found
