"""A private environment on a device: engines and NumPy, as wheels fetched here for the device's system and pushed there.

So a board needs no internet, no compiler and no pip: its own Python makes the environment, which finds the pushed folders. Of
llama.cpp there are no wheels for ARM: its Python code is copied from here, its library comes from a folder that the user names,
or is compiled on the device where that has a compiler (`edgekit.devices.llamacpp`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.devices import llamacpp
from edgekit.errors import DeviceFailed, EdgekitError
from edgekit.progress import Progress, silent

if TYPE_CHECKING:
    from edgekit.devices.ssh import SshDevice

# Engine -> what installs it, as a command of the user's. The probe imports NumPy and onnxruntime whatever answers: it measures
# the machine with them.
ENGINES = {"onnxruntime": "edgekit devices setup {device}", "llama-cpp": "edgekit devices setup {device} --gguf"}
_ALWAYS = ("numpy", "onnxruntime")
# https://packaging.python.org/en/latest/specifications/platform-compatibility-tags/ names the tags.
_OLDEST_GLIBC = 17
# Makes the environment beside its place and renames it: half of one is none. argv: its place, JSON of variables that name
# llama.cpp's library (maybe none), the folders with the libraries of Python.
_MAKE = """
import json, os, shutil, sys, venv
place, variables, *sites = sys.argv[1:]
variables = json.loads(variables)
partial = place + ".partial"
shutil.rmtree(partial, ignore_errors=True)
venv.create(partial, with_pip=False, symlinks=True)
version = "python{}.{}".format(*sys.version_info[:2])
# Of a .pth file Python runs the lines that begin with an import, and has the others on its path.
lines = ["import os; os.environ.setdefault({!r}, {!r})".format(*pair) for pair in sorted(variables.items())]
with open(os.path.join(partial, "lib", version, "site-packages", "edgekit.pth"), "w", encoding="utf-8") as stream:
    stream.write("".join(line + "\\n" for line in [*lines, *sites]))
with open(os.path.join(partial, "site"), "w", encoding="utf-8") as stream:
    stream.write("".join(line + "\\n" for line in [*sites, *filter(os.path.isdir, variables.values())]))
shutil.rmtree(place, ignore_errors=True)
os.rename(partial, place)
"""
_VERSIONS = "import importlib, sys\nprint(*(importlib.import_module(name).__version__ for name in sys.argv[1:]))"


def set_up(
    device: SshDevice, *, gguf: bool = False, library: Path | None = None, progress: Progress = silent
) -> dict[str, str]:
    """Make the environment with the engines, in the versions that are installed here; their versions there.

    gguf: llama.cpp, too, whose library is in the folder `library`, or is compiled there where that is None. Raises EdgekitError
    where no wheel is made for the device, DeviceFailed where the environment cannot be made or does not run.
    """
    variables: dict[str, str] = {}
    # What cannot be had is said before anything is fetched or sent.
    if library is not None:
        llamacpp.check_library(device, library)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        wheels, llama, built = (Path(scratch, name) for name in ("wheels", "llama", "library"))
        progress(0, 0, f"fetching {' and '.join(_ALWAYS)} for {device.hello.get('arch')}")
        fetch_wheels(device.hello, [f"{name}=={metadata.version(name)}" for name in _ALWAYS], wheels)
        if gguf:
            llamacpp.copy_package(llama)
            fetch_wheels(device.hello, llamacpp.requirements(), llama, alone=True)
            if library is None:
                llamacpp.compile_there(device, built, fetch_wheels, progress)
        progress(0, 0, "sending what the device does not have yet")
        sites = [device.push(folder) for folder in (wheels, *([llama] if gguf else []))]
        if gguf:
            variables = llamacpp.variables(library or built, device.push(library or built))
    made = device.run([device.interpreter, "-c", _MAKE, device.venv, json.dumps(variables), *sites], timeout_s=600)
    if made.returncode != 0:
        raise DeviceFailed(f"{device.identity}: {device.venv}: cannot be made: {_last(made.stderr)}")
    versions = _try(device, _ALWAYS, "is it a CPU and system that its wheels are made for?")
    return versions | (_try(device, (llamacpp.MODULE,), llamacpp.remedy()) if gguf else {})


def _try(device: SshDevice, names: Sequence[str], remedy: str) -> dict[str, str]:
    """The versions of libraries of Python that the new environment loads; DeviceFailed where one does not load."""
    tried = device.run([f"{device.venv}/bin/python", "-c", _VERSIONS, *names], timeout_s=120)
    if tried.returncode != 0:
        raise DeviceFailed(
            f"{device.identity}: {names[-1]} does not load there: {_last(tried.stderr, tried.returncode)}; {remedy}"
        )
    return dict(zip(names, tried.stdout.split(), strict=True))


def fetch_wheels(facts: Mapping[str, object], requirements: Sequence[str], out: Path, *, alone: bool = False) -> None:
    """Unpack the wheels of these requirements for a device's system into a folder.

    facts: what the agent says of the device: python, implementation, arch, libc. alone: without those that they require. Raises
    EdgekitError where there are none.
    """
    version = str(facts.get("python", "")).split(".")
    tag = "".join(version[:2])
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-compile"]
    command += ["--only-binary", ":all:", "--target", str(out), "--python-version", ".".join(version[:2])]
    command += ["--implementation", "cp", "--abi", f"cp{tag}", "--abi", "abi3", "--abi", "none", "--platform", "any"]
    command += [
        word for tag in platforms(str(facts.get("arch")), str(facts.get("libc"))) for word in ("--platform", tag)
    ]
    command += ["--no-deps"] if alone else []
    done = subprocess.run(
        [*command, *requirements], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200, check=False
    )
    if done.returncode != 0:
        raise EdgekitError(
            f"{', '.join(requirements)}: pip finds no wheels for Python {facts.get('python')} on {facts.get('arch')}"
            f" ({facts.get('libc')}): {_last(done.stderr)}; install them there by hand and name that Python: python = in [device]"
        )


def platforms(arch: str, libc: str) -> list[str]:
    """The platform tags of the wheels that a Linux system takes, newest first; none where its C library is not glibc."""
    found = re.fullmatch(r"glibc 2\.(\d+)", libc)
    if found is None:
        return []
    return [f"manylinux_2_{minor}_{arch}" for minor in range(int(found[1]), _OLDEST_GLIBC - 1, -1)] + [
        f"manylinux2014_{arch}"
    ]


def _last(text: str, code: int = 1) -> str:
    """What a program said last; the signal that killed it where it said nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {code}, and nothing said"
