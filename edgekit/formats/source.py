"""What a format is given: a checkpoint to write (Source), or a file of another tool to read (Reading)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from edgekit.modalities import text
from edgekit.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgekit.calibration import Calibration
    from edgekit.formats.smallest import Limits
    from edgekit.modalities.encoded import Encoded
    from edgekit.model import Model


class FormatOptions(Protocol):
    """What the options of all formats have: dataclasses that name a scheme."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]

    @property
    def scheme(self) -> str:
        """How weights are written."""

    def gentler(self, scheme: str) -> Sequence[Gentler]:
        """What loses less than these options at as many bits a weight, of an artifact that became `scheme`."""

    def outcomes(self, output: str) -> tuple[str, ...]:
        """The schemes that an artifact with these options may become, for models of an output."""

    def sample(self, scheme: str) -> FormatOptions:
        """Options that make a file of a scheme quickly which runs as fast as theirs: nothing in it is chosen by what it loses."""


@dataclass(frozen=True, kw_only=True)
class Gentler:
    """A way to lose less: what it is, which options it changes, and what to expect of it."""

    name: str
    options: Mapping[str, object]
    gain: str


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Of a target's CPU what the types of a mixture depend on (`target.Hardware`)."""

    arch: str
    features: Sequence[str]
    bandwidth_gbs: float | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a format writes: a checkpoint, with what its task and the calibrate prompts say of it.

    load gives the task's module, calibration the statistics: a format that needs no torch asks for neither. encoded:
    the calibrate prompts as the model reads them; texts: what was said in them, conversations: as {messages, tools}. name: what
    the model is called; license: what it ships under, where that is not the checkpoint's own; dataset: what its prompts are;
    fingerprints: sha256 of what it was made from, by what. processor: the target's, where the options say that the file
    depends on it (`Format.mixes`). output: the task's OUTPUT. score(float answers, answers), [n, width] each: greater is
    better; None where the output is not rows. starts: of a decoder, the index of each row's first token that the model says;
    limits: what it may lose (see `smallest`). progress(done, total, note) is told how far it is. keep(fill): a folder that `fill`
    filled, now or for another file of the same model and prompts; None where nothing is kept.
    """

    model: Model
    load: Callable[[], nn.Module]
    calibration: Callable[[], Calibration]
    encoded: Encoded
    texts: Sequence[str]
    conversations: Sequence[Mapping[str, object]]
    output: str
    name: str
    dataset: str
    fingerprints: Mapping[str, str]
    processor: Processor | None
    score: Callable[[NDArray[np.float32], NDArray[np.float32]], float] | None
    max_length: int
    license: str | None = None
    starts: Sequence[int] = ()
    limits: Limits | None = None
    progress: Progress = silent
    keep: Callable[[Callable[[Path], None]], Path] | None = None

    @cached_property
    def ids(self) -> list[list[int]]:
        """The calibrate prompts' token ids, of a model that reads texts."""
        return text.token_ids(self.encoded)


def is_judged(ids: Sequence[int]) -> bool:
    """Whether a calibrate prompt is kept for judging: a fifth of them are, and nothing is fitted on these."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).digest()[0] % 5 == 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file that something else made is read: the checkpoint that it came from, the task's OUTPUT, the padding's id and how
    many tokens a text has at most."""

    model: Model
    output: str
    pad_id: int
    max_length: int
