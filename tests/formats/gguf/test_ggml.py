"""ggml's conversions called from Python, against NumPy's rounding, gguf-py's formulas, and themselves in pieces."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from edgekit.errors import EdgekitError
from edgekit.formats.gguf import ggml

QUANTIZED = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"]


def rows(count: int, columns: int = 512) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.05, (count, columns)).astype(np.float32)


def test_the_table_is_the_format_of_gguf_py() -> None:
    gguf = pytest.importorskip("gguf")
    for kind, (block, size) in gguf.constants.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # gguf-py counts its two f16 scales as f32
            assert ggml.TYPES[kind.name.lower()] == ggml.GgmlType(kind.value, block, size), kind.name


@pytest.mark.parametrize("kind", QUANTIZED)
def test_rows_are_quantized_one_by_one(kind: str) -> None:
    """Which rows are quantized at once, and in which thread, changes no byte."""
    values = rows(9)
    whole = ggml.quantize(values, kind)
    assert whole.shape == (9, ggml.row_bytes(kind, 512))
    parts: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda at=at: parts.__setitem__(at, ggml.quantize(values[at : at + 2], kind)))
        for at in range(0, 9, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.concatenate([parts[at] for at in sorted(parts)]), whole)
    back = ggml.dequantize(whole, kind, 512)
    assert np.sqrt(np.mean((back - values) ** 2)) < 0.12 * values.std()


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_k", "q6_k", "iq4_nl", "iq4_xs"])
def test_values_come_back_as_gguf_py_reads_them(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    data = ggml.quantize(rows(4), kind)
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.upper()])
    np.testing.assert_allclose(ggml.dequantize(data, kind, 512), theirs, rtol=1e-6, atol=1e-9)


def test_importance_lowers_the_error_where_it_weighs() -> None:
    values, weights = rows(64), np.full(512, 1e-3, np.float32)
    weights[:64] = 1.0
    plain = ggml.dequantize(ggml.quantize(values, "q4_k"), "q4_k", 512)
    weighed = ggml.dequantize(ggml.quantize(values, "q4_k", weights), "q4_k", 512)
    assert ((weighed - values)[:, :64] ** 2).sum() < ((plain - values)[:, :64] ** 2).sum()


def test_short_floats_round_to_nearest_even() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for kind, exact in {
        "f16": every.view(np.float16).astype(np.float32),
        "bf16": (every.astype(np.uint32) << 16).view(np.float32),
    }.items():
        wide = np.empty(every.size, np.float32)
        ggml.to_float(every, kind, wide)
        np.testing.assert_array_equal(wide, exact)
        finite, back = exact[np.isfinite(exact)], np.empty(every.size, np.uint16)
        ggml.from_float(finite, kind, back[: finite.size])
        np.testing.assert_array_equal(back[: finite.size], every[np.isfinite(exact)])
    scattered = rows(64).reshape(-1) * (10.0 ** np.random.default_rng(1).integers(-40, 6, 64 * 512)).astype(np.float32)
    narrow = np.empty(scattered.size, np.uint16)
    ggml.from_float(scattered, "f16", narrow)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(narrow, scattered.astype(np.float16).view(np.uint16))
    ggml.from_float(scattered, "bf16", narrow)
    bits = scattered.view(np.uint32)
    np.testing.assert_array_equal(narrow, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def test_float_types_are_rows_too() -> None:
    values = rows(3, 40)
    np.testing.assert_array_equal(ggml.dequantize(ggml.quantize(values, "f32"), "f32", 40), values)
    np.testing.assert_array_equal(ggml.quantize(values, "f16").view(np.float16), values.astype(np.float16))
    np.testing.assert_array_equal(ggml.dequantize(ggml.quantize(values, "f16"), "f16", 40), values.astype(np.float16))


def test_a_row_that_does_not_fill_its_blocks_is_refused() -> None:
    with pytest.raises(EdgekitError, match="q4_k: rows of 384 values do not fill blocks of 256"):
        ggml.quantize(rows(2, 384), "q4_k")
    assert ggml.row_bytes("q4_0", 384) == 216


def test_a_missing_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    ggml._library.cache_clear()
    try:
        with pytest.raises(EdgekitError, match=r'pip install "edgekit\[gguf\]"'):
            ggml.load()
    finally:
        ggml._library.cache_clear()
