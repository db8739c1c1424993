"""A private environment on a device: the engine and NumPy, as wheels fetched here for the device's system and pushed there.

So a board needs no internet, no compiler and no pip: its own Python makes the environment, which finds the pushed folder.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import DeviceFailed, EdgekitError

if TYPE_CHECKING:
    from edgekit.devices.ssh import SshDevice

# What the probe imports: https://packaging.python.org/en/latest/specifications/platform-compatibility-tags/ names the tags.
ENGINES = {"onnxruntime": ("numpy", "onnxruntime")}
_OLDEST_GLIBC = 17
# Makes the environment beside its place and renames it: half of one is none. argv: its place, the folder with the libraries.
_MAKE = """
import os, shutil, sys, venv
place, site = sys.argv[1:]
partial = place + ".partial"
shutil.rmtree(partial, ignore_errors=True)
venv.create(partial, with_pip=False, symlinks=True)
version = "python{}.{}".format(*sys.version_info[:2])
with open(os.path.join(partial, "lib", version, "site-packages", "edgekit.pth"), "w", encoding="utf-8") as stream:
    stream.write(site + "\\n")
with open(os.path.join(partial, "site"), "w", encoding="utf-8") as stream:
    stream.write(site)
shutil.rmtree(place, ignore_errors=True)
os.rename(partial, place)
"""
_VERSIONS = "import importlib, sys\nprint(*(importlib.import_module(name).__version__ for name in sys.argv[1:]))"


def set_up(device: SshDevice, engine: str = "onnxruntime") -> dict[str, str]:
    """Make the environment with the libraries of an engine, in the versions that are installed here; their versions there.

    Raises EdgekitError where no wheel is made for the device, DeviceFailed where the environment cannot be made or does not run.
    """
    names = ENGINES[engine]
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        fetch_wheels(device.hello, [f"{name}=={metadata.version(name)}" for name in names], Path(scratch))
        site = device.push(Path(scratch))
    made = device.run([device.interpreter, "-c", _MAKE, device.venv, site], timeout_s=600)
    if made.returncode != 0:
        raise DeviceFailed(f"{device.identity}: {device.venv}: cannot be made: {_last(made.stderr)}")
    python = f"{device.venv}/bin/python"
    tried = device.run([python, "-c", _VERSIONS, *names], timeout_s=120)
    if tried.returncode != 0:
        raise DeviceFailed(
            f"{device.identity}: {engine} does not load there: {_last(tried.stderr, tried.returncode)}; is it a CPU and"
            " system that its wheels are made for?"
        )
    return dict(zip(names, tried.stdout.split(), strict=True))


def fetch_wheels(facts: Mapping[str, object], requirements: Sequence[str], out: Path) -> None:
    """Unpack the wheels of these requirements for a device's system into a folder.

    facts: what the agent says of the device: python, implementation, arch, libc. Raises EdgekitError where there are none.
    """
    version = str(facts.get("python", "")).split(".")
    tag = "".join(version[:2])
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-compile"]
    command += ["--only-binary", ":all:", "--target", str(out), "--python-version", ".".join(version[:2])]
    command += ["--implementation", "cp", "--abi", f"cp{tag}", "--abi", "abi3", "--abi", "none", "--platform", "any"]
    command += [
        word for tag in platforms(str(facts.get("arch")), str(facts.get("libc"))) for word in ("--platform", tag)
    ]
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
