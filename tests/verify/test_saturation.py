"""An x86-64 without VNNI answers: its sums of bytes saturate, in the prompts that were foretold, and the cause is named.

A sample of benchmarks/instruction_sets.py, which has whole builds.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from instruction_sets import PRECISION, RECALL

from edgekit.runtimes.onnxruntime.library import EXACT_SUMS
from edgekit.verify import on_host
from tests.devices.old_x86 import old_python
from tests.verify.test_arithmetic import make_quantized
from tests.verify.test_on_host import judge, run

PROMPTS = 160
THERE = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
np.save(sys.argv[3], np.concatenate([session.run(None, {"x": prompt[None]})[0] for prompt in np.load(sys.argv[2])]))
print(open("/proc/cpuinfo").read())
"""


def answer_there(python: Path, file: Path, prompts: np.ndarray) -> np.ndarray:
    """What the emulated machine's onnxruntime answers."""
    np.save(file.with_suffix(".npy"), prompts)
    out = file.with_name("there.npy")
    command = [python, "-c", THERE, file, file.with_suffix(".npy"), out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "without VNNI" in done.stdout
    assert "avx512_vnni" not in done.stdout
    return np.asarray(np.load(out))


def test_saturation_is_foretold_prompt_by_prompt_and_named(tmp_path: Path) -> None:
    python = old_python(tmp_path / "x86")
    numbers = np.random.default_rng(0)
    prompts = numbers.uniform(-10, 34, (PROMPTS, 64)).astype(np.float32)
    full = numbers.normal(0, 36, (64, 16)).round().clip(-127, 127).astype(np.int8)

    def judged(weights: np.ndarray) -> on_host.OnHost:
        # Signed bytes that are dequantized before they are multiplied: onnxruntime makes them unsigned.
        file = make_quantized(tmp_path / "m.onnx", weights, "QDQ", np.int8)
        here = run(file, prompts, EXACT_SUMS)
        student = here + numbers.normal(0, 0.002 * here.std(), here.shape).astype(np.float32)
        found: on_host.OnHost = judge(answer_there(python, file, prompts), here, student, file, prompts)
        return found

    found = judged(full)
    assert PROMPTS // 10 < found.moved < PROMPTS
    assert (found.verdict, found.diagnosis) == ("fail", "saturation")
    assert found.recall is not None
    assert found.recall >= RECALL
    assert found.precision is not None
    assert found.precision >= PRECISION
    assert "reduce_range = true" in str(on_host.check(found).remedy)

    # The remedy mends it: weights of seven bits fit.
    mended = judged((full // 2).clip(-63, 63).astype(np.int8))
    assert (mended.verdict, mended.moved) == ("pass", 0)
