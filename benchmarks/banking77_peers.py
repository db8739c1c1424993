"""What other tools make of the same float graph, for banking77.py.

onnxruntime's quantizers run in this process. Tools with dependencies of their own run in a process of their own Python: they
are this file, started with `--serve`, and answer one JSON line per JSON line, so that they can be timed between the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

PADDED = 64
STATIC_ROWS, NNCF_ROWS = 200, 300


@dataclass(kw_only=True)
class Peer:
    """A process that answers for one tool; `failed` says why it could not start."""

    name: str
    process: subprocess.Popen[str] | None = None
    failed: str = ""
    size: int = 0
    answers: Any = field(default=None, repr=False)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request and its answer."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"failed": f"ended with exit code {self.process.wait()}"}

    def time(self, texts: Sequence[Sequence[int]]) -> float:
        """CPU ms per text."""
        return float(self.ask({"time": [list(text) for text in texts]})["ms"])

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()


def quantize_dynamic(exported: Path, _: Sequence[Sequence[int]]) -> Path:
    """onnxruntime's quantize_dynamic, per channel: the fastest of the peers that were found."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    file = exported.with_name("dynamic.onnx")
    quantize(str(exported), str(file), per_channel=True, weight_type=QuantType.QInt8)
    return file


def quantize_static(exported: Path, ids: Sequence[Sequence[int]]) -> Path:
    """onnxruntime's quantize_static as it comes, calibrated on rows padded to one length as its examples do."""
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(ids[:STATIC_ROWS])

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            if row is None:
                return None
            tokens, mask = np.zeros((1, PADDED), np.int64), np.zeros((1, PADDED), np.int64)
            tokens[0, : len(row)], mask[0, : len(row)] = row, 1
            return {"input_ids": tokens, "attention_mask": mask}

    file = exported.with_name("static.onnx")
    quantize(str(exported), str(file), Reader())
    return file


def openvino_peer(name: str, python: Path, exported: Path, _: Path, calibrate: Any, test: Any) -> Peer:
    """nncf.quantize with the TRANSFORMER preset, on OpenVINO with a float32 hint."""
    return _start(name, python, "openvino", {"exported": str(exported)}, calibrate, test)


def optimum_peer(name: str, python: Path, exported: Path, teacher: Path, calibrate: Any, test: Any) -> Peer:
    """optimum's own export and its ORTQuantizer, dynamic, per channel, for AVX512 with VNNI; SkipLayerNormFusion off."""
    folder = {"teacher": str(teacher), "out": str(exported.parent / "optimum")}
    return _start(name, python, "optimum", folder, calibrate, test)


def _start(name: str, python: Path, tool: str, facts: dict[str, Any], calibrate: Any, test: Any) -> Peer:
    if not python.is_file():
        return Peer(name=name, failed=f"{python}: no such file")
    command = [str(python), str(Path(__file__).resolve()), "--serve", tool]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peer = Peer(name=name, process=process)
    made = peer.ask({"make": facts, "calibrate": calibrate[:NNCF_ROWS], "test": test})
    peer.failed, peer.size = str(made.get("failed", "")), int(made.get("bytes", 0))
    peer.answers = np.asarray(made.get("answers", []), np.float32)
    return peer


Run = Callable[[Sequence[int]], Any]


def _feeds(ids: Sequence[int]) -> dict[str, Any]:
    tokens = np.asarray([list(ids)], np.int64)
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}


def make_openvino(facts: dict[str, Any], calibrate: Sequence[Sequence[int]]) -> tuple[Run, int]:
    """Runs in the peer's own Python."""
    import nncf  # type: ignore[import-not-found, unused-ignore]
    import openvino  # type: ignore[import-not-found, import-untyped, unused-ignore]

    core = openvino.Core()
    model = core.read_model(facts["exported"])
    names = {name for value in model.inputs for name in value.names}
    samples = [{key: value for key, value in _feeds(ids).items() if key in names} for ids in calibrate]
    quantized = nncf.quantize(
        model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
    )
    file = Path(facts["exported"]).with_name("nncf.xml")
    openvino.save_model(quantized, str(file))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = core.compile_model(str(file), "CPU", settings).create_infer_request()

    def run(ids: Sequence[int]) -> Any:
        answers = request.infer({key: value for key, value in _feeds(ids).items() if key in names})
        return answers[0][0]

    return run, file.stat().st_size + file.with_suffix(".bin").stat().st_size


def make_optimum(facts: dict[str, Any], _: Sequence[Sequence[int]]) -> tuple[Run, int]:
    """Runs in the peer's own Python."""
    import onnxruntime
    from optimum.exporters.onnx import main_export  # type: ignore[import-not-found, unused-ignore]
    from optimum.onnxruntime import ORTQuantizer  # type: ignore[import-not-found, unused-ignore]
    from optimum.onnxruntime.configuration import AutoQuantizationConfig  # type: ignore[import-not-found, unused-ignore]

    out = Path(facts["out"])
    main_export(facts["teacher"], output=out, task="text-classification")
    settings = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    ORTQuantizer.from_pretrained(out, file_name="model.onnx").quantize(save_dir=out, quantization_config=settings)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = out / "model_quantized.onnx"
    session = onnxruntime.InferenceSession(
        str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )
    names = [value.name for value in session.get_inputs()]

    def run(ids: Sequence[int]) -> Any:
        feeds = _feeds(ids)
        return session.run(None, {name: feeds[name] for name in names})[0][0]

    return run, file.stat().st_size


def serve(tool: str, requests: IO[str], answers: IO[str]) -> None:
    """Answer `make` once and `time` often; one JSON object per line."""
    make = {"openvino": make_openvino, "optimum": make_optimum}[tool]
    run: Run | None = None
    for line in requests:
        request = json.loads(line)
        if "make" in request:
            try:
                run, size = make(request["make"], request["calibrate"])
                rows = [np.asarray(run(ids)).tolist() for ids in request["test"]]
                answer: dict[str, Any] = {"bytes": size, "answers": rows}
            except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as failed:
                answer = {"failed": f"{type(failed).__name__}: {str(failed).splitlines()[0][:120]}"}
        else:
            assert run is not None
            begun = time.process_time()
            for ids in request["time"]:
                run(ids)
            answer = {"ms": (time.process_time() - begun) * 1e3 / len(request["time"])}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__" and "--serve" in sys.argv:
    # What the tools print must not come between the answers.
    out, sys.stdout = sys.stdout, sys.stderr
    serve(sys.argv[2], sys.stdin, out)
