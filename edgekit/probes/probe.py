"""What a probe offers: it has a device run an artifact, and gives back what was measured and answered there."""

from __future__ import annotations

from collections.abc import Mapping
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
class Question:
    """What a probe is asked: the main file of an artifact's folder, a request of the protocol, and the request's arrays.

    timeout_s: the device stops a probe that has not ended by then. A slow board may need ten minutes for a thousand prompts; an
    hour is a hang.
    """

    file: Path
    request: Request
    inputs: Mapping[str, ArrayLike]
    timeout_s: float = 3600.0

    def only_times(self, **timing: Unpack[Timing]) -> Question:
        """The same, of which nothing but times is wanted."""
        asked: Timing = {**self.request["timing"], **timing, "only": True}
        return replace(self, request={**self.request, "timing": asked})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a probe said: its lines, and the arrays that it made (none where only times were wanted)."""

    lines: Lines
    arrays: Mapping[str, NDArray[np.generic]]


class Probe(Protocol):
    """What a probe's module offers."""

    NAME: str

    def ask(self, device: Device, question: Question) -> Answer:
        """Run an artifact on a device; DeviceFailed where the probe does not finish."""
