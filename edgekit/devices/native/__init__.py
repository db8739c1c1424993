"""The native probe's program: a folder of C++ beside this file, built for a device's system and kept in the user's state.

It is for devices without Python. `build_probe` needs a C++17 compiler and a libonnxruntime.so of the device's system, no headers:
the program declares what it calls of onnxruntime's C API and loads the library that lies beside it. For decoders it is built with
llama.h of the llama-cpp-python that is installed here, and has llama.cpp's libraries beside it too.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from edgekit.devices.native import llama as llama_cpp
from edgekit.devices.setup import platforms
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.inputs import Json
from edgekit.runtimes.machine import ARM_PARTS
from edgekit.state import state_folder
from edgekit.workspace import make_folder

PROGRAM, LIBRARY = "edgekit-probe", "libonnxruntime.so"
ARCHES = ("aarch64", "x86_64")
SYSTEMS = ("linux", "android")
_SOURCE = Path(__file__).parent / "source"
_MARK = "sources.sha256"
# The oldest C library that onnxruntime's wheels are made for.
_LIBC = "glibc 2.28"
# How an .aar of onnxruntime calls the architectures (Android's ABI names).
_ABIS = {"aarch64": "arm64-v8a", "x86_64": "x86_64"}


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A system and an architecture that the probe is built for."""

    arch: str
    system: str = "linux"

    def __str__(self) -> str:
        return f"{self.system}-{self.arch}"

    @property
    def build_command(self) -> str:
        """The command line that builds the probe for it."""
        return f"edgekit devices native --arch {self.arch}" + (
            "" if self.system == "linux" else f" --system {self.system}"
        )


def built_probe(wanted: Platform, *, decoders: bool = False) -> Path:
    """The folder of the program and its libraries for a platform.

    decoders: it must run those, in llama.cpp. Raises DeviceFailed where it was not built, of other sources than this edgekit's,
    or without llama.cpp where that is wanted.
    """
    folder = _folder(wanted)
    if not (folder / PROGRAM).is_file():
        raise DeviceFailed(f"no native probe is built for {wanted}; run: {wanted.build_command}")
    if not (folder / _MARK).is_file() or (folder / _MARK).read_text(encoding="utf-8") != _sources():
        raise DeviceFailed(
            f"the native probe for {wanted} is of another version of edgekit; run: {wanted.build_command}"
        )
    if decoders and not (folder / llama_cpp.LIBRARY).is_file():
        raise DeviceFailed(
            f"the native probe for {wanted} was built without llama.cpp, which decoders need; run: {wanted.build_command}"
            " --llama-library FOLDER, with a folder as `edgekit devices cross-build` makes it"
        )
    return folder


def build_probe(
    wanted: Platform, *, onnxruntime: Path | None = None, llama: Path | None = None, compiler: str | None = None
) -> Path:
    """Build the program for a platform; its folder, which has onnxruntime beside it, and llama.cpp where there is one.

    onnxruntime: a libonnxruntime.so of the platform, a folder that has one, or a .whl or .aar; None takes the wheel of the
    version that is installed here. llama: a folder with libllama.so for the platform; None takes that of this installation, for
    this machine alone. compiler: a C++17 compiler for the platform; None takes Debian's name of it. Raises EdgekitError where
    there is no compiler or no library, or the program does not build.
    """
    program = compiler or _compiler(wanted)
    if shutil.which(program) is None:
        package = f"g++-{wanted.arch.replace('_', '-')}-linux-gnu" if program.startswith(wanted.arch) else "g++"
        raise EdgekitError(
            f"{program}: no such compiler here; install it (Debian: apt install {package}) or name one: --compiler"
        )
    folder = _folder(wanted)
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix=".edgekit-", dir=folder.parent) as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        _put_library(wanted, onnxruntime, made / LIBRARY, Path(scratch))
        if llama is None and _is_here(wanted) and llama_cpp.headers() is not None:
            llama = llama_cpp.installed()
        flags = [] if llama is None else llama_cpp.put_libraries(llama, wanted.arch, made)
        _compile(program, made / PROGRAM, flags)
        (made / _MARK).write_text(_sources(), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def name_machine(facts: Mapping[str, Json], system: str | None = None) -> dict[str, Json]:
    """What the program says of a machine, with names that it does not know: of an Arm core, and of a system beyond its kernel."""
    numbers = str(facts.get("part") or "").split("/")
    known = ARM_PARTS.get((int(numbers[0], 16), int(numbers[1], 16))) if len(numbers) == 2 else None
    return {**facts, "cpu": known or facts.get("cpu"), "system": system or facts.get("system")}


def _sources() -> str:
    """What tells this edgekit's sources of the program from others: their sha256."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _folder(wanted: Platform) -> Path:
    return state_folder() / "native" / str(wanted)


def _compiler(wanted: Platform) -> str:
    if wanted.system == "android":
        raise EdgekitError(
            "a program for Android is built by the compiler of its NDK: name it, such as --compiler"
            f" $NDK/toolchains/llvm/prebuilt/linux-x86_64/bin/{wanted.arch}-linux-android24-clang++"
        )
    return "g++" if wanted.arch == platform.machine() else f"{wanted.arch}-linux-gnu-g++"


def _compile(program: str, out: Path, more: Sequence[str]) -> None:
    """Static C++ libraries: a device need not have them, or has older ones."""
    flags = ["-std=c++17", "-O2", "-pthread", "-static-libstdc++", *more]
    flags += [] if "clang" in Path(program).name else ["-static-libgcc"]
    done = subprocess.run(
        [program, *flags, "-o", str(out), str(_SOURCE / "probe.cc"), "-ldl"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise EdgekitError(f"{_SOURCE / 'probe.cc'}: {program} does not build it: {_first_error(done.stderr)}")


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "and says nothing")[:400]


def _put_library(wanted: Platform, source: Path | None, out: Path, scratch: Path) -> None:
    """The platform's libonnxruntime.so, from wherever it is."""
    if source is None:
        source = _installed() if _is_here(wanted) else _fetch_wheel(wanted, scratch)
    if source.suffix in {".whl", ".aar", ".zip"}:
        _unpack_library(wanted, source, out)
        return
    found = source
    if source.is_dir():
        found = next((path for path in sorted(source.rglob(f"{LIBRARY}*")) if path.is_file()), source)
    if not found.is_file():
        raise EdgekitError(f"{source}: no {LIBRARY} there; name the file, its folder, or onnxruntime's .whl or .aar")
    shutil.copyfile(found, out)


def _unpack_library(wanted: Platform, archive: Path, out: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as members:
            names = [name for name in members.namelist() if Path(name).name.startswith(LIBRARY)]
            if archive.suffix == ".aar":
                names = [name for name in names if f"/{_ABIS[wanted.arch]}/" in name]
            if not names:
                raise EdgekitError(f"{archive}: has no {LIBRARY} for {wanted}")
            with members.open(names[0]) as stream, out.open("wb") as sink:
                shutil.copyfileobj(stream, sink)
    except (OSError, zipfile.BadZipFile) as bad:
        raise EdgekitError(f"{archive}: cannot be read as an archive: {bad}") from bad


def _is_here(wanted: Platform) -> bool:
    return sys.platform == "linux" and wanted == Platform(arch=platform.machine())


def _installed() -> Path:
    """The folder with this installation's own library."""
    found = util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        raise EdgekitError("onnxruntime is not installed here; name a libonnxruntime.so: --onnxruntime")
    return Path(found.origin).parent / "capi"


def _fetch_wheel(wanted: Platform, scratch: Path) -> Path:
    """onnxruntime's wheel for another Linux, of the version that is installed here."""
    if wanted.system != "linux":
        raise EdgekitError(
            "onnxruntime for Android is no wheel: fetch onnxruntime-android's .aar and name it: --onnxruntime FILE.aar"
        )
    version = metadata.version("onnxruntime")
    tags: Sequence[str] = platforms(wanted.arch, _LIBC)
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += [
        "--only-binary",
        ":all:",
        "--dest",
        str(scratch),
        *(word for tag in tags for word in ("--platform", tag)),
    ]
    done = subprocess.run(
        [*command, f"onnxruntime=={version}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PIP_NO_INPUT": "1"},
    )
    found = sorted(scratch.glob("onnxruntime-*.whl"))
    if done.returncode != 0 or not found:
        raise EdgekitError(
            f"onnxruntime {version}: pip fetches no wheel for {wanted}: {_first_error(done.stderr)}; name a libonnxruntime.so:"
            " --onnxruntime"
        )
    return found[0]
