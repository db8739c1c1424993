"""What a probe offers: it has a device run an artifact, and gives back what was measured and answered there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.devices import Device

Event = Mapping[str, Any]
"""One line of the protocol (see `edgekit.runtimes.probe`), without its `event`."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a probe is asked: the main file of an artifact's folder, a request of the protocol, and the request's arrays.

    timeout_s: the device stops a probe that has not ended by then. A slow board may need ten minutes for a thousand prompts; an
    hour is a hang.
    """

    file: Path
    request: Mapping[str, Any]
    inputs: Mapping[str, Any]
    timeout_s: float = 3600.0

    def only_times(self, **timing: object) -> Question:
        """The same, of which nothing but times is wanted."""
        return replace(self, request={**self.request, "timing": {**self.request["timing"], **timing, "only": True}})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a probe said: its lines by event, in their order, and the arrays that it made (none where only times were wanted)."""

    events: Mapping[str, Event]
    arrays: Mapping[str, NDArray[Any]]


class Probe(Protocol):
    """What a probe's module offers."""

    NAME: str

    def ask(self, device: Device, question: Question) -> Answer:
        """Run an artifact on a device; DeviceFailed where the probe does not finish."""
