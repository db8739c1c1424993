"""Which device llama.cpp's backends compute on here: one product of two matrices, by ggml, on the first GPU that it finds."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from edgekit.runtimes.llamacpp.library import (
    CPU,
    ERROR,
    GPU,
    WARNING,
    Options,
    messages,
    open_library,
    open_part,
    providers,
    version,
)
from edgekit.runtimes.request import read_options
from edgekit.runtimes.timing import fastest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.placement import Found

    Floats = NDArray[np.float32]

# Of ggml-backend.h's ggml_backend_dev_type: a GPU with memory of its own, and one that shares the CPU's.
_GPUS = (1, 2)
_F32, _SUCCESS = 0, 0
_SIDE = 256


class _Init(ctypes.Structure):
    """ggml_init_params of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def prove(options: Mapping[str, object]) -> Found:
    """Run a product where layers with these options lie; raises what `open_library` raises where llama.cpp does not load."""
    import numpy as np

    asked = GPU if read_options(Options, options).gpu_layers else CPU
    library = open_library()
    words = [*messages(ERROR, library.starting), *messages(WARNING, library.starting)]
    found: Found = {"version": version(), "asked": asked, "available": providers(), "words": words, "devices": []}
    parts = open_part("ggml"), open_part("ggml-base")
    if parts[0] is None or parts[1] is None:
        # A build with its libraries in other files: what it says of itself is all that is known.
        return {**found, "used": GPU if asked in found["available"] and asked == GPU else CPU}
    ggml = _Ggml(registry=parts[0], core=parts[1])
    devices = list(ggml.devices())
    gpus = [device for device, kind, _ in devices if kind in _GPUS]
    found["backends"] = list(ggml.backends())
    found["devices"] = [name for _, kind, name in devices if kind in _GPUS]
    place = gpus[0] if asked == GPU and gpus else next(device for device, kind, _ in devices if kind not in _GPUS)
    numbers = np.random.default_rng(0)
    left, right = (numbers.integers(-8, 8, (_SIDE, _SIDE)).astype(np.float32) for _ in range(2))
    with ggml.product(place, left, right) as run:
        answer = run()
        seconds = fastest(run)
    if answer is None:
        return {
            **found,
            "used": CPU,
            "words": [*words, f"{found['devices'] or place}: a product cannot be computed there"],
        }
    used = GPU if place in gpus else CPU
    # ggml_mul_mat(a, b) is b times the transpose of a.
    right_answer = bool(np.allclose(answer, right @ left.T, rtol=1e-2, atol=1.0))
    return {**found, "used": used, "right": right_answer, "ms": round(1000 * seconds, 3)}


class _Ggml:
    """ggml's functions, as far as they are needed here (ggml.h, ggml-backend.h, ggml-alloc.h)."""

    def __init__(self, *, registry: ctypes.CDLL, core: ctypes.CDLL) -> None:
        self._registry, self._core = registry, core
        pointers = ("dev_init", "alloc_ctx_tensors", "init", "new_tensor_2d", "mul_mat", "new_graph")
        for name in pointers:
            prefix = "ggml_" if name in {"init", "new_tensor_2d", "mul_mat", "new_graph"} else "ggml_backend_"
            getattr(core, prefix + name).restype = ctypes.c_void_p
        for name in ("dev_name", "dev_description", "reg_name"):
            getattr(core, f"ggml_backend_{name}").restype = ctypes.c_char_p
        for kind in ("dev", "reg"):
            getattr(registry, f"ggml_backend_{kind}_count").restype = ctypes.c_size_t
            getattr(registry, f"ggml_backend_{kind}_get").restype = ctypes.c_void_p

    def backends(self) -> Iterator[str]:
        """The names of those that it was built with, also where they find no device."""
        for index in range(self._registry.ggml_backend_reg_count()):
            backend = ctypes.c_void_p(self._registry.ggml_backend_reg_get(ctypes.c_size_t(index)))
            yield self._core.ggml_backend_reg_name(backend).decode("utf-8", "replace")

    def devices(self) -> Iterator[tuple[int, int, str]]:
        """Each device: its handle, its kind, its name and what it is."""
        for index in range(self._registry.ggml_backend_dev_count()):
            device = self._registry.ggml_backend_dev_get(ctypes.c_size_t(index))
            handle = ctypes.c_void_p(device)
            name, what = (
                tell(handle).decode("utf-8", "replace")
                for tell in (self._core.ggml_backend_dev_name, self._core.ggml_backend_dev_description)
            )
            yield device, int(self._core.ggml_backend_dev_type(handle)), f"{name}: {what}"

    @contextmanager
    def product(self, device: int, left: Floats, right: Floats) -> Iterator[partial[Floats | None]]:
        """A call that computes right x left^T on the device, [rows of right, rows of left]; None where it fails."""
        import numpy as np

        core, side, pointer = self._core, ctypes.c_int64(_SIDE), ctypes.c_void_p
        # The tensors and the graph without their data: some kB each.
        context = pointer(core.ggml_init(_Init(4 << 20, None, True)))
        a, b = (pointer(core.ggml_new_tensor_2d(context, _F32, side, side)) for _ in range(2))
        result = pointer(core.ggml_mul_mat(context, a, b))
        graph = pointer(core.ggml_new_graph(context))
        core.ggml_build_forward_expand(graph, result)
        backend = pointer(core.ggml_backend_dev_init(pointer(device), None))
        buffer = pointer(core.ggml_backend_alloc_ctx_tensors(context, backend)) if backend else pointer()
        size = ctypes.c_size_t(left.nbytes)

        def run() -> Floats | None:
            if not buffer or core.ggml_backend_graph_compute(backend, graph) != _SUCCESS:
                return None
            answer = np.empty((_SIDE, _SIDE), np.float32)
            core.ggml_backend_tensor_get(result, pointer(answer.ctypes.data), ctypes.c_size_t(0), size)
            return answer

        try:
            for tensor, values in ((a, left), (b, right)) if buffer else ():
                core.ggml_backend_tensor_set(tensor, pointer(values.ctypes.data), ctypes.c_size_t(0), size)
            yield partial(run)
        finally:
            if buffer:
                core.ggml_backend_buffer_free(buffer)
            if backend:
                core.ggml_backend_free(backend)
            core.ggml_free(context)
