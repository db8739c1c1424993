"""A session of onnxruntime on CUDA whose inputs and outputs are bound to memory, and which replays CUDA graphs.

A call of a small model takes as long as its operators take to be launched one by one. CUDA records them once, and launches them
together from then on, on the very memory that they had: so there is one graph for inputs of one shape, and each has tensors of
its own on the GPU, which are written in place (onnxruntime.ai, "NVIDIA - CUDA", "Using CUDA Graphs"). This file is what measures,
and what ships in bundles for CUDA: NumPy and onnxruntime, nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]
# Graphs that a session keeps; inputs of more shapes than this are computed without one. A graph of an encoder takes less than a
# megabyte of the GPU's memory, and is never let go: no release of onnxruntime for CUDA can.
MOST = 64
# Before, a session had one graph, whatever the shapes (github.com/microsoft/onnxruntime/pull/19636).
OLDEST = (1, 18)
# The run option that names a graph; -1 runs the operators one by one (onnxruntime_run_options_config_keys.h).
NUMBER, WITHOUT = "gpu_graph_id", -1
# What onnxruntime and CUDA raise, which share no parent, and what is raised here of other numbers.
ERRORS: tuple[type[Exception], ...] = (
    *(error for error in vars(state).values() if isinstance(error, type) and issubclass(error, Exception)),
    *(RuntimeError, ValueError),
)
# What a replay may differ by from the operators one by one, of the largest answer: kernels that add up in any order, in 16 bits.
FINE = 0.01


class Graph:
    """The recorded launches of a session for inputs of one shape, and the tensors that they read and write."""

    def __init__(self, session: Any, inputs: Arrays, outputs: Arrays, *, memory: str, number: int) -> None:
        """Record it. inputs, outputs: arrays of the shapes and types of each; number: its own, from 0."""
        self._session, self._binding, self._option = session, session.io_binding(), _choose(number)
        # Zeros are token ids, types and positions that every table has; what a graph of them answers is not looked at.
        zeros = {name: np.zeros(array.shape, array.dtype) for name, array in inputs.items()}
        self._inputs = {name: self._tensor(array, memory) for name, array in zeros.items()}
        self._outputs = {name: self._tensor(array, memory) for name, array in outputs.items()}
        for name, tensor in self._inputs.items():
            self._binding.bind_ortvalue_input(name, tensor)
        for name, tensor in self._outputs.items():
            self._binding.bind_ortvalue_output(name, tensor)
        # Its first run runs until the graph is recorded (InferenceSession::Run).
        session.run_with_iobinding(self._binding, self._option)

    def replay(self, feeds: Arrays) -> list[Array]:
        """The outputs for inputs of its shapes."""
        for name, array in feeds.items():
            self._write(np.ascontiguousarray(array), self._inputs[name])
        self._session.run_with_iobinding(self._binding, self._option)
        answers: list[Array] = self._binding.copy_outputs_to_cpu()
        return answers

    def _tensor(self, array: Array, memory: str) -> Any:
        """An onnxruntime.OrtValue of its own, with these numbers."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.array(array), memory, 0)

    def _write(self, array: Array, tensor: Any) -> None:
        """Numbers into a tensor, where it is; it holds them when this returns (cudaMemcpy, and a wait for the stream)."""
        tensor.update_inplace(array)


class Bound:
    """An onnxruntime.InferenceSession that is made with the same arguments and asked by `run`.

    why: why it replays no graph; "" as long as it does. A shape's first call is computed without one, then recorded, with zeros
    for inputs, replayed with the call's own and compared: where the answers differ, and where CUDA or onnxruntime raise, the
    session is opened again without graphs. Calls of several threads wait for each other, and each thread has its own graphs, as
    onnxruntime keeps them.
    """

    PROVIDER, MEMORY, GRAPH = "CUDAExecutionProvider", "cuda", Graph

    def __init__(self, *model: object, providers: Sequence[str], most: int = MOST, **asked: object) -> None:
        """most: how many graphs are kept. Raises what InferenceSession raises; a graph that cannot be is no error."""
        self._model, self._providers, self._asked, self._most = model, providers, asked, most
        self._graphs: dict[tuple[object, ...], Graph] = {}
        self._lock, self._own = threading.Lock(), threading.local()
        self.why = ""
        if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < OLDEST:
            self.why = (
                f"onnxruntime {onnxruntime.__version__} keeps one graph for all shapes; 1.18 and newer keep several"
            )
        else:
            try:
                # By itself onnxruntime would open it again without the option, and not say so.
                self._session = self._open({"enable_cuda_graph": "1"}, enable_fallback=0)
            except ERRORS as failed:
                self.why = _words(failed)
        if self.why:
            self._session = self._open({})
        self._memory = self.MEMORY
        if self._session.get_providers()[0] != self.PROVIDER:
            self._memory, self.why = "cpu", f"{self.PROVIDER} did not start"

    def _open(self, options: dict[str, str], **asked: object) -> Any:
        providers = [(name, options if name == self.PROVIDER else {}) for name in self._providers]
        return onnxruntime.InferenceSession(*self._model, providers=providers, **self._asked, **asked)

    def __getattr__(self, name: str) -> Any:
        """All but `run` is the session's."""
        if name == "_session":
            raise AttributeError(name)
        return getattr(self._session, name)

    def run(self, names: None, feeds: Arrays) -> list[Array]:
        """All outputs (names: None), each copied from the GPU once; raises what onnxruntime raises for other inputs."""
        assert names is None
        with self._lock:
            shapes = sorted((name, array.shape, array.dtype.str) for name, array in feeds.items())
            # Not its number, which a later thread may have: that has no graphs of onnxruntime's.
            key = (vars(self._own).setdefault("thread", object()), *shapes)
            if not self.why and key in self._graphs:
                try:
                    return self._graphs[key].replay(feeds)
                except ERRORS as failed:
                    self._do_without(failed)
            answers = self._compute(feeds)
            if not self.why and len(self._graphs) < self._most:
                try:
                    self._graphs[key] = self._record(feeds, answers)
                except ERRORS as failed:
                    self._do_without(failed)
            return answers

    def _compute(self, feeds: Arrays) -> list[Array]:
        """The outputs by the operators one by one; they stay where they are computed until all are."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for output in self._session.get_outputs():
            binding.bind_output(output.name, self._memory)
        self._session.run_with_iobinding(binding, _choose(WITHOUT))
        answers: list[Array] = binding.copy_outputs_to_cpu()
        return answers

    def _record(self, feeds: Arrays, answers: Sequence[Array]) -> Graph:
        """The graph of these shapes, whose replay gives these answers; raises ValueError where it does not."""
        outputs = {value.name: answer for value, answer in zip(self._session.get_outputs(), answers, strict=True)}
        graph = self.GRAPH(self._session, feeds, outputs, memory=self._memory, number=len(self._graphs))
        for name, found, wanted in zip(outputs, graph.replay(feeds), answers, strict=True):
            if not _alike(found, wanted):
                raise ValueError(f"a replay gives other numbers for {name} than the operators one by one")
        return graph

    def _do_without(self, failed: Exception) -> None:
        """Open the session again without graphs, some of which may hold what failed."""
        self._graphs.clear()
        self.why = _words(failed)
        try:
            self._session = self._open({})
        except ERRORS as dead:
            raise RuntimeError(
                f"CUDA graphs failed ({self.why}) and took the GPU's context with them; build with cuda_graphs = false in the"
                " target's [runtime.onnxruntime]"
            ) from dead


def _choose(graph: int) -> Any:
    """The run options that name a graph."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(NUMBER, str(graph))
    return options


def _alike(found: Array, wanted: Array) -> bool:
    finite = wanted[np.isfinite(wanted)]
    most = float(np.abs(finite.astype(np.float64)).max(initial=0.0))
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=0.0, atol=FINE * most, equal_nan=True)


def _words(failed: Exception) -> str:
    return " ".join(str(failed).split())[:300] or type(failed).__name__
