"""Which source files a module runs: itself, what it imports at its top or inside its functions, what those import, and so on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

_SOURCE = Path(__file__).parent
# By patterns, not by Python's own parser: that takes a second for all files, each time that a step's name is wanted. A test
# compares the two.
_TYPING = re.compile(r"^if TYPE_CHECKING:\n(?:[ \t]+\S.*\n|\n)+", re.MULTILINE)
_FROM = re.compile(r"^[ \t]*from (edgekit[\w.]*) import (\([^)]*\)|.*)$", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*import (edgekit[\w.]*)()", re.MULTILINE)
# What runs where there is no Python.
_OTHERS = (".mjs", ".html")
# What runs in a process of its own: the function that `apart` is given, the module behind "-m".
_STARTED = re.compile(r"""apart\(\s*"(edgekit[\w.]+):|"-m", "(edgekit[\w.]+)""")


def source_files(modules: Sequence[str], source: Path = _SOURCE) -> list[Path]:
    """The files of these modules ("edgekit.record") and of all that they run, sorted; `source` is the package's folder.

    A package's own module runs before any module in it that is imported, and whatever lies beside it in another language is its
    own. Imports for type checkers run nothing.
    """
    found: set[Path] = set()
    waiting = [_files(module, source)[-1] for module in modules]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += [file for module in _imports(path, path.stat().st_mtime_ns) for file in _files(module, source)]
    others = [
        other
        for path in found
        if path.name == "__init__.py"
        for end in _OTHERS
        for other in path.parent.glob(f"*{end}")
    ]
    return sorted(found.union(others))


@lru_cache(maxsize=4096)
def _files(module: str, source: Path) -> tuple[Path, ...]:
    """The files that importing a module runs, its packages' first; none for what is no module of the package."""
    parts = module.split(".")[1:]
    place, found = source, [source / "__init__.py"]
    for part in parts:
        place /= part
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if not path.is_file():
            break
        found.append(path)
    return tuple(found)


@lru_cache(maxsize=1024)
def _imports(path: Path, _modified: int) -> tuple[str, ...]:
    """The modules of the package that a file imports anywhere, or has run in a process of its own."""
    text = _TYPING.sub("", path.read_text(encoding="utf-8"))
    found = [module for pattern in (_IMPORT, _STARTED) for pair in pattern.findall(text) for module in pair if module]
    found += [f"{module}.__main__" for module in found]
    for module, names in _FROM.findall(text):
        words = re.findall(r"\w+", re.sub(r"#.*| as \w+", "", names))
        found += [f"{module}.{name}" for name in words]
    return tuple(found)
