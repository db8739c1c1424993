"""What a user is told when something is wrong.

EdgekitError            exit 1: where, what, remedy
  Unfinished            exit 1: a step stopped early, and goes on where it was when it is run again
  CheckFailed           exit 3: the evidence is written, the archive is not
  DeviceFailed          exit 4: the device could not be reached or did not answer
"""

from __future__ import annotations

import importlib
from types import ModuleType

import click


class EdgekitError(click.ClickException):
    """A problem that the user can act on; its message says where, what and the remedy."""

    exit_code = 1


class Unfinished(EdgekitError):
    """A resumable step that stopped early: what it has made so far is kept, and the same command goes on from there."""


class CheckFailed(EdgekitError):
    """A check measured worse than its limit."""

    exit_code = 3


class DeviceFailed(EdgekitError):
    """The device could not run what it was asked to."""

    exit_code = 4


def first_line(failed: BaseException) -> str:
    """What a library's error says, in one line: its first, or its name where it says nothing."""
    return next(iter(str(failed).strip().splitlines()), type(failed).__name__)


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import an optional library, or say which pip line brings it.

    Raises EdgekitError where the library is not installed, and where it is and does not load: a shared library of its own is
    not there, or was built for another machine.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or not module.startswith(missing.name):
            raise
        remedy = f'pip install "edgekit[{extra}]"' if extra else f"pip install {missing.name}"
        raise EdgekitError(f"{module}: this Python package is not installed; run: {remedy}") from missing
    except (ImportError, OSError, RuntimeError) as broken:
        # llama_cpp raises RuntimeError for a library of its own that does not load.
        wanted = f'"edgekit[{extra}]"' if extra else module.partition(".")[0]
        why = " ".join(str(broken).split())[:300]
        raise EdgekitError(
            f"{module}: this Python package is installed and does not load ({why}); what it was built for is not on this"
            f" machine: run: pip install --force-reinstall {wanted}"
        ) from broken
