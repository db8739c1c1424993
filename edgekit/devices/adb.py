"""A device behind Android's `adb`: a phone, or a Linux board that has adbd.

edgekit's files are in one folder there: `folders/<sha256>` are what was pushed, named by their content (`.partial` while they
arrive), `work` is one session's, and `lock` is held while a session lasts. No program of edgekit stays there but in these.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn, Self

from edgekit.devices import there
from edgekit.devices.bridge import Said, find_serial, is_gone, run_adb, start_adb, why
from edgekit.devices.device import Facts, Finished, cannot_write
from edgekit.devices.native import PROGRAM, Platform, built_probe, name_machine
from edgekit.devices.ssh import list_files
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.schema import parse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from edgekit.devices.agent import Entry

_SHORT_S, _COPY_S, _GRACE_S = 60.0, 1200.0, 20.0
# A command line holds so many names.
_NAMES = 100
_FOLDER, _OWN = "/data/local/tmp", "edgekit"
_DENIED = (
    "its system does not let adb's shell run programs there (file rights or SELinux: permission denied); name another folder:"
    " folder = in [device]"
)
_NARROW = {"arm", "i386", "i486", "i586", "i686", "mips"}


@dataclass(frozen=True, kw_only=True)
class AdbOptions:
    """`[device]` of a target that is reached by adb.

    serial: as `adb devices` shows it; without it, the only device that is connected. folder: where the device lets adb's shell
    write and run programs.
    """

    kind: Literal["adb"]
    serial: str | None = None
    folder: str = _FOLDER


class AdbDevice:
    """A phone; connected when it is first asked for something, and ours alone until it is closed."""

    Options: ClassVar[type[DataclassInstance]] = AdbOptions
    REMOTE: ClassVar[bool] = True
    PROBE: ClassVar[str] = "native"

    def __init__(self, table: Mapping[str, object], where: str = "device") -> None:
        options = parse(AdbOptions, dict(table), where)
        if options.serial is not None and not re.fullmatch(r"[\w.:%\[\]][\w.:%\[\]-]*", options.serial):
            raise EdgekitError(f"{where}.serial: {options.serial!r}: no serial number; `adb devices` shows them")
        if not PurePosixPath(options.folder).is_absolute():
            raise EdgekitError(
                f"{where}.folder: {options.folder!r}: name a folder of the device from its root, such as /data/local/tmp"
            )
        self._options = options
        self._serial: str | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        self._facts: Mapping[str, str] = {}
        self.sent_bytes = 0

    @property
    def identity(self) -> str:
        """Its serial number; where none is named, that of the only device, which adb's server knows."""
        if self._serial is None:
            self._serial = self._options.serial or find_serial(None)
        return f"adb:{self._serial}"

    @property
    def folder(self) -> str:
        """edgekit's folder there."""
        return f"{self._options.folder.rstrip('/')}/{_OWN}"

    @property
    def work(self) -> str:
        """The session's folder there."""
        self._open()
        return f"{self.folder}/work"

    @property
    def python(self) -> NoReturn:
        """There is none."""
        raise DeviceFailed(f"{self.identity}: has no Python; what needs one runs on this machine or behind SSH")

    def push(self, folder: Path) -> str:
        """Bring a folder's files there, unless they are there; files that an earlier session sent whole are not sent again.

        Raises DeviceFailed where the folder is not there, the device is lost, or has no room.
        """
        if not folder.is_dir():
            raise DeviceFailed(f"{folder}: no such folder to send to {self.identity}")
        self._open()
        files = list_files(folder)
        whole = f"{self.folder}/folders/{hashlib.sha256(json.dumps(files).encode()).hexdigest()}"
        if there.THERE in self._say(there.LOOK, [whole], may_fail=True):
            return whole
        partial = f"{whole}.partial"
        missing = self._missing(partial, files)
        parents = sorted({str(PurePosixPath(partial, name).parent) for name, *_ in missing} | {partial})
        try:
            for index in range(0, len(parents), _NAMES):
                self._say(there.MAKE, parents[index : index + _NAMES])
            for parent in parents:
                inside = [entry for entry in missing if str(PurePosixPath(partial, entry[0]).parent) == parent]
                for index in range(0, len(inside), _NAMES):
                    self._send(folder, inside[index : index + _NAMES], parent)
        except DeviceFailed as failed:
            if "storage is full" in failed.message:
                # What has no room must not go on taking it.
                self._say(there.DELETE, [partial], may_fail=True)
            raise
        if wrong := self._missing(partial, files):
            self._say(there.DELETE, [f"{partial}/{wrong[0][0]}"], may_fail=True)
            raise DeviceFailed(
                f"{self.identity}: {wrong[0][0]}: arrived with another sha256 than it was sent with; run the same command again"
            )
        self._say(there.ARRIVED, [partial, whole])
        return whole

    def _missing(self, partial: str, files: Sequence[Entry]) -> list[Entry]:
        """The files that a folder there does not have, or has otherwise."""
        found: list[Entry] = []
        for index in range(0, len(files), _NAMES):
            some = files[index : index + _NAMES]
            digests = self._digests(partial, [name for name, *_ in some])
            found += [entry for entry, digest in zip(some, digests, strict=True) if digest != entry[2]]
        return found

    def _digests(self, folder: str, names: Sequence[str]) -> list[str]:
        told = self._say(there.DIGESTS, [folder, *(f"./{name}" for name in names)], within_s=_COPY_S).splitlines()
        if len(told) != len(names):
            raise DeviceFailed(f"{self.identity}: {folder}: its files cannot be checked: {told[-1:] or 'nothing said'}")
        return [one.partition(" ")[0] for one in told]

    def _send(self, folder: Path, entries: Sequence[Entry], parent: str) -> None:
        paths = [str((folder / name).absolute()) for name, *_ in entries]
        said = run_adb(["-s", self._named(), "push", *paths, f"{parent}/"], within_s=_COPY_S)
        if said.code != 0:
            raise DeviceFailed(self._failed(said))
        self.sent_bytes += sum(size for _, size, *_ in entries)

    def run(self, command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Finished:
        """Run a command in `work` there; the device stops it after `timeout_s`, and when the link ends."""
        for name in env or {}:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise EdgekitError(f"{name!r}: not the name of a variable")
        # The device counts by itself too, should nobody tell it that this side has had enough.
        arguments = [self.work, str(int(timeout_s + 2 * _GRACE_S) + 1), *command]
        said = self._shell(there.line(there.RUN, arguments, env), within_s=timeout_s)
        if said.loud:
            raise DeviceFailed(f"{self.identity}: {command[0]}: said more than a probe can have to say; it was stopped")
        if said.code is None:
            raise DeviceFailed(f"{self.identity}: {command[0]}: no end after {timeout_s:g} s; it was stopped")
        out, text = (part.decode("utf-8", errors="replace") for part in (said.out, said.err))
        if there.CANNOT in text:
            raise DeviceFailed(
                f"{self.identity}: {command[0]}: cannot be started: {text.partition(there.CANNOT)[2].strip()}"
            )
        if there.DENIED in text:
            raise DeviceFailed(f"{self.identity}: {command[0]}: {_DENIED}")
        text, marker, code = text.rpartition(f"\n{there.ENDED} ")
        if not marker:
            raise DeviceFailed(self._failed(said))
        # What a shell ends with where a program may be run as far as can be seen, and then may not.
        if int(code) == 126 and "denied" in text:
            raise DeviceFailed(f"{self.identity}: {command[0]}: {_DENIED}")
        # A shell says 128 and the signal that killed a program.
        ended = int(code)
        return Finished(returncode=128 - ended if 128 < ended < 160 else ended, stdout=out, stderr=text)

    def fetch(self, path: str, out: Path) -> None:
        """Copy a folder, whose path is relative to `work` or absolute, into `out`, which gets all of it or nothing."""
        told = self._say(there.COUNT, [self.work, path]).split("\n")
        if there.NONE in told[0]:
            raise DeviceFailed(f"{self.identity}: {path}: no such folder; the command that should have made it did not")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".edgekit-", dir=out.parent) as scratch:
                self._pull(told[0], int(told[1]), Path(scratch, "pulled"))
                shutil.copytree(Path(scratch, "pulled"), out, dirs_exist_ok=True)
        except OSError as failed:
            raise cannot_write(out, failed) from failed

    def _pull(self, folder: str, count: int, out: Path) -> None:
        """Copy a folder of so many files, and check that all of them arrived as they are there."""
        if count == 0:
            out.mkdir()
            return
        said = run_adb(["-s", self._named(), "pull", folder, str(out)], within_s=_COPY_S)
        if said.code != 0:
            raise DeviceFailed(self._failed(said))
        files = list_files(out)
        for index in range(0, len(files), _NAMES):
            some = files[index : index + _NAMES]
            if self._digests(folder, [name for name, *_ in some]) != [digest for _, _, digest, _ in some]:
                raise DeviceFailed(
                    f"{self.identity}: {folder}: arrived otherwise than it is there; run the same command again"
                )
        if len(files) != count:
            raise DeviceFailed(
                f"{self.identity}: {folder}: {len(files)} of {count} files arrived; run the same command again"
            )

    def facts(self) -> Facts:
        """What the native probe tells of the device; of an Android also its version and model."""
        self._open()
        program = f"{self.push(built_probe(self.platform))}/{PROGRAM}"
        ended = self.run([program, "--describe"], timeout_s=_SHORT_S)
        try:
            facts = json.loads(ended.stdout)
        except ValueError:
            facts = None
        if ended.returncode != 0 or not isinstance(facts, dict):
            last = (ended.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
            raise DeviceFailed(
                f"{self.identity}: does not say what it is (exit code {ended.returncode}: {last[:300]}); run:"
                f" {self.platform.build_command}"
            )
        return name_machine(facts, there.system_of(self._facts))

    @property
    def platform(self) -> Platform:
        """What programs must be built for to run there."""
        self._open()
        return there.platform_of(self._facts)

    def condition(self) -> Mapping[str, float]:
        """How it is just now: see `there.read_condition`; nothing where it is no Android."""
        self._open()
        return there.read_condition(self._say(there.CONDITION, may_fail=True))

    def clean(self) -> int:
        """Delete everything that edgekit has on the device; the bytes that it took there."""
        self._open()
        told = self._say(there.CLEAN, [self.folder], within_s=_COPY_S)
        return 1024 * int(told.split()[0]) if told[:1].isdigit() else 0

    def close(self) -> None:
        """End the session: its work is removed, the device is free."""
        holder, self._holder = self._holder, None
        if holder is None:
            return
        assert holder.stdin is not None
        with suppress(OSError):
            holder.stdin.close()
        try:
            holder.wait(timeout=15)
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.wait()
        for stream in (holder.stdout, holder.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Take the device: DeviceFailed where it cannot be reached, is somebody else's now, or no device for edgekit."""
        if self._holder is not None:
            return
        self._serial = find_serial(self._options.serial)
        features = run_adb(["-s", self._serial, "features"], within_s=_SHORT_S)
        if features.code != 0:
            raise DeviceFailed(self._failed(features))
        if b"shell_v2" not in features.out:
            raise DeviceFailed(
                f"{self.identity}: its system is too old to tell how a program ended: Android 7 or newer is needed"
            )
        self._facts = there.read_facts(self._say(there.FACTS))
        self._check_facts()
        owner = f"{getpass.getuser()}@{socket.gethostname()} (process {os.getpid()})"
        holder = start_adb(["-s", self._serial, "shell", "-T", there.line(there.HOLD, [self.folder, owner])])
        assert holder.stdout is not None
        overdue = threading.Timer(_SHORT_S, holder.kill)
        overdue.start()
        first = holder.stdout.readline().decode(errors="replace").strip()
        overdue.cancel()
        self._holder = holder
        if first == there.OPENED:
            return
        last = self._dismiss(holder)
        if first.startswith(there.LOCKED):
            who = first.removeprefix(there.LOCKED).strip() or "another edgekit"
            raise DeviceFailed(f"{self.identity}: in use by {who}; wait until it ends, or end that process")
        raise DeviceFailed(self._failed(Said(code=1, out=first.encode(), err=last)))

    def _dismiss(self, holder: subprocess.Popen[bytes]) -> bytes:
        """End a holder that did not get the device; what it said on standard error."""
        assert holder.stdin is not None and holder.stderr is not None  # noqa: PT018
        with suppress(OSError):
            holder.stdin.close()
        last = holder.stderr.read()
        self.close()
        return last

    def _check_facts(self) -> None:
        arch, abis = self._facts["arch"], self._facts.get("abis")
        if arch.startswith("armv") or arch in _NARROW or abis == "":
            raise DeviceFailed(
                f"{self.identity}: a system of 32 bits ({arch}), for which there is no onnxruntime; take a phone with a 64-bit"
                " system"
            )

    def _named(self) -> str:
        assert self._serial is not None
        return self._serial

    def _shell(self, command: str, *, within_s: float) -> Said:
        return run_adb(["-s", self._named(), "shell", "-T", command], within_s=within_s, grace_s=_GRACE_S)

    def _say(
        self, script: str, arguments: Sequence[str] = (), *, within_s: float = _SHORT_S, may_fail: bool = False
    ) -> str:
        """What a script there says; DeviceFailed where it fails, unless it may."""
        said = self._shell(there.line(script, arguments), within_s=within_s)
        if said.code is None or (said.code != 0 and not may_fail):
            raise DeviceFailed(self._failed(said))
        return said.out.decode(errors="replace")

    def _failed(self, said: Said) -> str:
        """Why adb failed. Where the device is gone the session is over."""
        if is_gone(said) and self._holder is not None:
            self._holder.kill()
            self.close()
        folder = self._options.folder
        return why(said, self.identity, folder if folder != _FOLDER else "", self.folder)


def adb_table(address: str) -> dict[str, object]:
    """The `[device]` table of `adb:` (the only device) or `adb:SERIAL`, either with a folder of the device behind it; `adb://` is
    `adb:`, as other kinds of device have it."""
    serial, slash, folder = address.removeprefix("adb:").removeprefix("//").partition("/")
    table: dict[str, object] = {"kind": "adb"}
    if serial:
        table["serial"] = serial
    if slash:
        table["folder"] = f"/{folder}"
    return table
