"""Goals: the logic of CUDA graphs (`Bound`) on an engine that really records and replays, onnxruntime's WebGPU provider: every
answer is the CPU's (largest difference <= 1e-4 of the largest answer), and each of three lengths is recorded once and replayed
from then on, in the tensors that it had. No time is measured: this GPU is the CPU.

No GPU is needed: SwiftShader, which lies in Debian's package of Chromium, computes Vulkan on the CPU. What is another's here: the
provider, and how a tensor is written (onnxruntime's WebGPU has no update in place from NumPy). For onnxruntime to look for a GPU
the process has a mount namespace in which the system lists one; so it needs root on Linux, and pip and apt for the packages.

Usage: python benchmarks/graph_replay.py [--packages FOLDER] [--json]; exit code 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gpu_environments
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ICD = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
# What onnxruntime reads of a graphics card (core/platform/linux/device_discovery.cc): a display controller of SwiftShader's
# maker.
CARD = {"vendor": "0x1ae0", "device": "0xc0de", "class": "0x030000"}
APART = 1e-4
LENGTHS = (3, 5, 3, 5, 3, 7, 5, 7)
WIDTH, LAYERS = 64, 6
WEBGPU = "WebGpuExecutionProvider"


def model() -> bytes:
    """x [1, length, WIDTH] through LAYERS products and tanh, and the mean over the length."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    numbers, last = np.random.default_rng(0), "x"
    nodes, constants = [], [numpy_helper.from_array(np.array([1], np.int64), "axis")]
    for layer in range(LAYERS):
        weights = (numbers.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"product{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"product{layer}"], [f"bent{layer}"]))
        last = f"bent{layer}"
    nodes.append(helper.make_node("ReduceMean", [last, "axis"], ["y"], keepdims=0))
    value = helper.make_tensor_value_info
    inputs, outputs = value("x", TensorProto.FLOAT, [1, "s", WIDTH]), value("y", TensorProto.FLOAT, [1, WIDTH])
    graph = helper.make_graph(nodes, "layers", [inputs], [outputs], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content


def measure() -> dict[str, Any]:
    """In the namespace that lists a card: how far the answers are from the CPU's, and the numbers of the graphs that ran."""
    import onnxruntime

    from edgekit.runtimes.onnxruntime.bound import Bound, Graph

    plugin = importlib.import_module("onnxruntime_ep_webgpu")
    onnxruntime.register_execution_provider_library("webgpu", plugin.get_library_path())
    device = next(device for device in onnxruntime.get_ep_devices() if device.ep_name == WEBGPU)
    value, ran = onnxruntime.OrtValue, list[str]()

    class OnWebGpu(Graph):
        def _tensor(self, array: Any, memory: str) -> Any:
            made = self._session.create_ortvalue_from_shape_and_type(list(array.shape), array.dtype.type, "webgpu")
            self._write(array, made)
            return made

        def _write(self, array: Any, tensor: Any) -> None:
            onnxruntime.copy_tensors([value.ortvalue_from_numpy(array)], [tensor])

    class Session(Bound):
        PROVIDER, MEMORY, GRAPH = WEBGPU, "cpu", OnWebGpu

        def _open(self, options: dict[str, str], **_: object) -> Any:
            settings = onnxruntime.SessionOptions()
            settings.enable_mem_pattern = False
            settings.log_severity_level = 4
            settings.add_provider_for_devices([device], {"enableGraphCapture": "1"} if options else {})
            session = onnxruntime.InferenceSession(*self._model, settings)
            run = session.run_with_iobinding

            def counted(binding: Any, choice: Any) -> None:
                ran.append(choice.get_run_config_entry("gpu_graph_id"))
                run(binding, choice)

            session.run_with_iobinding = counted
            return session

    content, numbers = model(), np.random.default_rng(1)
    session, plain = Session(content, providers=[WEBGPU]), onnxruntime.InferenceSession(content)
    apart = 0.0
    for length in LENGTHS:
        given = {"x": numbers.normal(size=(1, length, WIDTH)).astype(np.float32)}
        found, wanted = session.run(None, given)[0], plain.run(None, given)[0]
        apart = max(apart, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    return {"why": session.why, "apart": apart, "runs": ran, "onnxruntime": onnxruntime.__version__}


def inside(packages: Path) -> dict[str, Any]:
    """What `measure` found, in a process whose system lists a card, and whose Vulkan is SwiftShader."""
    gpu_environments.unpack(packages)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        card = Path(scratch) / "drm" / "card0" / "device"
        card.mkdir(parents=True)
        for name, content in CARD.items():
            (card / name).write_text(content + "\n", encoding="utf-8")
        loader = Path(scratch) / "vulkan"
        subprocess.run(["apt-get", "-qq", "download", "libvulkan1"], cwd=scratch, check=True, capture_output=True)
        (package,) = Path(scratch).glob("libvulkan1_*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, loader], check=True)
        (library,) = loader.rglob("libvulkan.so.1")
        places = [packages / "onnxruntime-ep-webgpu", ROOT, ROOT / "benchmarks"]
        variables = {
            "VK_ICD_FILENAMES": str(ICD),
            "LD_LIBRARY_PATH": str(library.parent),
            "PYTHONPATH": os.pathsep.join(map(str, places)),
        }
        steps = (
            "mount -t tmpfs none /sys/class && mkdir /sys/class/drm && cp -r"
            f' {scratch}/drm/card0 /sys/class/drm/ && exec "$@"'
        )
        command = ["unshare", "--mount", "sh", "-c", steps, "sh", sys.executable, __file__, "--inside"]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"onnxruntime did not run there: {done.stderr.strip().splitlines()[-1]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def recorded_once(runs: list[str]) -> bool:
    """Of each length: a run without a graph, one that records, one that is compared; then replays."""
    wanted: list[str] = []
    known: list[int] = []
    for length in LENGTHS:
        if length in known:
            wanted.append(str(known.index(length)))
        else:
            known.append(length)
            wanted += ["-1", *[str(len(known) - 1)] * 2]
    return runs == wanted


def main() -> int:
    """Measure, show, and say by the exit code whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--packages", type=Path, default=Path.home() / ".cache/edgekit-tests/gpu", help="where wheels are kept"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(measure()))
        return 0
    if not ICD.is_file() or os.geteuid() != 0:
        raise SystemExit("it needs root on Linux and Debian's package chromium")
    found = inside(asked.packages)
    goals = {
        "answers": found["apart"] <= APART,
        "recorded once": found["why"] == "" and recorded_once(found["runs"]),
    }
    if asked.json:
        print(json.dumps({**found, "goals": goals}, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:16} {value}")
        print("; ".join(f"{name}: {'met' if met else 'MISSED'}" for name, met in goals.items()))
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
