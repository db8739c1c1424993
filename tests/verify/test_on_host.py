"""The device's answers beside this machine's: noise passes, what computes otherwise fails, and the cause is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.runtimes.onnxruntime.library import Options, convert_to_half, open_session
from edgekit.verify import on_host
from edgekit.verify.causes import CAUSES, Evidence, find_cause
from edgekit.verify.on_host import HostAnswers, Pair
from tests.conftest import ROOT, child_environment

PROMPTS = 160


def make_model(path: Path, weights: np.ndarray) -> Path:
    """x · weights."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "product",
        [value("x", TensorProto.FLOAT, [1, len(weights)])],
        [value("y", TensorProto.FLOAT, [1, weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def run(model: Path | bytes, prompts: np.ndarray, entries: Mapping[str, str] | None = None) -> np.ndarray:
    session = open_session(model, Options(threads=1, config_entries=dict(entries or {})))
    return np.concatenate([session.run(None, {"x": prompt[None]})[0] for prompt in prompts])


FRESH = """
import sys
from pathlib import Path
import numpy as np
from tests.verify.test_on_host import run
from edgekit.verify.causes import FLUSH
np.save(sys.argv[3], run(Path(sys.argv[1]), np.load(sys.argv[2]), FLUSH))
"""


def flushed(file: Path, prompts: np.ndarray) -> np.ndarray:
    """With denormals as zero, in a process of its own: a process's first session decides that for all."""
    np.save(file.with_suffix(".npy"), prompts)
    out = file.with_name("flushed.npy")
    command = [sys.executable, "-c", FRESH, file, file.with_suffix(".npy"), out]
    subprocess.run(command, check=True, cwd=ROOT, env=child_environment())
    return np.asarray(np.load(out))


def judge(there: np.ndarray, here: np.ndarray, student: np.ndarray, file: Path, prompts: np.ndarray) -> Any:
    pair = on_host.rows_pair(there, here, student, [None] * len(there))
    fed = [{"x": prompt} for prompt in prompts]
    known = Evidence(file=file, prompts=fed, there=there, here=here, again=lambda _: flushed(file, prompts))
    answers = HostAnswers(arrays={}, cpu="here", exact=True)
    return on_host.compare(pair, 0.05, partial(find_cause, known), answers)


@pytest.fixture
def numbers() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_same_answers_pass_however_few_they_are(numbers: np.random.Generator, tmp_path: Path) -> None:
    weights = numbers.normal(size=(32, 8)).astype(np.float32)
    prompts = numbers.normal(size=(6, 32)).astype(np.float32)
    file = make_model(tmp_path / "m.onnx", weights)
    here = run(file, prompts)
    found = judge(here * np.float32(1 + 1e-6), here, here + 0.01, file, prompts)
    assert (found.verdict, found.moved, found.ratio, found.diagnosis) == ("pass", 0, 1.0, None)


def test_rounding_that_falls_both_ways_passes(numbers: np.random.Generator) -> None:
    """Errors of the same size in other directions, as when another order of sums flips roundings."""
    student = numbers.normal(size=(PROMPTS, 8))
    errors = [0.05 * numbers.normal(size=student.shape) for _ in range(2)]
    pair = on_host.rows_pair(student + errors[0], student + errors[1], student, [None] * PROMPTS)
    answers = HostAnswers(arrays={}, cpu="here", exact=True)
    found = on_host.compare(pair, 0.05, lambda _: pytest.fail("no cause is looked for"), answers)
    assert found.verdict == "pass"
    assert found.moved > 0.9 * PROMPTS
    assert on_host.check(found).remedy is None


def test_a_host_that_is_further_off_does_not_blame_the_device(numbers: np.random.Generator) -> None:
    student = numbers.normal(size=(PROMPTS, 8))
    there, here = (student + size * numbers.normal(size=student.shape) for size in (0.02, 0.2))
    pair = on_host.rows_pair(there, here, student, [None] * PROMPTS)
    answers = HostAnswers(arrays={}, cpu="here", exact=False)
    found = on_host.compare(pair, 0.05, lambda _: on_host.Cause(), answers)
    assert found.verdict == "pass"
    assert found.ratio is not None
    assert found.ratio < 0.1
    assert "saturate" in str(on_host.check(found).detail)


def test_half_precision_is_named(numbers: np.random.Generator, tmp_path: Path) -> None:
    """Sums of 16-bit floats, by onnxruntime itself on the model in half precision."""
    weights = numbers.normal(size=(1024, 8)).astype(np.float32)
    prompts = numbers.normal(size=(PROMPTS, 1024)).astype(np.float32)
    file = make_model(tmp_path / "m.onnx", weights)
    half = convert_to_half(onnx.load(str(file))).SerializeToString()
    here = run(file, prompts)
    # Each answer is far from rounding: the float student is what it should be.
    there = here + 4 * (run(half, prompts) - here)
    found = judge(there, here, here, file, prompts)
    assert (found.verdict, found.diagnosis) == ("fail", "half precision")


def test_denormals_are_named(numbers: np.random.Generator, tmp_path: Path) -> None:
    """Weights below the smallest normal number, which a device takes for zero, by onnxruntime's own setting."""
    weights = (numbers.normal(size=(32, 8)) * 1e-39).astype(np.float32)
    prompts = (np.abs(numbers.normal(size=(PROMPTS, 32))) * 1e37).astype(np.float32)
    file = make_model(tmp_path / "m.onnx", weights)
    here, there = run(file, prompts), flushed(file, prompts)
    assert np.abs(here).max() > 0.01
    assert not there.any()
    found = judge(there, here, here, file, prompts)
    assert (found.verdict, found.diagnosis) == ("fail", "denormals")


def test_a_kernel_that_computes_something_else_is_named(numbers: np.random.Generator, tmp_path: Path) -> None:
    weights = numbers.normal(size=(32, 8)).astype(np.float32)
    prompts = numbers.normal(size=(PROMPTS, 32)).astype(np.float32)
    file = make_model(tmp_path / "m.onnx", weights)
    here = run(file, prompts)
    found = judge(np.roll(here, 1, axis=1), here, here + 0.01, file, prompts)
    assert (found.verdict, found.diagnosis) == ("fail", "kernel")
    assert on_host.check(found).remedy == CAUSES["kernel"]
    broken = np.where(np.arange(8) == 3, np.nan, here)
    assert judge(broken, here, here + 0.01, file, prompts).diagnosis == "not a number"


def test_few_prompts_prove_nothing_of_a_small_difference(numbers: np.random.Generator) -> None:
    student = numbers.normal(size=(30, 8))
    there, here = (student + size * numbers.normal(size=student.shape) for size in (0.055, 0.05))
    pair = on_host.rows_pair(there, here, student, [None] * 30)
    found = on_host.compare(
        pair, 0.05, lambda _: on_host.Cause(name="kernel"), HostAnswers(arrays={}, cpu="here", exact=True)
    )
    assert found.verdict == "not proven"
    assert str(on_host.check(found).remedy).startswith("too few prompts")
    assert found.diagnosis is None


def test_tokens_are_compared_by_their_passages(numbers: np.random.Generator) -> None:
    tokens = np.repeat(np.arange(PROMPTS), 5)
    kl = np.abs(numbers.normal(0.02, 0.01, len(tokens)))
    nll = numbers.normal(3, 1, len(tokens))
    same = {"nll": nll, "student_kl": kl}
    worse = {"nll": nll + 0.2, "student_kl": kl + 0.05}
    answers = HostAnswers(arrays=same, cpu="here", exact=True)

    def compare(there: dict[str, np.ndarray]) -> Any:
        pair: Pair = on_host.tokens_pair(there, same, tokens, [None] * PROMPTS)
        return on_host.compare(pair, 0.05, lambda _: on_host.Cause(name="kernel"), answers)

    assert (compare(same).verdict, compare(same).moved) == ("pass", 0)
    assert (compare(worse).verdict, compare(worse).moved) == ("fail", PROMPTS)
