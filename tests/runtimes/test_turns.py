"""Two artifacts that take turns: the order, the lines, and a side that ends."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.runtimes import turns
from edgekit.workspace import file_sha256
from tests.conftest import ROOT
from tests.verify.verify_folders import make_graph

PROMPT = {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}


def ask(folder: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    side = {"runtime": "onnxruntime", "file": "model.onnx", "options": {"threads": 1}}
    request = {
        "sides": [side, {**side, "options": {"threads": 4096}}],
        "prompt": PROMPT,
        "ids": [],
        "tokens": False,
        "first": False,
    }
    (folder / "request.json").write_text(json.dumps({**request, "pairs": 7, "seed": 3, **changes}))
    return subprocess.run(
        [sys.executable, "-m", "edgekit.runtimes.turns", "request.json"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_half_of_the_pairs_begin_with_each_side() -> None:
    for pairs in (20, 21, 400):
        drawn = turns.orders(pairs, random.Random(1))
        assert len(drawn) == pairs
        assert abs(drawn.count((0, 1)) - drawn.count((1, 0))) <= pairs % 2
        assert drawn != turns.orders(pairs, random.Random(2)), "no rhythm"


def test_the_lines_say_what_ran(tmp_path: Path) -> None:
    make_graph(tmp_path / "model.onnx")
    ended = ask(tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = list(map(json.loads, ended.stdout.splitlines()))
    assert [line["event"] for line in lines] == ["device", "side a", "side b", "turns", "done"]
    assert [line["seq"] for line in lines] == [*range(5)]
    told = {line["event"]: line for line in lines}
    assert told["side b"]["threads"] == told["device"]["cores"], "more threads than cores would wait for each other"
    assert len(told["turns"]["ms"]) == 7
    assert all(0 < ms < 1000 for pair in told["turns"]["ms"] for ms in pair)
    assert all(seen["others"] is None and seen["seconds"] > 0 for seen in told["turns"]["neighbours"])
    assert told["done"]["files"] == [file_sha256(tmp_path / "model.onnx")] * 2
    assert told["done"]["request"] == file_sha256(tmp_path / "request.json")


def test_a_side_that_ends_ends_all(tmp_path: Path) -> None:
    make_graph(tmp_path / "model.onnx")
    good = {"runtime": "onnxruntime", "file": "model.onnx", "options": {"threads": 1}}
    ended = ask(tmp_path, sides=[good, {**good, "file": "none.onnx"}])
    assert ended.returncode != 0
    assert "done" not in ended.stdout
    assert "none.onnx" in ended.stderr


class Decoder:
    """A runtime and its generator at once: remembers how many tokens it was fed at a time, 0 where it was cleared."""

    NAME, vocabulary, context = "test", 4, 90

    def __init__(self) -> None:
        self.fed: list[int] = []

    def generator(self, _file: Path, options: dict[str, object]) -> Decoder:
        assert options["context"] == 10 + 64, "reserved once, for the prompt and what is written behind it"
        return self

    def clear(self) -> None:
        self.fed.append(0)

    def logits(self, ids: Sequence[int], wanted: slice) -> np.ndarray[Any, Any]:
        assert wanted == slice(-1, None)
        self.fed.append(len(ids))
        return np.eye(4, dtype=np.float32)[:1]


@pytest.mark.parametrize("first", [False, True])
def test_a_decoder_writes_behind_the_prompt(first: bool) -> None:
    """Each call writes a token, the prompt being read again after 64 of them; or reads the prompt to its first token."""
    decoder = Decoder()
    request: Any = {"ids": [1] * 10, "tokens": True, "first": first}
    call = turns._token_calls(decoder, Path("none"), {"context": 0}, request)  # type: ignore[arg-type]
    assert all(call() >= 0.0 for _ in range(65))
    again = [0, 10]
    assert decoder.fed == (again * 65 if first else [*again, *[1] * 64, *again, 1])
