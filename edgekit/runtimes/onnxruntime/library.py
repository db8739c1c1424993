"""The one place that imports onnxruntime: sessions of it, and what this installation has."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.runtimes import request
from edgekit.runtimes.package import Package

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

CPU = "CPUExecutionProvider"
PACKAGE = Package(
    module="onnxruntime",
    name="onnxruntime",
    builds={
        "onnxruntime-gpu": ("CUDAExecutionProvider", "TensorrtExecutionProvider"),
        "onnxruntime-directml": ("DmlExecutionProvider",),
        "onnxruntime-openvino": ("OpenVINOExecutionProvider",),
        "onnxruntime-qnn": ("QNNExecutionProvider",),
    },
)
# Makes an x86 CPU without VNNI multiply bytes without saturation (kOrtSessionOptionsAvx2PrecisionMode in
# onnxruntime_session_options_config_keys.h); other CPUs ignore it.
EXACT_SUMS = {"session.x64quantprecision": "1"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """`[runtime.onnxruntime]` of a target.

    threads: those of one operator; None leaves it to onnxruntime. disabled_optimizers: names of graph optimizers that a
    session must leave off; config_entries: onnxruntime's session configuration by key. The artifact's own join them (`joined`).
    """

    provider: str = CPU
    threads: int | None = None
    disabled_optimizers: list[str] = field(default_factory=list)
    config_entries: dict[str, str] = field(default_factory=dict)


def read_options(options: Mapping[str, object]) -> Options:
    """A session's options from a request. Raises TypeError for one that there is not."""
    return request.read_options(Options, options)


def open_session(model: Path | bytes, options: Options, *, optimize: bool = True, profile: Path | None = None) -> Any:
    """An onnxruntime.InferenceSession of a file or of a model in memory.

    A provider that is absent falls back to the CPU. optimize: False runs the graph's nodes as they are written. profile: a file
    prefix for onnxruntime's profile, written when the session ends it. Raises what `load_errors` names for what does not load.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what onnxruntime would log of a failure is in its exception too
    settings.intra_op_num_threads = options.threads or 0
    for key, value in options.config_entries.items():
        settings.add_session_config_entry(key, value)
    if not optimize:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    wanted = [name for name in (options.provider,) if name in providers()]
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        settings,
        providers=list(dict.fromkeys([*wanted, CPU])),
        disabled_optimizers=options.disabled_optimizers,
    )


def installed() -> bool:
    """Whether this Python has onnxruntime."""
    return importlib.util.find_spec(PACKAGE.module) is not None


def as_value(array: NDArray[np.generic]) -> object:
    """An onnxruntime.OrtValue over an array's own memory."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def version() -> str:
    """onnxruntime's version."""
    import onnxruntime

    return str(onnxruntime.__version__)


def build_type() -> str:
    """How onnxruntime was compiled: Release, Debug, RelWithDebInfo, ...; "" where it does not tell."""
    import onnxruntime

    told = re.search(r"build type=(\w+)", str(onnxruntime.get_build_info()))
    return told[1] if told else ""


def providers() -> list[str]:
    """The execution providers of this installation."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def load_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a model that it does not load or cannot run (its errors share no parent)."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NotImplemented",
        "RuntimeException",
        "NoSuchFile",
    )
    return (*(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in float16 with float32 output, by onnxruntime's own converter (which knows what has no float16 kernel)."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
