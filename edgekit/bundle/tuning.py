"""The best setting that was measured for a bundle, as `NAME.tuning.json` beside it says (`build --sweep` writes it)."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.runtimes.machine import describe
from edgekit.schema import read_json
from edgekit.times import Tuning
from edgekit.typed_json import read_table

if TYPE_CHECKING:
    from edgekit.bundle.manifest import Manifest

ENDING, _ARCHIVE = ".tuning.json", ".tar.gz"

log = logging.getLogger("edgekit")


def use_tuning(path: Path, manifest: Manifest) -> int | None:
    """The threads of the setting beside a bundle's folder or archive, its cores given to this process; None where none is for it.

    One of another artifact, or of another CPU than this machine's, is not used; which it was, the log says. Raises EdgekitError
    for a file that is no such setting.
    """
    where = path.absolute()
    file = where.with_name(where.name.removesuffix(_ARCHIVE) + ENDING)
    if not file.is_file():
        return None
    try:
        found = read_table(Tuning, read_json(file), str(file))
    except EdgekitError as wrong:
        raise EdgekitError(f"{wrong.message}; remove it, or leave it aside with --no-tuning") from wrong
    if why := _unfit(found, manifest):
        log.warning("%s: not used: %s", file.name, why)
        return None
    cpus, threads = found.best.cpus, found.best.threads
    if cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    on = "" if cpus is None else f" on cores {', '.join(map(str, cpus))}"
    log.warning("%s: %d thread%s%s; --no-tuning leaves it aside", file.name, threads, "s" if threads > 1 else "", on)
    return threads


def _unfit(found: Tuning, manifest: Manifest) -> str | None:
    """Why a setting is not one for this model on this machine."""
    if manifest.artifact.sha256 != found.artifact:
        return "it was measured with another artifact; build with --sweep again"
    if (here := describe()["cpu"]) != found.cpu:
        return f"it was measured on {found.cpu}, and this is {here}"
    return None
