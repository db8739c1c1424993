"""onnxruntime: one session of one artifact, and what it does where."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.runtimes.memory import Demand, Memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekit.runtimes.onnxruntime.generation import Generator

    Ids = Sequence[int] | NDArray[np.int64]

NAME = "onnxruntime"
CPU = "CPUExecutionProvider"
# Operators that are a matrix product, and the bytes of one weight where the operator says it (else as wide as its input).
MATRIX_PRODUCTS: dict[str, float | None] = {
    "MatMul": None,
    "FusedMatMul": None,
    "Gemm": None,
    "FusedGemm": None,
    "MatMulInteger": 1,
    "MatMulInteger16": 2,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 1,
    "QGemm": 1,
    "MatMulNBits": 0.5,
}
# What weights with their packed copies take of their own bytes, roughly; and onnxruntime and Python themselves.
_PREPARED, _PROCESS_BYTES = 1.2, 40e6
_WIDTHS = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8, "int8": 1, "uint8": 1}


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


class Session:
    """A loaded ONNX model over (input_ids, attention_mask) -> [1, width]."""

    def __init__(self, file: Path, options: Mapping[str, Any], *, profile: Path | None = None) -> None:
        """Raises what onnxruntime raises for a file that it does not load; a provider that is absent falls back to the CPU.

        profile: a file prefix for onnxruntime's profile, written by `end_profile`.
        """
        import onnxruntime

        wanted = Options(**dict(options))
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = wanted.threads or 0
        for key, value in wanted.config_entries.items():
            settings.add_session_config_entry(key, value)
        if profile is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(profile)
        ordered = [wanted.provider] if wanted.provider in providers() else []
        self._session = onnxruntime.InferenceSession(
            str(file),
            settings,
            providers=[*ordered, *([CPU] if CPU not in ordered else [])],
            disabled_optimizers=wanted.disabled_optimizers,
        )
        self._inputs = [value.name for value in self._session.get_inputs()]
        self.provider: str = self._session.get_providers()[0]

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """The output [width] for one text's token ids."""
        import numpy as np

        tokens = np.asarray(ids, dtype=np.int64)[None]
        # Files that something else exported may want segment ids: all of one text.
        known = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
        if unknown := sorted(set(self._inputs) - set(known)):
            raise ValueError(f"the model wants the input {unknown[0]}; edgekit gives {', '.join(known)}")
        answer = self._session.run(None, {name: known[name] for name in self._inputs})[0][0]
        return np.asarray(answer, dtype=np.float32)

    def end_profile(self) -> Path:
        """Write the profile and say where it lies."""
        return Path(self._session.end_profiling())


def version() -> str:
    """onnxruntime's version."""
    import onnxruntime

    return str(onnxruntime.__version__)


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


def joined(target: Mapping[str, Any], artifact: Mapping[str, Any]) -> dict[str, Any]:
    """A session's options: a target's `[runtime.onnxruntime]` with what the artifact needs, which wins."""
    wanted = vars(Options(**dict(target)))
    off = sorted({*wanted["disabled_optimizers"], *artifact.get("disabled_optimizers", ())})
    entries = dict(sorted({**wanted["config_entries"], **artifact.get("config_entries", {})}.items()))
    return wanted | {"disabled_optimizers": off, "config_entries": entries}


def memory(demand: Demand, options: Mapping[str, Any]) -> Memory:  # noqa: ARG001 - one signature for all
    """What an artifact needs here: its weights with what onnxruntime prepares of them, and the process itself."""
    return Memory(needed=_PREPARED * demand.weights + _PROCESS_BYTES)


def load(file: Path, options: Mapping[str, Any]) -> Session:
    """Open an artifact with the options of its export and of its target."""
    return Session(file, options)


def generator(file: Path, options: Mapping[str, Any]) -> Generator:
    """Open a decoder."""
    from edgekit.runtimes.onnxruntime.generation import Generator

    return Generator(file, options)


def outputs(
    file: Path, ids: Sequence[Sequence[int]], *, pad_id: int, options: Mapping[str, Any]
) -> NDArray[np.float32]:
    """The outputs [n, width] of n encoded texts, each run by itself and unpadded, as an app would; an empty one is `pad_id`."""
    import numpy as np

    session = load(file, options)
    return np.stack([session.run(row or [pad_id]) for row in ids])


def work(file: Path, options: Mapping[str, Any], ids: Ids) -> dict[str, Any]:
    """What one call on `ids` does, from onnxruntime's profile: {provider, nodes, matmul_nodes, matmul_ops, weight_bytes}.

    nodes, matmul_nodes and matmul_ops are by execution provider; an operation is a multiplication or an addition.
    weight_bytes are those of the constant matrices that the call reads. A provider that compiles a part of the graph shows it
    as one node: what the CPU alone would compute and does not under this provider is counted as the provider's.
    """
    used, found = _profile(file, options, ids)
    if used != CPU:
        _, alone = _profile(file, dict(options) | {"provider": CPU}, ids)
        hidden = sum(alone["matmul_ops"].values()) - sum(found["matmul_ops"].values())
        found["matmul_ops"][used] = found["matmul_ops"].get(used, 0) + max(hidden, 0)
        found["weight_bytes"] = max(found["weight_bytes"], alone["weight_bytes"])
    return {"provider": used, **found}


def _profile(file: Path, options: Mapping[str, Any], ids: Ids) -> tuple[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        session = Session(file, options, profile=Path(scratch) / "profile")
        session.run(ids)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    nodes: Counter[str] = Counter()
    products: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    weights = 0.0
    for facts in _kernels(events):
        provider, operator = str(facts["provider"]), str(facts["op_name"])
        nodes[provider] += 1
        if operator in MATRIX_PRODUCTS:
            products[provider] += 1
            count, size = _product(operator, facts)
            operations[provider] += count
            weights += size
    return session.provider, {
        "nodes": dict(nodes),
        "matmul_nodes": dict(products),
        "matmul_ops": dict(operations),
        "weight_bytes": int(weights),
    }


def _kernels(events: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            yield event["args"]


def _product(operator: str, facts: Mapping[str, Any]) -> tuple[int, float]:
    """Operations of a matrix product [..., m, k] x [k, n], and the bytes of its second matrix where that is a constant.

    The profile leaves out constants that onnxruntime has repacked, so a second input of rank < 2 is a scale or a bias.
    """
    (kind, left), *others = (next(iter(entry.items())) for entry in facts["input_type_shape"] if entry)
    (_, out), *_ = (next(iter(entry.items())) for entry in facts["output_type_shape"] if entry)
    if not left or not out:
        return 0, 0.0
    inner, columns, rows = left[-1], out[-1], 1
    for extent in out[:-1]:
        rows *= extent
    shown = bool(others) and len(others[0][1]) >= 2
    width = MATRIX_PRODUCTS[operator] or _WIDTHS.get(kind, 4)
    return 2 * rows * inner * columns, 0.0 if shown else float(inner * columns * width)
