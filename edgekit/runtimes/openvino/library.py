"""The one place that imports OpenVINO: models of it, compiled for the CPU, and what this installation has."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from edgekit.runtimes import request
from edgekit.runtimes.package import Package

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CPU = "CPU"
PACKAGE = Package(module="openvino", name="openvino", extra="openvino")
# The release that reads edgekit's files as onnxruntime does; older ones were not tried.
MINIMUM = "2026.4"
# Its reader of ONNX takes onnxruntime's own operators and leaves some of their attributes out without a word: FusedMatMul's
# transBatchA and transBatchB, which give other answers (src/frontends/onnx/frontend/src/op/com.microsoft of its repository).
# In the file a node's domain is field 7 of a NodeProto (onnx.proto), a text: its tag, its length, and this.
_FOREIGN = b"\x3a\x0dcom.microsoft"


class OpenVINOError(RuntimeError):
    """What OpenVINO does not load, in its own words."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """`[runtime.openvino]` of a target.

    threads: None leaves it to OpenVINO. precision: what float operators compute in; what the file has as integers is no business
    of it. Without such a hint OpenVINO computes in bf16 wherever the CPU can.
    """

    threads: int | None = None
    precision: Literal["f32", "bf16", "f16"] = "f32"


class Value(Protocol):
    """An input or output of a model."""

    any_name: str


class Profiled(Protocol):
    """What OpenVINO says of one operator's run: its name, kind, kernel (such as jit_avx2_f32), and whether it ran at all."""

    node_name: str
    node_type: str
    exec_type: str
    status: object
    real_time: timedelta


class Asked(Protocol):
    """A request for inference."""

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[object, NDArray[np.float32]]:
        """The outputs."""

    def get_profiling_info(self) -> list[Profiled]:
        """Of the last inference, where the model was compiled to count."""


class Compiled(Protocol):
    """A model that is ready to run."""

    inputs: list[Value]

    def create_infer_request(self) -> Asked:
        """A request."""

    def get_property(self, name: str) -> object:
        """One of OpenVINO's properties."""


class Node(Protocol):
    """A node of a graph whose shapes are known."""

    def get_type_name(self) -> str:
        """Its operator, as OpenVINO calls it."""

    def input_value(self, index: int) -> Output:
        """What it reads."""

    def get_output_shape(self, index: int) -> Sequence[int]:
        """Of what it gives."""

    def get_input_shape(self, index: int) -> Sequence[int]:
        """Of what it reads."""

    def get_attributes(self) -> Mapping[str, object]:
        """By name, such as transpose_a."""

    def get_byte_size(self) -> int:
        """Of a constant."""

    def get_element_type(self) -> Element:
        """Of a constant."""


class Element(Protocol):
    """What a constant consists of."""

    size: int
    """Bytes of one."""


class Output(Protocol):
    """What a node gives."""

    def get_node(self) -> Node:
        """The node that gives it."""


class Graph(Protocol):
    """A graph that was read."""

    inputs: list[Value]

    def reshape(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Give its inputs these shapes."""

    def get_ordered_ops(self) -> Sequence[Node]:
        """Its nodes, each behind those that it reads."""


def read_options(options: Mapping[str, object]) -> Options:
    """A session's options from a request. Raises TypeError for one that there is not."""
    return request.read_options(Options, options)


def compile_model(file: Path, options: Options, *, count: bool = False) -> Compiled:
    """A file, compiled for the CPU to answer one request at a time as fast as it can. count: time each operator.

    Raises OpenVINOError for what does not load, ValueError for a file with operators that it does not compute as they are meant.
    """
    import openvino

    refuse_foreign(file)
    try:
        compiled: Compiled = openvino.Core().compile_model(str(file), CPU, _hints(options, count=count))
    except RuntimeError as failed:
        # The first lines name OpenVINO's own source files.
        why = next(
            (line for line in str(failed).splitlines() if line and not line.startswith("Exception from ")),
            "it does not say why",
        )
        raise OpenVINOError(f"{file}: OpenVINO does not load it: {why[:300]}") from failed
    return compiled


def _hints(options: Options, *, count: bool = False) -> dict[str, str]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": options.precision,
        # Weights of 8 bits with float activations stay so, instead of being quantized as they run.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "INFERENCE_NUM_THREADS": str(options.threads or 0),
        "PERF_COUNT": "YES" if count else "NO",
    }


def product_call(left: NDArray[np.float32], right: NDArray[np.generic]) -> Callable[[], object]:
    """A call, in one thread, that multiplies two matrices of which the right one is constant.

    Where that one is of bytes, the left one is made bytes first, of 0 to 255, as in a quantized encoder.
    """
    import numpy as np
    from openvino import opset13 as operators

    given = operators.parameter(list(left.shape), np.float32)
    constant = operators.constant(right)
    if right.dtype == np.float32:
        return _call(operators.matmul(given, constant, False, False), given, left)
    least, most, scale = (np.float32(number) for number in (0, 255, 0.01))
    quantized = operators.fake_quantize(given, least, most, least, most, 256)
    weights = operators.multiply(operators.convert(constant, np.float32), scale)
    return _call(operators.matmul(quantized, weights, False, False), given, left)


def chain_call(count: int) -> Callable[[], object]:
    """A call, in one thread, of so many operators of next to no work, each behind the one before: softmax, which none joins."""
    import numpy as np
    from openvino import opset13 as operators

    given = operators.parameter([1, 8], np.float32)
    last = given
    for _ in range(count):
        last = operators.softmax(last, 1)
    return _call(last, given, np.ones((1, 8), np.float32))


def _call(result: object, given: object, value: NDArray[np.float32]) -> Callable[[], object]:
    import openvino

    model = openvino.Model([result], [given], "")
    request = openvino.Core().compile_model(model, CPU, _hints(Options(threads=1))).create_infer_request()
    return lambda: request.infer({0: value})


def read_graph(file: Path, shapes: Mapping[str, Sequence[int]]) -> Graph:
    """A file's graph for inputs of these shapes, as OpenVINO reads it; token types have that of the tokens."""
    import openvino

    graph: Graph = openvino.Core().read_model(str(file))
    known = {"token_type_ids": shapes.get("input_ids", ()), **shapes}
    graph.reshape({value.any_name: known[value.any_name] for value in graph.inputs})
    return graph


def refuse_foreign(file: Path) -> None:
    """Raises ValueError for a file with operators that are onnxruntime's own."""
    with file.open("rb") as stream:
        if file.stat().st_size == 0:
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_FOREIGN) >= 0:
                raise ValueError(
                    f'{file}: has operators of com.microsoft, which OpenVINO computes otherwise: export with layout = "qdq" and'
                    " the scheme int8-static, fp16 or fp32"
                )


def version() -> str:
    """OpenVINO's version."""
    import openvino

    return str(openvino.__version__)


def providers() -> list[str]:
    """The devices of this machine that OpenVINO runs on; edgekit asks for the CPU."""
    import openvino

    return [str(name) for name in openvino.Core().available_devices]


def load_errors() -> tuple[type[Exception], ...]:
    """What OpenVINO raises for a model that it does not load or cannot run."""
    return (RuntimeError, ValueError)
