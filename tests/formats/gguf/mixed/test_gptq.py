"""Rounding with feedback: integers go where ggml puts them, errors shrink where inputs go together, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("llama_cpp")

from edgekit.formats.gguf import ggml
from edgekit.formats.gguf.mixed.gptq import CODES, _grid, round_rows
from edgekit.formats.gptq import feedback, input_grams, linear_paths
from tests.architectures.decoders import make_decoder

COLUMNS = 512
Floats = NDArray[np.float32]


def matrix(rows: int = 48, columns: int = COLUMNS) -> Floats:
    return np.random.default_rng(0).normal(0, 0.05, (rows, columns)).astype(np.float32)


def gram(columns: int = COLUMNS, shared: int = 64) -> Floats:
    """Of inputs that are mostly mixtures of a few."""
    pick = np.random.default_rng(1)
    inputs = pick.normal(size=(4000, shared)) @ pick.normal(size=(shared, columns)) + pick.normal(size=(4000, columns))
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def loss(told: Floats, rounded: Floats, values: Floats) -> float:
    """The mean square of what the outputs lose."""
    error = (rounded - values).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", error, told.astype(np.float64), error))


@pytest.mark.parametrize("kind", sorted(CODES))
def test_integers_are_put_where_ggml_reads_them(kind: str) -> None:
    """Taken out of what ggml wrote and put back, every block is as it was; every level is met."""
    block, width = ggml.TYPES[kind].block, ggml.TYPES[kind].bytes
    written = ggml.quantize(matrix(), kind).reshape(-1, width)
    values, (base, scale) = ggml.dequantize(written, kind, block), _grid(kind, written)
    codes = np.abs((values - base)[..., None] - scale[..., None] * CODES[kind].levels).argmin(-1).astype(np.uint8)
    assert set(codes.reshape(-1)) >= set(range(1, len(CODES[kind].levels) - 1))
    back = written.copy()
    CODES[kind].put(back, np.zeros_like(codes))
    assert not np.array_equal(back, written)
    CODES[kind].put(back, codes)
    np.testing.assert_array_equal(back, written)


@pytest.mark.parametrize("kind", sorted(CODES))
def test_errors_are_made_up_for(kind: str) -> None:
    values, told = matrix(), gram()
    weights = np.diag(told).copy()
    plain = ggml.dequantize(ggml.quantize(values, kind, weights), kind, COLUMNS)
    rounded = ggml.dequantize(round_rows(values, kind, feedback(told), weights), kind, COLUMNS)
    assert loss(told, rounded, values) < 0.3 * loss(told, plain, values)


@pytest.mark.parametrize("kind", sorted(CODES))
def test_inputs_that_have_nothing_in_common_change_next_to_nothing(kind: str) -> None:
    """Without feedback each value goes to the nearest level of ggml's grid, and ggml's own choice is hardly ever another."""
    values = matrix()
    alone = round_rows(values, kind, feedback(np.eye(COLUMNS, dtype=np.float32)))
    written = ggml.quantize(values, kind)
    assert np.mean(alone != written) < 0.01
    plain, own = (ggml.dequantize(one, kind, COLUMNS) - values for one in (written, alone))
    assert np.square(own).sum() <= (1 + 1e-6) * np.square(plain).sum()


def test_a_width_that_is_no_whole_number_of_groups() -> None:
    values, told = matrix(columns=352), gram(352)
    rounded = ggml.dequantize(round_rows(values, "q4_0", feedback(told)), "q4_0", 352)
    plain = ggml.dequantize(ggml.quantize(values, "q4_0"), "q4_0", 352)
    assert loss(told, rounded, values) < 0.3 * loss(told, plain, values)


def test_rows_do_not_depend_on_each_other() -> None:
    values, told = matrix(), feedback(gram())
    whole = round_rows(values, "q4_k", told)
    # Matrix products of other shapes may differ in the last bit, which seldom decides on a level.
    assert (
        np.mean(np.concatenate([round_rows(values[:7], "q4_k", told), round_rows(values[7:], "q4_k", told)]) != whole)
        < 0.01
    )
    np.testing.assert_array_equal(round_rows(values, "q4_k", told), whole)


def test_inputs_that_are_always_zero() -> None:
    """A channel that no text reaches, and one block of weights that are all zero."""
    values, told = matrix(), gram()
    told[:, 5] = told[5] = 0
    values[:, 256:] = 0
    for kind in CODES:
        rounded = ggml.dequantize(round_rows(values, kind, feedback(told)), kind, COLUMNS)
        assert np.isfinite(rounded).all()
    assert np.isfinite(feedback(np.zeros((64, 64), np.float32))).all()


def test_what_is_told_follows_the_formula() -> None:
    """Against a plain inverse: of the columns left, row j is how the best values follow the error of the first of them."""
    told = feedback(gram(40, 10))
    damped = gram(40, 10).astype(np.float64)
    damped += 0.01 * np.mean(np.diag(damped)) * np.eye(40)
    for at in (0, 7, 38):
        rest = np.linalg.inv(damped[at:, at:])
        np.testing.assert_allclose(told[at, at:], rest[0] / rest[0, 0], rtol=1e-4, atol=1e-6)
        assert not told[at, :at].any()


def test_grams_are_of_what_layers_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against hooks of one's own; also where the model is run once for every layer."""
    import torch

    from edgekit.tasks.decoders import load_decoder

    module = load_decoder(make_decoder("llama", tmp_path / "model"))
    paths = linear_paths(module)
    assert len(paths) == 3 * 7 + 1
    ids = [[1, 5, 7, 9], [3, 8], [2, 4, 6]]
    inputs: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    handles = [
        part.register_forward_pre_hook(lambda _, given, path=path: inputs[path].append(given[0][0].detach()))
        for path, part in module.named_modules()
        if path in inputs
    ]
    for row in ids:
        module(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))
    for handle in handles:
        handle.remove()
    found = dict(input_grams(module, ids, paths))
    assert list(found) == paths
    # Queries, keys and values have one input; so have gate and up.
    assert len({id(gram) for gram in found.values()}) == 3 * 4 + 1
    for path in paths:
        seen = torch.cat(inputs[path]).double()
        np.testing.assert_allclose(found[path], (seen.T @ seen / len(seen)).numpy(), rtol=1e-4, atol=1e-6)
    monkeypatch.setattr("edgekit.formats.gptq.MOST_BYTES", 1)
    for path, again in input_grams(module, ids, paths):
        np.testing.assert_allclose(again, found[path], rtol=1e-6)


def test_no_more_is_computed_than_is_asked_about(tmp_path: Path) -> None:
    import torch

    from edgekit.tasks.decoders import load_decoder

    module = load_decoder(make_decoder("llama", tmp_path / "model"))
    ran: list[int] = []
    for place, layer in enumerate(module.model.model.layers):
        layer.register_forward_hook(lambda *_, place=place: ran.append(place))
    list(input_grams(module, [[1, 2], [3, 4], [5]], ["model.model.layers.1.self_attn.v_proj"]))
    assert ran.count(0) == 4  # once to see what is shared
    assert ran.count(1) == ran.count(2) == 1
    with torch.inference_mode():
        assert module(torch.tensor([[1]]), torch.ones(1, 1)).shape[1] == 1
