"""PROBES: how an artifact is run on a device, measured and asked for its answers, by what runs there."""

from __future__ import annotations

from edgekit.probes import python
from edgekit.probes.probe import Answer, Event, Probe, Question

__all__ = ["DEFAULT", "PROBES", "Answer", "Event", "Probe", "Question"]

PROBES: dict[str, Probe] = {python.NAME: python}
DEFAULT = python.NAME
