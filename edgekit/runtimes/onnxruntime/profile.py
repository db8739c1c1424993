"""What one call of a session does, and on which execution provider, from onnxruntime's own profile."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from edgekit.runtimes.onnxruntime.library import CPU
from edgekit.runtimes.onnxruntime.operators import OPERATORS
from edgekit.runtimes.onnxruntime.session import Session

if TYPE_CHECKING:
    from edgekit.runtimes.placement import Work
    from edgekit.runtimes.request import Arrays

_PRODUCTS = {name: operator.weight_bytes for name, operator in OPERATORS.items() if operator.kind == "matmul"}
# What onnxruntime puts between an operator on a GPU and one on the CPU that reads its output.
_COPY = "MemcpyToHost"
# Calls of a profile: of the first one all operators are slow.
_CALLS = 3
_WIDTHS = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8, "int8": 1, "uint8": 1}


class Kernel(TypedDict):
    """What onnxruntime says of one operator's run: shapes by element type of each tensor, constants that it repacked left out."""

    provider: str
    op_name: str
    input_type_shape: list[dict[str, list[int]]]
    output_type_shape: list[dict[str, list[int]]]


class Event(TypedDict, total=False):
    """One event of the profile, which is Chrome's trace format; ts, dur: when it began and how long it took, in microseconds."""

    cat: str
    name: str
    ts: int
    dur: int
    args: Kernel


def work(file: Path, options: Mapping[str, object], prompt: Arrays) -> Work:
    """What one call on a prompt does: {provider, nodes, matmul_nodes, matmul_ops, weight_bytes}, and see `Work`.

    nodes, matmul_nodes and matmul_ops are by execution provider; an operation is a multiplication or an addition.
    weight_bytes are those of the constant matrices that the call reads. A provider that compiles a part of the graph shows it
    as one node: what the CPU alone would compute and does not under this provider is counted as the provider's.
    """
    result = _profile(file, options, prompt)
    used = result["provider"]
    if used != CPU:
        alone, operations = _profile(file, dict(options) | {"provider": CPU}, prompt), result["matmul_ops"]
        hidden = sum(alone["matmul_ops"].values()) - sum(operations.values())
        operations[used] = operations.get(used, 0) + max(hidden, 0)
        result["weight_bytes"] = max(result["weight_bytes"], alone["weight_bytes"])
        replaying = Session(file, options)
        replaying.run(prompt)
        if replaying.graphs is not None:
            result["graphs"] = replaying.graphs
    return result


def _profile(file: Path, options: Mapping[str, object], prompt: Arrays) -> Work:
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        session = Session(file, options, profile=Path(scratch) / "profile")
        for _ in range(_CALLS):
            session.run(prompt)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    return count(events, session.provider, session.words)


def count(events: Sequence[Event], provider: str, words: Sequence[str] = ()) -> Work:
    """What the last call of a profile did. provider: the session's; words: what onnxruntime said when it started."""
    nodes: Counter[str] = Counter()
    products: Counter[str] = Counter()
    attention: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    weights, copies, of_bytes = 0.0, 0, 0
    for facts in kernels(events):
        place, operator = str(facts["provider"]), str(facts["op_name"])
        nodes[place] += 1
        copies += operator == _COPY
        attention[place] += operator.endswith("Attention")
        if operator in _PRODUCTS:
            products[place] += 1
            done, size = _product(operator, facts)
            operations[place] += done
            weights += size
            of_bytes += done if _PRODUCTS[operator] == 1 else 0
    result: Work = {
        "provider": provider,
        "nodes": dict(nodes),
        "matmul_nodes": dict(products),
        "matmul_ops": dict[str, float](operations),
        "int8_ops": float(of_bytes),
        "weight_bytes": int(weights),
        "time_shares": time_shares(events),
    }
    if words:
        result["warnings"] = list(words)
    if provider != CPU:
        result |= {"attention_nodes": dict(+attention), "copies": copies}
    return result


def kernels(events: Sequence[Event]) -> Iterator[Kernel]:
    """The operators that ran in the last call, of all that onnxruntime's profile tells."""
    last = max((event["ts"] for event in events if event.get("name") == "model_run"), default=0)
    for event in events:
        if _is_kernel(event) and event["ts"] >= last:
            yield event["args"]


def time_shares(events: Sequence[Event]) -> dict[str, float]:
    """The share of a call's time by operator, the largest first; empty where the profile tells no times.

    Of each node the fastest of its calls counts, so that what other programs took does not.
    """
    least: dict[str, tuple[int, str]] = {}
    for event in events:
        if _is_kernel(event) and "dur" in event:
            earlier, _ = least.get(event["name"], (event["dur"], ""))
            least[event["name"]] = (min(earlier, event["dur"]), str(event["args"]["op_name"]))
    total = sum(time for time, _ in least.values())
    by_operator: Counter[str] = Counter()
    for time, operator in least.values():
        by_operator[operator] += time
    return {operator: round(time / total, 3) for operator, time in by_operator.most_common()} if total else {}


def _is_kernel(event: Event) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")


def _product(operator: str, facts: Kernel) -> tuple[int, float]:
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
    width = _PRODUCTS[operator] or _WIDTHS.get(kind, 4)
    return 2 * rows * inner * columns, 0.0 if shown else float(inner * columns * width)
