"""Files of other tools: where their weights lie, what they take and give, and what is refused in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import EdgekitError
from edgekit.formats.onnx import describe_file
from edgekit.formats.onnx.files import copy_files, external_files, read
from edgekit.formats.onnx.session import Session
from edgekit.modalities.text import of_tokens
from edgekit.workspace import file_sha256
from tests.artifacts import make_model

INT64, INT32, FLOAT = TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT


def outside(tensor: onnx.TensorProto, location: str, length: int) -> onnx.TensorProto:
    """The tensor with its values in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def make_file(
    path: Path,
    *,
    inputs: dict[str, tuple[int, list[Any]]] | None = None,
    output: str = "logits",
    location: str | None = None,
    place: str = "initializer",
) -> Path:
    """logits [batch, 3] of the sum of a table's rows; other outputs are what a wrong file gives first."""
    inputs = inputs or {name: (INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")}
    table = numpy_helper.from_array(np.arange(30, dtype=np.float32).reshape(10, 3), "table")
    if location is not None:
        outside(table, location, 120)
    nodes = [
        helper.make_node("Gather", ["table", next(iter(inputs))], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["logits"], keepdims=0),
        helper.make_node("ReduceSum", ["rows", "last"], ["scores"], keepdims=0),
        helper.make_node("Cast", ["logits"], ["labels"], to=INT64),
    ]
    initializers = [
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array([2], np.int64), "last"),
    ]
    functions = []
    if place == "initializer":
        initializers.append(table)
    elif place == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["table"], value=table))
    elif place == "subgraph":
        initializers.append(numpy_helper.from_array(np.array(True), "yes"))
        branches = []
        for name in ("then", "else"):
            own = onnx.TensorProto()
            own.CopyFrom(table)
            own.name = f"{name}.table"
            copied = [helper.make_node("Identity", [own.name], [f"{name}.out"])]
            value = helper.make_tensor_value_info(f"{name}.out", FLOAT, [10, 3])
            branches.append(helper.make_graph(copied, name, [], [value], [own]))
        nodes.insert(0, helper.make_node("If", ["yes"], ["table"], then_branch=branches[0], else_branch=branches[1]))
    else:
        constant = [helper.make_node("Constant", [], ["out"], value=table)]
        opset = [helper.make_opsetid("", 18)]
        functions.append(helper.make_function("local", "Table", [], ["out"], constant, opset))
        nodes.insert(0, helper.make_node("Table", [], ["table"], domain="local"))
    kind = INT64 if output == "labels" else FLOAT
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info(name, *given) for name, given in inputs.items()],
        [helper.make_tensor_value_info(output, kind, None)],
        initializers,
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions)
    path.write_bytes(model.SerializeToString())
    return path


def write_table(path: Path, scale: float = 1.0) -> None:
    path.write_bytes((np.arange(30, dtype=np.float32) * np.float32(scale)).tobytes())


@pytest.mark.parametrize("location", ["theirs.onnx.data", "model.onnx_data", "./weights.bin", "a b"])
@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph", "function"])
def test_weights_beside_the_graph_are_found_wherever_it_uses_them(place: str, location: str, tmp_path: Path) -> None:
    name = location.removeprefix("./")
    path = make_file(tmp_path / "theirs.onnx", location=location, place=place)
    write_table(tmp_path / name)
    assert external_files(read(path), path) == [name]
    (tmp_path / "out").mkdir()
    copy_files(path, tmp_path / "out" / "model.onnx")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(["model.onnx", name])
    if place in {"initializer", "subgraph"}:  # onnxruntime itself reads no others
        facts = describe_file(tmp_path / "out" / "model.onnx", named=path)
        assert facts.files == ("model.onnx", name)
        assert facts.bytes == path.stat().st_size + 120


def test_other_weights_make_another_sha256(tmp_path: Path) -> None:
    found = []
    for scale in (1.0, 2.0):
        folder = tmp_path / str(scale)
        folder.mkdir()
        path = make_file(folder / "model.onnx", location="model.onnx_data")
        write_table(folder / "model.onnx_data", scale)
        found.append(describe_file(path))
        lines = f"model.onnx {file_sha256(path)}\nmodel.onnx_data {file_sha256(folder / 'model.onnx_data')}\n"
        assert found[-1].sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert file_sha256(tmp_path / "1.0" / "model.onnx") == file_sha256(tmp_path / "2.0" / "model.onnx")
    assert found[0].sha256 != found[1].sha256


def test_a_single_file_keeps_its_own_sha256(tmp_path: Path) -> None:
    path = make_file(tmp_path / "model.onnx")
    facts = describe_file(path)
    assert (list(facts.files), facts.bytes, facts.sha256) == (
        ["model.onnx"],
        path.stat().st_size,
        file_sha256(path),
    )


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../weights.bin", "a/../../w.bin", "sub/w.bin", "C:\\w.bin", "..\\w.bin", "..", ".", ""]
)
def test_weights_elsewhere_are_refused(location: str, tmp_path: Path) -> None:
    path = make_file(tmp_path / "theirs.onnx", location=location)
    for refuse in (lambda: copy_files(path, tmp_path / "copy.onnx"), lambda: describe_file(path)):
        with pytest.raises(
            EdgekitError, match=r"theirs\.onnx: its weights are in .*only files beside the graph: save it"
        ):
            refuse()
    assert not (tmp_path / "copy.onnx").exists()


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "README.md"])
def test_weights_named_like_another_file_are_refused(name: str, tmp_path: Path) -> None:
    path = make_file(tmp_path / "theirs.onnx", location=name)
    write_table(tmp_path / name)
    with pytest.raises(EdgekitError, match="a name that another file of the artifact has"):
        copy_files(path, tmp_path / "copy.onnx")


def test_missing_and_cut_weights_are_named(tmp_path: Path) -> None:
    path = make_file(tmp_path / "theirs.onnx", location="w.bin")
    with pytest.raises(EdgekitError, match=r"theirs\.onnx: its weights are in 'w\.bin', which is not beside it; copy"):
        describe_file(path)
    (tmp_path / "w.bin").write_bytes(b"\0" * 60)
    with pytest.raises(EdgekitError, match=r"theirs\.onnx: onnxruntime .* does not load it"):
        describe_file(path)


def test_links_are_copied_as_files(tmp_path: Path) -> None:
    """A hub's cache holds links to blobs in another folder."""
    for name in ("blobs", "snapshot", "out"):
        (tmp_path / name).mkdir()
    write_table(tmp_path / "blobs" / "b")
    (tmp_path / "snapshot" / "model.onnx_data").symlink_to(tmp_path / "blobs" / "b")
    path = make_file(tmp_path / "snapshot" / "model.onnx", location="model.onnx_data")
    copy_files(path, tmp_path / "out" / "model.onnx")
    assert not (tmp_path / "out" / "model.onnx_data").is_symlink()
    assert describe_file(tmp_path / "out" / "model.onnx").bytes == path.stat().st_size + 120


def ids(**more: Any) -> dict[str, tuple[int, list[Any]]]:
    return {"input_ids": (INT64, ["b", "s"])} | more


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inputs": ids(position_ids=(INT64, ["b", "s"]))}, "takes the input position_ids; edgekit gives input_ids"),
        (
            {"inputs": ids(**{"past_key_values.0": (FLOAT, [1, 2])})},
            r"takes the input past_key_values\.0; edgekit gives",
        ),
        ({"inputs": {"pixels": (INT64, ["b", "s"])}}, "takes the input pixels"),
        ({"inputs": {"token_type_ids": (INT64, ["b", "s"])}}, "takes no input_ids"),
        ({"inputs": {"input_ids": (INT32, ["b", "s"])}}, "takes input_ids as tensor.int32.; .* with int64 inputs"),
        ({"inputs": ids(attention_mask=(FLOAT, ["b", "s"]))}, "takes attention_mask as tensor.float.; .* int64"),
        ({"inputs": {"input_ids": (INT64, [1, 128])}}, r"input_ids of shape \[1, 128\]; .*dynamic axes"),
        ({"inputs": {"input_ids": (INT64, [8, "s"])}}, r"input_ids of shape \[8, 's'\]"),
        ({"output": "rows"}, r"first output, rows, has the shape \[1, 3, 3\] for one text of 3 tokens; .* pooled"),
        ({"output": "scores"}, r"first output, scores, has the shape \[1, 5\] for one text of 5 tokens"),
        ({"output": "labels"}, r"first output, labels, is a tensor\(int64\)"),
    ],
)
def test_another_interface_is_one_clear_error(
    options: dict[str, Any], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_file(tmp_path / "theirs.onnx", **options)
    with pytest.raises(EdgekitError, match=rf"theirs\.onnx: .*{said}"):
        describe_file(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("shape", [["b", "s"], [1, "s"], [None, None]])
@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "attention_mask", "token_type_ids"]])
def test_the_usual_interfaces_are_described(names: list[str], shape: list[Any], tmp_path: Path) -> None:
    path = make_file(tmp_path / "theirs.onnx", inputs=dict.fromkeys(names, (INT64, shape)))
    assert describe_file(path).onnx.opset == 18
    assert Session(path).outputs(of_tokens([[1, 2]], 0)).tolist() == [[9, 11, 13]]


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\x08\x0a")])
def test_an_empty_file_is_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "empty.onnx")
    with pytest.raises(EdgekitError, match=r"empty\.onnx: "):
        describe_file(tmp_path / "empty.onnx")


def test_a_bag_of_words_with_external_weights(tmp_path: Path) -> None:
    make_model(tmp_path / "bag.onnx", external=True)
    assert describe_file(tmp_path / "bag.onnx").files == ("bag.onnx", "bag.onnx.data")
