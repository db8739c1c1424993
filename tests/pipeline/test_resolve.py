"""Whatever can fail cheaply fails at once; and what is read for that is read once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from edgekit import model, schema
from edgekit.errors import EdgekitError
from edgekit.pipeline.resolve import check_browser
from edgekit.target import load_target
from tests.conftest import Answer


def test_a_dry_run_reads_each_table_and_each_model_once(command: Callable[..., Answer], project: Path) -> None:
    """Of three targets: a recipe's tables are the same for all, and so is the teacher."""
    parsed: Counter[tuple[str, str]] = Counter()
    opened: Counter[Path] = Counter()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is schema.parse.__code__:
            parsed[frame.f_locals["kind"].__name__, frame.f_locals["where"]] += 1
        elif event == "call" and frame.f_code is model.load_model.__code__:
            opened[frame.f_locals["folder"].resolve()] += 1

    targets = ("-t", "laptop-cpu", "-t", "raspberrypi", "-t", "browser")
    (project.parent / "cache").mkdir()  # where it is, what transformers says of a checkpoint is kept
    assert command("build", *targets, "--dry-run").code == 0
    sys.setprofile(watch)
    try:
        answer = command("build", *targets, "--dry-run")
    finally:
        sys.setprofile(None)
    assert answer.code == 0, answer.err
    assert parsed["Recipe", "recipe.toml"] == 1
    assert sum(kind == "Target" for kind, _ in parsed) == 3
    assert {key: count for key, count in parsed.items() if count > 1} == {}
    assert opened == {(project.parent / "teacher").resolve(): 1}


def test_a_browser_is_refused_before_anything_is_made_for_what_no_page_runs(
    command: Callable[..., Answer], project: Path
) -> None:
    """Nobody trains for an hour to hear it; no browser is started for it either."""
    build = ("build", "-t", "browser", "--dry-run", "--device")
    assert command(*build, "browser:").code == 0
    for device, more in (("browser:", ("--sweep",)), ("browser:", ("--sustained", "5")), ("adb:", ("--sweep",))):
        refused = command(*build, device, *more)
        assert (refused.code, "leave out --sustained and --sweep" in refused.err) == (1, True)
    target = replace(load_target("browser"), device={"kind": "browser"})
    check_browser(target, ["onnxruntime"], generates=False)
    check_browser(target, ["llama-cpp"], generates=True)
    with pytest.raises(
        EdgekitError, match=r"runtime\.onnxruntime: pages run models that write in llama-cpp alone; .* --format gguf"
    ):
        check_browser(target, ["onnxruntime"], generates=True)
    for others in (["onnxruntime", "openvino"], ["llama-cpp"]):
        with pytest.raises(
            EdgekitError, match=rf"runtime\.{others[-1]}: pages run classifiers and encoders in onnxruntime alone"
        ):
            check_browser(target, others, generates=False)
    check_browser(load_target("browser"), ["onnxruntime", "openvino"], generates=True)
