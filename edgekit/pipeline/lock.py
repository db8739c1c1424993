"""The lock file of a recipe: what builds found or chose that a recipe does not say, kept so that the next one takes the same.

It lies beside the bundles, `OUT/RECIPE.lock.json`, the one place that edgekit writes for the user, and is to be kept with the
recipe: another machine, for which a hub has moved on or times are others, then builds the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.pipeline.plan import Session
from edgekit.recipe import Recipe
from edgekit.schema import dump_json, read_json
from edgekit.workspace import make_folder, write_atomically

REMEDY = "restore the file, or remove it: what it kept is then found and chosen anew"


def lock_path(recipe: Recipe, session: Session) -> Path:
    """Where a recipe's lock file is, or will be."""
    return session.out / f"{recipe.name}.lock.json"


def read_lock(path: Path, part: str) -> Mapping[str, object]:
    """What a lock file keeps under a name; {} where it keeps nothing. Raises EdgekitError for what edgekit did not write."""
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except EdgekitError as damaged:
        raise EdgekitError(f"{damaged.message}; {REMEDY}") from damaged
    if not isinstance(found, dict) or not isinstance(found.get(part, {}), dict):
        raise EdgekitError(f"{path}: is there and edgekit did not write it; move it away or choose another --out")
    return dict(found.get(part, {}))


def write_lock(path: Path, part: str, content: Mapping[str, object]) -> None:
    """Keep this under a name; what other names keep stays. Raises EdgekitError as `read_lock` does, and for a full disk."""
    read_lock(path, part)
    make_folder(path.parent)
    kept = read_json(path) if path.is_file() else {}
    write_atomically(path, dump_json({**kept, part: dict(content)}))
