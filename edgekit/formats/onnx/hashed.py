"""A classifier of hashed n-grams as an ONNX graph over token ids, written node by node: no module is traced for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.formats.onnx.float_graph import OLD_OPSET
from edgekit.hashing import PRIME, Grams, columns

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

# The IR version of the opset (onnx/docs/Versioning.md).
_IR_VERSION = 8


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """What such a classifier is made of.

    spelled: uint8 [vocabulary, characters] (`hashing.spell`); grams and spelling: the kinds of n-grams of tokens and of
    characters. codes: int8 [buckets, classes], row 0 all 0; scales: float32 [classes].
    """

    spelled: NDArray[np.uint8]
    grams: Grams
    spelling: Grams
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]


def hashed_graph(model: Hashed) -> onnx.ModelProto:
    """(input_ids, attention_mask), int64 [batch, sequence] each -> logits, float32 [batch, classes].

    The sum of the n-grams' rows over the root of their number. One product of integers hashes all kinds of n-grams, and a column
    of ones in the table counts them.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    window = 1 + max(map(max, model.grams))
    by, ends = columns(model.grams, model.spelling, model.spelled.shape[1])
    buckets, classes = model.codes.shape
    table = np.concatenate([model.codes, np.ones((buckets, 1), np.int8)], axis=1)
    table[0] = 0
    whole = {
        **_beside(window),
        "factors": np.array(by, np.int64),
        "spelled": np.concatenate([np.zeros_like(model.spelled[:1]), model.spelled]),
        "ends": np.array(ends, np.int64),
        "prime": np.int64(PRIME),
        "buckets": np.int64(buckets - 1),
        "one": np.int64(1),
        "table": table,
        "scales": model.scales,
        "sizes": np.array([classes, 1], np.int64),
        "last": np.array([2], np.int64),
        "inner": np.array([1, 2], np.int64),
        "least": np.float32(1.0),
    }
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        _nodes(window),
        "hashed",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in whole.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OLD_OPSET)], ir_version=_IR_VERSION, producer_name="edgekit"
    )


def _nodes(window: int) -> list[onnx.NodeProto]:
    """The graph's nodes, of which one lays tokens at distances below `window` side by side."""
    from onnx import TensorProto, helper

    node = helper.make_node
    return [
        node("Add", ["input_ids", "one"], ["above"]),
        node("Mul", ["above", "attention_mask"], ["numbers"]),
        node("Unsqueeze", ["numbers", "last"], ["first"]),
        node("Pad", ["first", "padding"], ["filled"]),
        *(node("Slice", ["filled", f"from{at}", f"to{at}", "one_axis"], [f"next{at}"]) for at in range(1, window)),
        node("Gather", ["spelled", "numbers"], ["letters"]),
        node("Cast", ["letters"], ["characters"], to=TensorProto.INT64),
        node("Concat", ["first", *(f"next{at}" for at in range(1, window)), "characters"], ["all"], axis=2),
        node("MatMul", ["all", "factors"], ["sums"]),
        node("Mod", ["sums", "prime"], ["hashes"]),
        node("Mod", ["hashes", "buckets"], ["remainders"]),
        node("Add", ["remainders", "one"], ["codes"]),
        # An n-gram is there where its last token or character and the token that it begins at are.
        node("Gather", ["all", "ends"], ["lasts"], axis=2),
        node("Mul", ["lasts", "first"], ["both"]),
        node("Sign", ["both"], ["there"]),
        node("Mul", ["codes", "there"], ["rows"]),
        node("Gather", ["table", "rows"], ["found"]),
        node("Cast", ["found"], ["weights"], to=TensorProto.FLOAT),
        node("ReduceSum", ["weights", "inner"], ["total"], keepdims=0),
        node("Split", ["total", "sizes"], ["scores", "count"], axis=1),
        node("Max", ["count", "least"], ["counted"]),
        node("Sqrt", ["counted"], ["root"]),
        node("Div", ["scores", "root"], ["means"]),
        node("Mul", ["means", "scales"], ["logits"]),
    ]


def _beside(window: int) -> dict[str, NDArray[np.int64]]:
    """The constants that lay tokens at distances below `window` side by side."""
    import numpy as np

    constants = {"padding": np.array([0, 0, 0, 0, window - 1, 0], np.int64), "one_axis": np.array([1], np.int64)}
    for at in range(1, window):
        constants[f"from{at}"] = np.array([at], np.int64)
        # The last window ends with the text: its end is beyond all of them.
        constants[f"to{at}"] = np.array([at - window + 1 or 2**31 - 1], np.int64)
    return constants
