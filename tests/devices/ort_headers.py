"""onnxruntime's C header, as an app's author has it: this system's, or Debian's package of it, kept in the user's cache."""

from __future__ import annotations

import platform
import shutil
import tempfile
from importlib import metadata, util
from pathlib import Path

import pytest

from tests.devices.emulated import _apt, _run, platform_architecture
from tests.llama_programs import made_once

# The first of Debian's that has the package; programs that are built with its header run with every later onnxruntime.
_SUITE, _PACKAGE, _HEADER = "trixie", "libonnxruntime-dev", "onnxruntime/onnxruntime_c_api.h"


def header_folder() -> Path:
    """The folder with onnxruntime_c_api.h. Skips where it can be had from nowhere."""
    if (here := Path("/usr/include") / _HEADER).is_file():
        return here.parent
    return made_once(f"onnxruntime-headers-{_SUITE}", _fetch) / "onnxruntime"


def _fetch(made: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip(f"{_HEADER} is not here, and it comes from a package of Debian")
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        apt = _apt(Path(scratch, "apt"), _SUITE, platform_architecture())
        _run([*apt, "download", _PACKAGE], cwd=Path(scratch))
        (package,) = Path(scratch).glob("*.deb")
        _run(["dpkg-deb", "--extract", package, Path(scratch, "unpacked")])
        Path(scratch, "unpacked/usr/include").rename(made)


def library_folder(folder: Path) -> Path:
    """A folder with libonnxruntime.so of the onnxruntime that is installed here, by the names that linkers and programs ask for."""
    if platform.system() != "Linux":
        pytest.skip("programs are linked with libonnxruntime.so, which Linux has")
    spec = util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    real = Path(spec.origin).parent / "capi" / f"libonnxruntime.so.{metadata.version('onnxruntime')}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(real)
    return folder
