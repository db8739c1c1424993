"""Functions in a process of their own: answers and errors come back, and whatever ends the process is an error that says so."""

from __future__ import annotations

import os
import time

import pytest

from edgekit.apart import apart
from edgekit.errors import EdgekitError

HERE = "tests.test_apart"


def double(numbers: list[int], text: str) -> dict[str, object]:
    print("a library's chatter")
    return {"numbers": [2 * number for number in numbers], "text": text}


def refuse() -> None:
    raise EdgekitError("X: too large; take Y")


def fail() -> None:
    raise ZeroDivisionError("nothing to divide by")


def abort() -> None:
    os.write(2, b"ggml.c:123: GGML_ASSERT(n < rows) failed\nbacktrace follows\n")
    os.abort()


def panic() -> None:
    """What tokenizers does at a regular expression that gives up."""
    from tokenizers import Regex, pre_tokenizers

    pre_tokenizers.Split(Regex(r"(x+x+)+y"), "isolated").pre_tokenize_str("x" * 40)


def hang() -> None:
    time.sleep(60)


def ask(name: str, **more: object) -> object:
    return apart(f"{HERE}:{name}", what="the file", remedy="fetch it again", **more)  # type: ignore[arg-type]


def test_an_answer_comes_back() -> None:
    assert ask("double", numbers=[1, 2], text="\ud83d ü") == {"numbers": [2, 4], "text": "\ud83d ü"}


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("refuse", {}, r"^X: too large; take Y$"),
        ("fail", {}, r"^the file: .* exit code 1: ZeroDivisionError: nothing to divide by; fetch it again$"),
        ("abort", {}, r"^the file: .* SIGABRT: ggml\.c:123: GGML_ASSERT\(n < rows\) failed; fetch it again$"),
        ("panic", {}, r"^the file: .* exit code 1: .*PanicException: .*retry-limit-in-match over; fetch it again$"),
        ("hang", {"seconds": 2.0}, r"^the file: no answer after 2 seconds; fetch it again$"),
    ],
)
def test_whatever_ends_the_process_is_an_error(name: str, more: dict[str, object], match: str) -> None:
    with pytest.raises(EdgekitError, match=match):
        ask(name, **more)
