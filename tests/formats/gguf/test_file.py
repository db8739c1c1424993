"""GGUF files: written and read back, read by gguf-py, written by gguf-py, and every way in which one can be damaged."""

from __future__ import annotations

import hashlib
import resource
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.formats.gguf.file import GgufWriter, TensorHeader, read_gguf, read_tensor

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.small": 7,
    "a.negative": -7,
    "a.large": 1 << 40,
    "a.half": 0.5,
    "a.yes": True,
    "a.exact": np.int32(3),
    "a.double": np.float64(0.1),
    "a.empty": "",
    "b.texts": ["", "é", "\udcff bytes that are no UTF-8"],
    "b.numbers": [1, -2, 3],
    "b.shares": [0.5, 0.25],
    "b.flags": [True, False],
    "b.types": np.array([1, 3], np.int8),
    "b.scores": np.array([0.5, -1.0], np.float32),
}
TENSORS = [
    TensorHeader(name="token_embd.weight", type="f32", shape=(3, 5)),
    TensorHeader(name="blk.0.attn_q.weight", type="q8_0", shape=(2, 64)),
    TensorHeader(name="output_norm.weight", type="f32", shape=(5,)),
]


def write(path: Path, metadata: dict[str, Any] | None = None) -> tuple[Path, tuple[int, str]]:
    rng = np.random.default_rng(0)
    with GgufWriter(path, METADATA if metadata is None else metadata, TENSORS) as file:
        for tensor in TENSORS:
            data = rng.integers(0, 255, tensor.bytes, np.uint8).tobytes()
            file.append(data[:7])
            file.append(data[7:])
        return path, file.finish()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, (size, digest) = write(tmp_path / "model.gguf")
    assert size == path.stat().st_size
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    file = read_gguf(path)
    assert list(file.metadata) == sorted(METADATA)
    for key, value in METADATA.items():
        found = file.metadata[key]
        if isinstance(found, np.ndarray):
            np.testing.assert_array_equal(found, value)
        else:
            assert found == value, key
    assert file.metadata["b.types"].dtype == np.int8
    assert file.data_offset % 32 == 0
    rng = np.random.default_rng(0)
    for tensor in TENSORS:
        place = file.tensors[tensor.name]
        assert (place.type, place.shape, place.bytes) == (tensor.type, tensor.shape, tensor.bytes)
        assert place.offset % 32 == 0
        assert read_tensor(file, tensor.name).tobytes() == rng.integers(0, 255, tensor.bytes, np.uint8).tobytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.gguf"]


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    _, first = write(tmp_path / "a.gguf")
    _, second = write(tmp_path / "b.gguf", dict(reversed(METADATA.items())))
    assert first == second


def test_gguf_py_reads_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path, _ = write(tmp_path / "model.gguf", {key: value for key, value in METADATA.items() if key != "b.texts"})
    reader, ours = gguf.GGUFReader(path), read_gguf(path)
    for key, value in ours.metadata.items():
        theirs = reader.fields[key].contents()
        assert (theirs == value.tolist()) if isinstance(value, np.ndarray) else (theirs == value), key
    assert {tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors} == {
        name: tuple(reversed(place.shape)) for name, place in ours.tensors.items()
    }
    for tensor in reader.tensors:
        assert tensor.data.tobytes() == read_tensor(ours, tensor.name).tobytes()


def test_what_gguf_py_writes_is_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "theirs.gguf"), "llama")
    writer.add_token_list(["a", "b"])
    writer.add_custom_alignment(64)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("x.weight", values)
    writer.add_tensor("y.weight", values[:1].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "theirs.gguf")
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    np.testing.assert_array_equal(read_tensor(file, "x.weight").view(np.float32), values)
    assert file.tensors["y.weight"].type == "f16"


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = write(tmp_path / "model.gguf")[0].read_bytes()
    cut = tmp_path / "cut.gguf"
    rng = np.random.default_rng(0)
    for length in [0, 1, 4, len(whole) - 33, *rng.integers(0, len(whole) - 32, 200)]:
        cut.write_bytes(whole[: int(length)])
        with pytest.raises(EdgekitError, match=r"cut\.gguf: (damaged|not a) GGUF file"):
            read_gguf(cut)


def test_lying_numbers_never_crash_nor_fill_the_memory(tmp_path: Path) -> None:
    """Every byte of the header changed, and runs of 8 of them made huge: an answer or an EdgekitError, within 4 MB."""
    path, _ = write(tmp_path / "model.gguf")
    whole, header = path.read_bytes(), read_gguf(path).data_offset
    rng = np.random.default_rng(0)
    lies = [(at, bytes([whole[at] ^ int(rng.integers(1, 256))])) for at in range(header)]
    lies += [
        (at, struct.pack("<Q", value)) for at in range(4, header - 8, 3) for value in (1 << 31, 1 << 62, (1 << 64) - 1)
    ]
    refused = 0
    tracemalloc.start()
    for at, lie in lies:
        path.write_bytes(whole[:at] + lie + whole[at + len(lie) :])
        try:
            read_gguf(path)
        except EdgekitError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > len(lies) / 3
    assert peak < 4 << 20, peak


def test_counts_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "lie.gguf"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    key = struct.pack("<Q", 1) + b"k"
    for body in (
        struct.pack("<IQQ", 3, 0, 1 << 40),
        struct.pack("<IQQ", 3, 1 << 60, 0),
        struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 8, 1 << 36),
        struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 4, 1 << 36),
        struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 9, 1),
        struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IQ", 8, 1 << 36),
        struct.pack("<IQQ", 3, 1, 0) + key + struct.pack("<IqqIQ", 2, 1 << 40, 1 << 40, 0, 0),
        struct.pack("<IQQ", 3, 1, 0) + key + struct.pack("<IqIQ", 1, -32, 0, 0),
        struct.pack("<IQQ", 3, 1, 0) + key + struct.pack("<I", 1 << 30),
        struct.pack(">IQQ", 3, 0, 0),
    ):
        path.write_bytes(b"GGUF" + body + bytes(64))
        with pytest.raises(EdgekitError, match=r"lie\.gguf: damaged GGUF file: "):
            read_gguf(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(EdgekitError, match="cannot be read: No such file"):
        read_gguf(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(EdgekitError, match="not a GGUF file"):
        read_gguf(path)


def test_a_writer_that_does_not_finish_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"an older one")
    with GgufWriter(path, METADATA, TENSORS) as file:
        file.append(bytes(8))
    assert [one.name for one in tmp_path.iterdir()] == ["model.gguf"]
    assert path.read_bytes() == b"an older one"


def test_a_disk_that_does_not_hold_the_header(tmp_path: Path) -> None:
    """A vocabulary takes megabytes: what is left of them is deleted, and the file handle closed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with (
            pytest.raises(EdgekitError, match=r"model\.gguf\.partial"),
            GgufWriter(tmp_path / "model.gguf", METADATA, TENSORS),
        ):
            pytest.fail("the header fits")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": [1, "x"]}, "a: an array of no values or of values of several types"),
        ({"a": 1 << 70}, "fits in no integer"),
        ({"a": np.zeros(2, np.complex64)}, "the format has no complex64"),
        ({"general.alignment": 64}, "general.alignment: edgekit writes 32 only"),
    ],
)
def test_what_the_format_cannot_hold(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=message):
        GgufWriter(tmp_path / "model.gguf", metadata, TENSORS)
    with pytest.raises(EdgekitError, match="longer than 63 bytes"):
        GgufWriter(tmp_path / "model.gguf", {}, [TensorHeader(name="x" * 64, type="f32", shape=(1,))])
