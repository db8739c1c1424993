"""Checks that stand on a few figures alone."""

from __future__ import annotations

import pytest

from edgekit.artifact import Parity
from edgekit.probes.lines import Reading
from edgekit.verify.checks import check_device_reading, check_reading, named_once


def test_a_device_that_reads_texts_otherwise_fails() -> None:
    assert check_device_reading(None, ["a"]) == []
    (passed,) = check_device_reading(Reading(texts=3, differ=()), ["a", "b", "c"])
    assert (passed.name, passed.verdict) == ("device_tokenizer", "pass")
    (failed,) = check_device_reading(Reading(texts=3, differ=(1, 2)), ["a", "b" * 100, "c"])
    assert (failed.verdict, failed.measured) == ("fail", "differs")
    assert failed.remedy is not None
    assert f"reads 2 of 3 prompts otherwise, the first {'b' * 60!r}" in failed.remedy


def test_a_report_names_each_check_once() -> None:
    """A GGUF file that a browser judges has its own tokenizer compared with the checkpoint's, and wllama's with what was sent."""
    both = [
        *check_reading(Parity(texts=3, user_texts=0, kinds=(), limits=(), stops={}), None),
        *check_device_reading(Reading(texts=3, differ=()), ["a", "b", "c"]),
    ]
    assert [check.name for check in named_once(both)] == ["tokenizer", "device_tokenizer"]
    with pytest.raises(
        AssertionError, match=r"two checks of a report are named tokenizer: name each after what it checks"
    ):
        named_once([*both, *check_reading(None, "another text")])
