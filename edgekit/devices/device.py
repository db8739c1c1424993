"""What a kind of device offers: it pushes a folder, runs a command and fetches a folder, and says what it is.

It knows nothing of what runs there: see `edgekit.probes`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from edgekit.errors import DeviceFailed
from edgekit.inputs import Json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Facts = Mapping[str, Json]
"""What a machine is, as JSON: the keys of `edgekit.runtimes.machine.Machine`."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a command on a device ended. A negative return code is the signal that killed it."""

    returncode: int
    stdout: str
    stderr: str


@runtime_checkable
class Keeps(Protocol):
    """A device on which edgekit keeps files from one session to the next."""

    def clean(self) -> int:
        """Delete them all; the bytes that they took there."""


@runtime_checkable
class Feels(Protocol):
    """A device that tells how it is just now, beyond what it is."""

    def condition(self) -> Mapping[str, float]:
        """By name: temperature_c, thermal_status (0: none, 1: light, to 6: shutdown), battery_percent, plugged and low_power."""


def copy_out(source: Path, out: Path) -> None:
    """Copy what a device wrote on this machine; DeviceFailed where it cannot be written."""
    try:
        shutil.copytree(source, out, dirs_exist_ok=True)
    except OSError as failed:
        raise cannot_write(out, failed) from failed


def cannot_write(out: Path, failed: OSError) -> DeviceFailed:
    """The error where a fetched folder cannot be written here."""
    return DeviceFailed(f"{out}: cannot be written: {failed}; free space or choose another folder")


class Device(Protocol):
    """A machine that an artifact can run on; made from a target's `[device]` table, which `Options` describes.

    Making one contacts nothing.
    """

    Options: ClassVar[type[DataclassInstance]]
    REMOTE: ClassVar[bool]
    """Whether it is another machine than the one that runs edgekit: then what it says of itself is kept."""
    PROBE: ClassVar[str]
    """What runs artifacts there: the name of an entry of `edgekit.probes.PROBES`."""

    def __init__(self, table: Mapping[str, object], where: str = "device") -> None: ...

    @property
    def identity(self) -> str:
        """What tells it from every other device, without asking it: "local", or a kind with an address or a serial number."""

    @property
    def work(self) -> str:
        """A folder on the device for requests and results, gone when the device is closed."""

    @property
    def python(self) -> str:
        """The interpreter there that has NumPy and the engines."""

    def push(self, folder: Path) -> str:
        """Bring a folder to the device, where it is only read; its path there."""

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        """Run a command (a list, never a shell's text) in `work` and wait; DeviceFailed where it does not start or end."""

    def fetch(self, path: str, out: Path) -> None:
        """Copy a folder of the device into `out`; DeviceFailed where it is not there."""

    def facts(self) -> Facts:
        """What the device is: equal as long as the same measurements may be expected of it. Asks a remote device."""

    def close(self) -> None:
        """Remove what was brought to the device."""
