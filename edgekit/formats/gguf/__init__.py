"""The GGUF format: a student as one model.gguf for llama.cpp, float or quantized, with its tokenizer and chat template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.formats import Source

NAME = "gguf"
RUNTIME = "llama-cpp"
SUFFIX = ".gguf"
CARRIES_TOKENIZER = True
SCHEMES: tuple[str, ...] = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "mixed",
)  # fmt: skip
FILE = "model.gguf"

Scheme = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "mixed"
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """A target's `[export.<task>]` table for this format."""

    scheme: Scheme = "q4_k_m"
    imatrix: bool = True
    """Weigh errors by the calibrated importance of each input channel (llama.cpp's importance matrix)."""
    through: Literal["none", "f16", "bf16"] = "none"
    """Round weights to this type before they are quantized, as llama.cpp's two steps do; none keeps the checkpoint's."""
    like: Scheme = "q4_k_m"
    """mixed: no more bytes than this scheme takes."""
    bytes: Annotated[int, Gt(0)] | None = None
    """mixed: no more bytes than these, instead of `like`."""

    def __post_init__(self) -> None:
        """Refuse what is right key by key and not together."""
        from pydantic_core import PydanticCustomError

        if self.like == "mixed":
            raise PydanticCustomError("like", "like = 'mixed' is no size; name another scheme, or give bytes")
        if self.bytes is not None and self.scheme != "mixed":
            raise PydanticCustomError(
                "bytes", "bytes is for scheme = 'mixed' alone: the others' sizes follow from them"
            )


def write(source: Source, options: Options, out: Path) -> dict[str, Any]:
    """Write a student into the folder `out` as model.gguf, tokenizer and chat template included.

    Returns the facts that the format knows. Raises EdgekitError for a family that GGUF has no name for, a tokenizer that
    llama.cpp does not read as the original does, and weights that are missing, misshapen or not finite.
    """
    raise EdgekitError("gguf: not written yet")


def adopt(file: Path, out: Path, output: str) -> dict[str, Any]:
    """Link or copy a .gguf file that something else made and describe it; EdgekitError where it is damaged."""
    raise EdgekitError("gguf: not written yet")


def file_digest(file: Path) -> str:
    """sha256 of a .gguf file."""
    from edgekit.workspace import file_sha256

    return file_sha256(file)


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
