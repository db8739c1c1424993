"""What a probe offers: it has a device run an artifact, and gives back what was measured and answered there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Unpack

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from edgekit.devices import Device
    from edgekit.probes.lines import Lines
    from edgekit.runtimes.request import Request, Timing


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What the prompts of a question were read from, by the tokenizer.json beside the artifact: each with `before` in front of
    it. A text without any token is one `pad_id`.

    ids: the tokens of each, where the question's arrays do not have them, without what is put around a text.
    """

    texts: Sequence[str]
    before: str
    pad_id: int
    ids: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a probe is asked: the main file of an artifact's folder, a request of the protocol, and the request's arrays.

    texts: for a device whose apps read texts with another tokenizer than this machine's; None where nothing was read. sha256: of
    the artifact that the question is about; None: of whatever the file is.

    timeout_s: the device stops a probe that has not ended by then. A slow board may need ten minutes for a thousand prompts; an
    hour is a hang.
    """

    file: Path
    request: Request
    inputs: Mapping[str, ArrayLike]
    texts: Texts | None = None
    timeout_s: float = 3600.0
    sha256: str | None = None

    def only_times(self, **timing: Unpack[Timing]) -> Question:
        """The same, of which nothing but times is wanted."""
        asked: Timing = {**self.request["timing"], **timing, "only": True}
        return replace(self, request={**self.request, "timing": asked}, texts=None)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a probe said: its lines, and the arrays that it made (none where only times were wanted)."""

    lines: Lines
    arrays: Mapping[str, NDArray[np.generic]]


class Probe(Protocol):
    """What a probe's module offers. SUSTAINS: whether it also times calls without a pause, and other threads (`[measure]`)."""

    NAME: str
    SUSTAINS: bool

    def ask(self, device: Device, question: Question) -> Answer:
        """Run an artifact on a device; DeviceFailed where the probe does not finish."""
