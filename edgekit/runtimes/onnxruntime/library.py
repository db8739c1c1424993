"""The one place that imports onnxruntime: sessions of it, and what this installation has."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.runtimes import request
from edgekit.runtimes.onnxruntime import words
from edgekit.runtimes.package import Package, Plugin

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
DIRECTML, WEBGPU = "DmlExecutionProvider", "WebGpuExecutionProvider"
PACKAGE = Package(
    module="onnxruntime",
    name="onnxruntime",
    builds={
        "onnxruntime-gpu": (CUDA, TENSORRT),
        "onnxruntime-directml": (DIRECTML,),
        "onnxruntime-openvino": ("OpenVINOExecutionProvider",),
        "onnxruntime-qnn": ("QNNExecutionProvider",),
    },
    plugins={"onnxruntime-ep-webgpu": Plugin(module="onnxruntime_ep_webgpu", provider=WEBGPU)},
)
# Makes an x86 CPU without VNNI multiply bytes without saturation (kOrtSessionOptionsAvx2PrecisionMode in
# onnxruntime_session_options_config_keys.h); other CPUs ignore it.
EXACT_SUMS = {"session.x64quantprecision": "1"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """`[runtime.onnxruntime]` of a target.

    threads: those of one operator; None leaves it to onnxruntime. cuda_graphs: whether encoders on CUDA replay graphs (see
    `bound`); other providers have none. disabled_optimizers: names of graph optimizers that a session must leave off;
    config_entries: onnxruntime's session configuration by key. The artifact's own join them (`joined`).
    """

    provider: str = CPU
    cuda_graphs: bool = True
    threads: int | None = None
    disabled_optimizers: list[str] = field(default_factory=list)
    config_entries: dict[str, str] = field(default_factory=dict)


def read_options(options: Mapping[str, object]) -> Options:
    """A session's options from a request. Raises TypeError for one that there is not."""
    return request.read_options(Options, options)


@dataclass(frozen=True, kw_only=True)
class Started:
    """An onnxruntime.InferenceSession, or a `Bound` in its place, and what onnxruntime said while a provider other than the CPU
    was started."""

    session: Any
    words: tuple[str, ...] = ()


def open_session(model: Path | bytes, options: Options, *, optimize: bool = True, profile: Path | None = None) -> Any:
    """The session of `start`."""
    return start(model, options, optimize=optimize, profile=profile).session


def start(
    model: Path | bytes,
    options: Options,
    *,
    optimize: bool = True,
    profile: Path | None = None,
    graphs: bool = False,
) -> Started:
    """An onnxruntime.InferenceSession of a file or of a model in memory.

    A provider that is absent or cannot start falls back to the CPU, and the words say why. optimize: False runs the graph's nodes
    as they are written. profile: a file prefix for onnxruntime's profile, written when the session ends it. graphs: a `Bound` on
    CUDA where the options want it. Raises what `load_errors` names for what does not load.
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
    source = model if isinstance(model, bytes) else str(model)
    asked = {"disabled_optimizers": options.disabled_optimizers}
    if options.provider == CPU or options.provider not in providers():
        return Started(session=onnxruntime.InferenceSession(source, settings, providers=[CPU], **asked))
    with words.heard() as said:
        if options.provider in _PLUGINS:
            session = onnxruntime.InferenceSession(
                source, settings, **asked, **_plugged(options.provider, settings, said)
            )
        else:
            _prepare(options.provider, settings)
            kind = _kind(graphs=graphs and options.provider == CUDA and options.cuda_graphs)
            session = kind(source, settings, providers=[options.provider, CPU], **asked)
    return Started(session=session, words=tuple(said))


def _kind(*, graphs: bool) -> Any:
    """The class of a session."""
    if graphs:
        from edgekit.runtimes.onnxruntime.bound import Bound

        return Bound
    import onnxruntime

    return onnxruntime.InferenceSession


def _prepare(provider: str, settings: Any) -> None:
    """What a provider needs before its first session."""
    import onnxruntime

    if provider in {CUDA, TENSORRT} and hasattr(onnxruntime, "preload_dlls"):
        # CUDA and cuDNN as pip installs them lie where no loader looks. Of what it cannot load it prints a line each.
        onnxruntime.preload_dlls()
    if provider == DIRECTML:
        # It runs neither memory patterns nor operators side by side (onnxruntime.ai, "DirectML Execution Provider").
        settings.enable_mem_pattern = False
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL


_PLUGINS = {plugin.provider: plugin.module for plugin in PACKAGE.plugins.values()}


def _plugged(provider: str, settings: Any, said: list[str]) -> dict[str, list[str]]:
    """Give a session the first device of a plug-in's provider; where it has none, the CPU, with a word about it in `said`."""
    import onnxruntime

    try:
        _register(_PLUGINS[provider])
    except load_errors() as failed:
        said.append(str(failed))
        return {"providers": [CPU]}
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
    if not devices:
        said.append(f"{provider}: its library is loaded and finds no device")
        return {"providers": [CPU]}
    settings.add_provider_for_devices(devices[:1], {})
    return {}


@cache
def _register(module: str) -> None:
    """Make a plug-in's library known to onnxruntime, once."""
    import onnxruntime

    path = importlib.import_module(module).get_library_path()
    onnxruntime.register_execution_provider_library(module, path)


def save_as_ort(model: Path, out: Path, disabled_optimizers: Sequence[str]) -> None:
    """Write an .onnx file's graph in onnxruntime's own format, optimized for the CPU provider, whatever the CPU.

    At the level that is called extended: what comes above it lays tensors out for this CPU (graph_transformer_utils.cc).
    Raises what `load_errors` names.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(out)
    settings.add_session_config_entry("session.save_model_format", "ORT")
    # What the tool sets for ARM: signed activations of Quantize/Dequantize pairs stay signed.
    settings.add_session_config_entry("session.qdqisint8allowed", "1")
    onnxruntime.InferenceSession(str(model), settings, providers=[CPU], disabled_optimizers=list(disabled_optimizers))


def installed() -> bool:
    """Whether this Python has onnxruntime."""
    return importlib.util.find_spec(PACKAGE.module) is not None


class Value(Protocol):
    """An onnxruntime.OrtValue: a tensor in the memory of a device."""

    def numpy(self) -> NDArray[np.generic]:
        """Its numbers, where it lies in the host's memory."""

    def shape(self) -> list[int]:
        """How long it is along each axis."""


# How onnxruntime calls the memory that a provider's operators read and write; of others it takes tensors from the host.
_MEMORIES = {CUDA: "cuda", TENSORRT: "cuda", DIRECTML: "dml", WEBGPU: "webgpu"}


def as_value(array: NDArray[np.generic]) -> Value:
    """An onnxruntime.OrtValue over an array's own memory."""
    import onnxruntime

    value: Value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return value


def held(array: NDArray[np.generic], session: Any, provider: str) -> Value:
    """An array as a session's operators read and write it: a copy in the provider's memory, or over its own on the CPU."""
    import onnxruntime

    here = as_value(array)
    if provider not in _MEMORIES:
        return here
    memory = _MEMORIES[provider]
    there: Value = session.create_ortvalue_from_shape_and_type(array.shape, array.dtype.type, memory)
    onnxruntime.copy_tensors([here], [there])
    return there


def read_back(value: Value, kind: str, provider: str) -> NDArray[np.generic]:
    """The numbers of a value that is `held`, of NumPy's type `kind`."""
    import numpy as np
    import onnxruntime

    if provider not in _MEMORIES:
        return value.numpy()
    array = np.empty(value.shape(), kind)
    onnxruntime.copy_tensors([value], [as_value(array)])
    return array


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
    """The execution providers of this installation, those of plug-ins first."""
    import onnxruntime

    plugged = [provider for provider, module in _PLUGINS.items() if importlib.util.find_spec(module) is not None]
    return list(dict.fromkeys([*plugged, *onnxruntime.get_available_providers()]))


def built_for() -> str | None:
    """The major version of CUDA that this onnxruntime was built for; None where it was not, or does not tell."""
    import onnxruntime

    return str(getattr(onnxruntime, "cuda_version", None) or "").partition(".")[0] or None


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
        "EPFail",
    )
    return (*(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError)


def convert_to_half(
    model: onnx.ModelProto, keep: Sequence[str] = (), *, float32: Sequence[str] | None = None
) -> onnx.ModelProto:
    """The graph in float16 with float32 output, by onnxruntime's own converter (which knows what has no float16 kernel).

    keep: names of nodes that stay in float32; float32: the inputs and outputs that do, None for all of them.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # Around a node that stays it puts casts where it knows a value's type.
    return convert_float_to_float16(
        model,
        keep_io_types=True if float32 is None else list(float32),
        disable_shape_infer=not keep,
        node_block_list=list(keep),
    )
