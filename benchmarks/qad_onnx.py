"""What does quantization-aware distillation win back of what rounding loses? A decoder of 46 M weights, read by onnxruntime.

Goals, on held-out Python, with KL(original || file) in nats a token:
- w4: trained on its grid, scales and weights each for itself (`w4-qad`) <= 0.5 of w4 whose errors are weighed by what the
  calibrate texts use (`feedback = false`)
- w4-feedback: the plain export, rounded with feedback (GPTQ) on the calibrate texts, <= 0.6 of that
- every file that was trained holds the trained weights, 100 % of them, as onnxruntime reads it
Beside them `w4-start`, where that training begins: rounding with feedback on some of the training text; `w4-scales`: the
scales alone trained from there; `w4-weights`: the weights, whose scales follow, without GPTQ; `int8` and `int8-qad`:
int8-dynamic, whose weights are trained too.
Texts, training and judge are those of benchmarks/qad.py; the first windows of the training text calibrate.

Rows and students are kept in --cache: what was stopped goes on.

Usage: python benchmarks/qad_onnx.py [--steps 48] [--rows w4,w4-qad,...] [--data ../shared/data] [--cache DIR] [--blocks 24]
       [--json]; exit code 1 where a goal that was measured is missed, 2 where data is missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from qad import LENGTH, TASK, Way, run  # noqa: E402
from qad import Bench as Texts  # noqa: E402

from edgekit.calibrate import CalibrateInputs, calibrate  # noqa: E402
from edgekit.export import ExportInputs, export  # noqa: E402
from edgekit.formats import FORMATS, parse_options  # noqa: E402
from edgekit.grid import Grid  # noqa: E402
from edgekit.inputs import Content  # noqa: E402
from edgekit.recipe import AS_CALIBRATED, Calibrate  # noqa: E402
from edgekit.runtimes import Generator, onnxruntime  # noqa: E402

ROWS: dict[str, Way] = {
    "original": Way(scheme="fp32"),
    "w4": Way(scheme="w4", options={"feedback": False}),
    "w4-feedback": Way(scheme="w4"),
    "w4-start": Way(scheme="w4", train="start"),
    "w4-scales": Way(scheme="w4", teach="logits", train="scales"),
    "w4-weights": Way(scheme="w4", teach="logits", train="weights"),
    "w4-qad": Way(scheme="w4", teach="logits", train="both"),
    "int8": Way(scheme="int8-dynamic"),
    "int8-qad": Way(scheme="int8-dynamic", teach="logits", train="weights"),
}
# A goal: a row's KL over another's, at most.
RATIOS = (("w4-qad", "w4", 0.5), ("w4-feedback", "w4", 0.6))
STEPS = 48
# Windows that calibrate: 8,192 tokens.
CALIBRATING = 32


class Bench(Texts):
    """The model, the texts, and onnxruntime as the judge."""

    name = "qad-onnx"
    ways = ROWS
    ratios = RATIOS
    float_scheme = "fp32"

    @cached_property
    def running(self) -> dict[Path, Mapping[str, object]]:
        """Of each file that was written, how it wants to be run."""
        return {}

    def grid(self, scheme: str) -> Grid:
        """What a scheme rounds the model's weights to."""
        _, options = parse_options({"format": "onnx", "scheme": scheme}, "tokens", "benchmark")
        return FORMATS["onnx"].grid(self.model, options, "tokens")

    @cached_property
    def calibrated(self) -> tuple[Content, Content]:
        """Prompts of the calibrate split alone, and what the original's Linears read of them: what is trained needs none."""
        prompts, calibration = self.scratch / "prompts", self.scratch / "calibration"
        for folder in (prompts, calibration):
            folder.mkdir()
        decode = self.model.tokenizer().decode
        lines = [json.dumps({"text": decode(window.ids)}) for window in self.windows[:CALIBRATING]]
        (prompts / "calibrate.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        texts = Content(path=prompts, digest="")
        calibrate(
            CalibrateInputs(
                student=Content(path=self.folder, digest=""),
                prompts=texts,
                task=TASK,
                options=Calibrate(),
                max_length=LENGTH,
                seed=0,
                gradients=False,
            ),
            calibration,
        )
        return texts, Content(path=calibration, digest="")

    def write(self, student: Path, way: Way, file: Path) -> Path:
        """A student as an ONNX file: with the codes that it was trained with, where those are the scheme's."""
        prompts, calibration = self.calibrated
        out = file.with_suffix("")
        out.mkdir()
        table = {"format": "onnx", "scheme": way.scheme, **way.options}
        format_, options = parse_options(table, "tokens", "benchmark")
        inputs = ExportInputs(
            student=Content(path=student, digest=""),
            calibration=calibration,
            prompts=prompts,
            task=TASK,
            format=format_.NAME,
            options=options,
            max_length=LENGTH,
            out_of_scope=None,
            rejection=AS_CALIBRATED,
            name="",
            license=None,
            card=None,
            processor=None,
            limits=None,
            libraries={},
        )
        facts = export(inputs, out).facts()
        written = out / str(facts["file"])
        self.running[written] = cast("Mapping[str, object]", facts["runtime_options"])
        return written

    def open(self, file: Path) -> Generator:
        """A file in onnxruntime."""
        options = {"threads": self.options["threads"]}
        return onnxruntime.generator(file, onnxruntime.joined(options, self.running[file]))


if __name__ == "__main__":
    sys.exit(run(Bench, __doc__ or "", STEPS))
