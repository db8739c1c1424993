"""Bytes of ggml's types as codes and scales: gguf-py reads in them what these stand for."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from edgekit.formats.gguf import ggml
from edgekit.formats.gguf.levels import LAYOUTS, Floats
from edgekit.grid import Coded

ROWS, COLUMNS = 12, 512


def values_of(coded: Coded) -> Floats:
    values = coded.codes * coded.scales[..., None]
    return (values if coded.least is None else values - coded.least[..., None]).reshape(len(values), -1)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_codes_and_scales_are_what_a_reader_finds(kind: str) -> None:
    """Of what ggml writes, with and without importance, and of codes and scales of our own."""
    random, layout = np.random.default_rng(0), LAYOUTS[kind]
    rows = (random.standard_normal((ROWS, COLUMNS)) * 0.03).astype(np.float32)
    rows[3] = 0
    type_ = GGMLQuantizationType[kind.upper()]
    for importance in (None, random.random(COLUMNS).astype(np.float32)):
        data = ggml.quantize(rows, kind, importance)
        coded = layout.split(data, COLUMNS)
        np.testing.assert_array_equal(values_of(coded), dequantize(data, type_))
        assert (layout.low, layout.high) == (coded.codes.min(), coded.codes.max()) or kind.endswith("_k")
        # What ggml chose by itself is what a file can hold.
        assert importance is not None or np.array_equal(layout.hold(coded.scales), coded.scales)
    shape = coded.scales.shape
    scales = layout.hold((coded.scales * random.uniform(0.7, 1.3, shape)).astype(np.float32))
    least = None
    if coded.least is not None:
        least = layout.hold((coded.least * random.uniform(0.7, 1.3, shape)).astype(np.float32))
        np.testing.assert_array_equal(layout.hold(least), least)
    np.testing.assert_array_equal(layout.hold(scales), scales)
    codes = random.integers(layout.low, layout.high + 1, coded.codes.shape).astype(np.float32)
    own = Coded(codes=codes, scales=scales, least=least)
    np.testing.assert_array_equal(values_of(own), dequantize(layout.join(own), type_))


@pytest.mark.parametrize(("kind", "share"), [("q4_0", 2**-11), ("q4_k", 0.5 / 63), ("q6_k", 0.5 / 127)])
def test_scales_are_held_as_nearly_as_the_type_can(kind: str, share: float) -> None:
    """f16 in blocks of 32; 6 and 8 bits of the largest in super-blocks."""
    scales = np.random.default_rng(1).uniform(0.01, 0.02, (ROWS, 32)).astype(np.float32)
    held = LAYOUTS[kind].hold(scales)
    assert 0 < np.abs(held - scales).max() <= 1.1 * share * 0.02
