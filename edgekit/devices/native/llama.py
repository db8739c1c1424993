"""llama.cpp for the native probe: llama.h, as llama-cpp-python brings it, and the libraries for a device's system."""

from __future__ import annotations

import re
import shutil
from importlib import metadata, util
from pathlib import Path

from edgekit.devices import instructions, libllama
from edgekit.errors import EdgekitError

LIBRARY = "libllama.so"
_HEADER = "include/llama.h"
# Of a library's names those that others find it by: libggml.so, and libggml.so.0 for the version of its interface.
_NAMES = re.compile(r"lib(llama|ggml|gomp)[\w.-]*\.so(\.\d+)?")


def headers() -> Path | None:
    """The folder of llama.h of the version that is installed here; None where llama-cpp-python, or its header, is not."""
    try:
        files = metadata.files(libllama.PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    found = next((Path(str(file.locate())) for file in files if str(file).endswith(_HEADER)), None)
    return found.resolve().parent if found is not None and found.is_file() else None


def installed() -> Path | None:
    """The folder of this installation's own libraries; None where there are none."""
    module = util.find_spec("llama_cpp")
    folder = Path(module.origin).parent / "lib" if module is not None and module.origin is not None else None
    return folder if folder is not None and (folder / LIBRARY).is_file() else None


def put_libraries(source: Path, arch: str, out: Path) -> list[str]:
    """Copy a folder's libraries to `out`; the compiler's flags for a program that calls them.

    Raises EdgekitError for a folder without libllama.so, or with one for another architecture, and where llama.h is not here.
    """
    if not (source / LIBRARY).is_file():
        raise EdgekitError(f"{source}: no {LIBRARY} in it; make such a folder: edgekit devices cross-build {source}")
    if instructions.is_for_arm(source / LIBRARY) != (arch == "aarch64"):
        raise EdgekitError(f"{source / LIBRARY}: is not for {arch}; name a folder with libraries for it")
    version, folder = libllama.version(), headers()
    if folder is None:
        raise EdgekitError(
            f"{libllama.PACKAGE} {version} is installed here without {_HEADER}, which the program is built with; run: pip install"
            f" --force-reinstall {libllama.PACKAGE}=={version}"
        )
    for path in source.iterdir():
        if _NAMES.fullmatch(path.name):
            shutil.copyfile(path, out / path.name)
    return [f'-DEDGEKIT_LLAMA="{version}"', f"-I{folder}"]
