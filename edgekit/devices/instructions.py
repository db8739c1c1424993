"""Which instructions beyond ARM's first 64-bit ones a library contains: read from its machine code, before it runs anywhere.

A CPU that lacks one ends the process (SIGILL) when it is reached, which may be in the middle of a model.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# elf(5): 64-bit little-endian ELF files of machine EM_AARCH64; sections of a program's content that are executable (a segment may
# hold tables, too, whose numbers look like instructions).
_ELF64, _AARCH64, _PROGRAM, _EXECUTABLE = b"\x7fELF\x02\x01", 183, 1, 4


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Instructions (a word is one where word & mask == bits) that need a feature, as Linux names it in /proc/cpuinfo."""

    name: str
    feature: str
    encodings: tuple[tuple[int, int], ...]


# (mask, bits): the fixed bits in Arm's "A64 Instruction Set Architecture" (DDI 0602): vectors, then by element.
INSTRUCTIONS = (
    Instruction(
        name="SDOT/UDOT (dot products of bytes)",
        feature="asimddp",
        encodings=(
            (0xBFE0FC00, 0x0E809400),
            (0xBFE0FC00, 0x2E809400),
            (0xBFC0F400, 0x0F80E000),
            (0xBFC0F400, 0x2F80E000),
        ),
    ),
    Instruction(
        name="SMMLA/UMMLA (products of matrices of bytes)",
        feature="i8mm",
        encodings=((0xFFE0FC00, 0x4E80A400), (0xFFE0FC00, 0x6E80A400)),
    ),
    Instruction(
        name="BFMMLA (products of matrices of bfloat16)", feature="bf16", encodings=((0xFFE0FC00, 0x6E40EC00),)
    ),
)


def missing(libraries: Iterable[Path], features: Sequence[str]) -> list[str]:
    """What the libraries contain and a CPU with these features lacks: "libggml-cpu.so: SDOT/UDOT ..., needs asimddp"."""
    return [
        f"{path.name} has {instruction.name}, needs {instruction.feature}"
        for path in libraries
        for instruction in contained(path)
        if instruction.feature not in features
    ]


def contained(path: Path) -> list[Instruction]:
    """Those of INSTRUCTIONS that a library's code contains; none of a file that is no library for 64-bit ARM."""
    words = _code(path)
    return [entry for entry in INSTRUCTIONS if any(((words & mask) == bits).any() for mask, bits in entry.encodings)]


def is_for_arm(path: Path) -> bool:
    """Whether a file is a program or library for 64-bit ARM."""
    with path.open("rb") as stream:
        head = stream.read(20)
    return head[:6] == _ELF64 and struct.unpack_from("<H", head, 18)[0] == _AARCH64


def _code(path: Path) -> NDArray[np.uint32]:
    import numpy as np

    if not is_for_arm(path):
        return np.zeros(0, np.uint32)
    content = path.read_bytes()
    begin, (size, count) = struct.unpack_from("<Q", content, 40)[0], struct.unpack_from("<HH", content, 58)
    pieces = [np.zeros(0, np.uint32)]
    for index in range(count):
        _, kind, flags, _, offset, length = struct.unpack_from("<IIQQQQ", content, begin + index * size)
        if kind == _PROGRAM and flags & _EXECUTABLE:
            pieces.append(np.frombuffer(content, "<u4", length // 4, offset))
    return np.concatenate(pieces)
