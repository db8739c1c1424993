"""This machine as a device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from edgekit.devices.device import Facts, Finished, copy_out
from edgekit.errors import DeviceFailed
from edgekit.runtimes.machine import describe
from edgekit.schema import parse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """`[device]` of a target that runs where edgekit runs."""

    kind: Literal["local"] = "local"


class LocalDevice:
    """This machine: a pushed folder stays where it is, a command runs in a folder of its own."""

    Options: ClassVar[type[DataclassInstance]] = LocalOptions
    REMOTE: ClassVar[bool] = False
    PROBE: ClassVar[str] = "python"

    def __init__(self, table: Mapping[str, object], where: str = "device") -> None:
        parse(LocalOptions, dict(table), where)
        self._work: tempfile.TemporaryDirectory[str] | None = None

    @property
    def identity(self) -> str:
        """The same on every machine: what it is says which one."""
        return "local"

    @property
    def work(self) -> str:
        """A temporary folder, made when it is first asked for."""
        if self._work is None:
            self._work = tempfile.TemporaryDirectory(prefix="edgekit-")
        return self._work.name

    @property
    def python(self) -> str:
        """The one that runs edgekit."""
        return sys.executable

    def push(self, folder: Path) -> str:
        """The folder's own path; DeviceFailed where it is not there."""
        if not folder.is_dir():
            raise DeviceFailed(f"{folder}: no such folder to run on this machine")
        return str(folder.resolve())

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        """Run a command in `work` with this process's variables and `env`; stopped after `timeout_s`."""
        try:
            ended = subprocess.run(
                list(command),
                cwd=self.work,
                env=os.environ | (env or {}),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as slow:
            raise DeviceFailed(f"this machine: {command[0]}: no end after {timeout_s:g} s; it was stopped") from slow
        except OSError as failed:
            raise DeviceFailed(
                f"this machine: {command[0]}: cannot be started: {failed.strerror or failed}"
            ) from failed
        return Finished(
            returncode=ended.returncode,
            stdout=ended.stdout.decode("utf-8", errors="replace"),
            stderr=ended.stderr.decode("utf-8", errors="replace"),
        )

    def fetch(self, path: str, out: Path) -> None:
        """Copy a folder, whose path is relative to `work` or absolute, into `out`."""
        source = Path(self.work, path)
        if not source.is_dir():
            raise DeviceFailed(f"this machine: {source}: no such folder; the command that should have made it did not")
        copy_out(source, out)

    def facts(self) -> Facts:
        """What `edgekit.runtimes.machine` tells of this machine."""
        facts: Facts = json.loads(json.dumps(describe()))
        return facts

    def close(self) -> None:
        """Remove `work`."""
        if self._work is not None:
            self._work.cleanup()
            self._work = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
