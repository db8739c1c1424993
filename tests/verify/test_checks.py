"""Checks that stand on a few figures alone."""

from __future__ import annotations

from edgekit.probes.lines import Reading
from edgekit.verify.checks import check_device_reading


def test_a_device_that_reads_texts_otherwise_fails() -> None:
    assert check_device_reading(None, ["a"]) == []
    (passed,) = check_device_reading(Reading(texts=3, differ=()), ["a", "b", "c"])
    assert (passed.name, passed.verdict) == ("tokenizer", "pass")
    (failed,) = check_device_reading(Reading(texts=3, differ=(1, 2)), ["a", "b" * 100, "c"])
    assert (failed.verdict, failed.measured) == ("fail", "differs")
    assert failed.remedy is not None
    assert f"reads 2 of 3 prompts otherwise, the first {'b' * 60!r}" in failed.remedy
