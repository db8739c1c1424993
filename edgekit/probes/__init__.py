"""PROBES: how an artifact is run on a device, measured and asked for its answers, by what runs there."""

from __future__ import annotations

from edgekit.probes import native, python, web
from edgekit.probes.lines import Lines
from edgekit.probes.probe import Answer, Probe, Question, Texts

__all__ = ["PROBES", "Answer", "Lines", "Probe", "Question", "Texts"]

PROBES: dict[str, Probe] = {python.NAME: python, native.NAME: native, web.NAME: web}
