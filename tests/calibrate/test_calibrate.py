"""calibrate: statistics against plain NumPy, batches that do not matter, coverage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.calibrate import (
    BINS,
    FILE,
    Watch,
    _Running,
    choose,
    cover,
    coverage,
    load_calibration,
    outside_ranges,
)
from edgekit.errors import EdgekitError
from edgekit.modalities.text import of_tokens
from edgekit.model import load_model
from edgekit.prompts import Prompt, PromptSet
from edgekit.tasks import TASKS
from edgekit.workspace import write_product
from tests.conftest import make_data
from tests.steps import calibrate

OPTIONS = {"task": "text-classification", "max_length": 32}
LAYER = "model.bert.encoder.layer.1.intermediate.dense"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


def test_statistics_are_those_of_all_real_tokens(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    facts = calibrate(checkpoint, prompts, out=tmp_path, **OPTIONS)
    stats = load_calibration(tmp_path).stats[f"{LAYER}#0"]
    module = TASKS["text-classification"].load(checkpoint)
    seen: list[np.ndarray] = []
    module.get_submodule(LAYER).register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0][0].numpy()))
    ids = load_model(checkpoint).encode([prompt.text for prompt in PromptSet(folder=prompts).split("calibrate")], 32)
    with torch.inference_mode():
        for row in ids:
            module(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64))
    rows = np.concatenate(seen)
    assert stats.count == len(rows) == facts["tokens"]
    np.testing.assert_allclose(stats.minimum, rows.min(0), atol=1e-5)
    np.testing.assert_allclose(stats.maximum, rows.max(0), atol=1e-5)
    np.testing.assert_allclose(stats.mean_square, (rows.astype(np.float64) ** 2).mean(0), atol=1e-5)
    assert stats.histogram.sum() == rows.size
    low, high = stats.histogram_edges
    assert low == -high
    assert np.log2(high) == round(np.log2(high))
    assert high / 2 <= np.abs(rows).max() < high
    counted, _ = np.histogram(rows, bins=BINS, range=(low, high))
    assert np.abs(counted - stats.histogram).sum() <= 0.01 * rows.size
    assert stats.minimum.dtype == stats.maximum.dtype == stats.mean_square.dtype == np.float32


def test_pooled_tensors_have_one_row_per_text(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    calibrate(checkpoint, prompts, out=tmp_path, **OPTIONS)
    assert load_calibration(tmp_path).stats["model.classifier#0"].count == 6


def test_padded_and_unpadded_batches_give_the_same_statistics(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    found = []
    for batch in (1, 6):
        out = tmp_path / str(batch)
        out.mkdir()
        calibrate(checkpoint, prompts, out=out, batch=batch, **OPTIONS)
        found.append(load_calibration(out).stats)
    assert sorted(found[0]) == sorted(found[1])
    for key in found[0]:
        a, b = found[0][key], found[1][key]
        assert a.count == b.count, key
        np.testing.assert_array_equal(a.histogram_edges, b.histogram_edges)
        assert np.abs(a.histogram - b.histogram).sum() <= 0.002 * a.histogram.sum() + 4
        for name in ("minimum", "maximum", "mean_square"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-5, err_msg=f"{key} {name}")


def test_a_histogram_that_had_to_grow_is_the_one_of_the_whole() -> None:
    """A doubled range merges bins by pairs; power-of-two edges put every value where a single pass would."""
    rows = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.001, 40, 3000)[:, None]
    layer = torch.nn.Linear(4, 2)

    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layer(rows[input_ids[:, 0]])

    found = []
    for batch in (7, 3000):
        watch = Watch(One())
        watch.feed(of_tokens([[row] for row in range(3000)], 0), batch)
        found.append(watch.stats()["layer#0"])
    np.testing.assert_array_equal(found[0].histogram, found[1].histogram)
    np.testing.assert_array_equal(found[0].histogram_edges, found[1].histogram_edges)


@pytest.mark.parametrize("small", [0.0, 1e-45, 1e-30, -1e-30])
def test_zeros_are_counted_where_they_are(small: float) -> None:
    """Inputs of nothing but zeros have a histogram, and stay in its middle when others come."""
    running = _Running(4, "layer#0")
    first, later = torch.full((3, 4), small), torch.linspace(-3, 3, 8).reshape(2, 4)
    running.add(first)
    frozen = running.freeze()
    assert frozen.histogram.sum() == 12
    assert np.isfinite(frozen.histogram_edges).all()
    assert (frozen.histogram_edges != 0).all()
    running.add(later)
    whole = _Running(4, "layer#0")
    whole.add(torch.cat([first, later]))
    np.testing.assert_array_equal(running.freeze().histogram, whole.freeze().histogram)
    assert running.freeze().histogram[BINS // 2 - (small < 0)] == 12


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_inputs_that_are_no_numbers_name_the_layer(bad: float) -> None:
    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.tensor([[1.0, bad]]).expand(len(input_ids), 2))

    with pytest.raises(EdgekitError, match=r"^layer#0: this layer's input reaches .*; .* fetch or train it again"):
        Watch(One()).feed(of_tokens([[0]], 0), 1)


def test_a_layer_that_is_called_twice_has_two_keys() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(torch.nn.functional.one_hot(input_ids, 3).float()))

    watch = Watch(Twice())
    watch.feed(of_tokens([[0, 1], [2]], 0), 2)
    stats = watch.stats()
    assert sorted(stats) == ["layer#0", "layer#1"]
    assert stats["layer#0"].count == stats["layer#1"].count == 3
    assert not Twice().layer._forward_pre_hooks


def test_the_same_input_gives_the_same_bytes_whatever_the_file_order(
    checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    path = prompts / "calibrate.jsonl"
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        facts = calibrate(checkpoint, prompts, out=tmp_path / name, **OPTIONS)
        written.append(((tmp_path / name / FILE).read_bytes(), json.dumps(facts)))
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(reversed(lines)), encoding="utf-8")
    assert written[0] == written[1]


def test_a_limit_takes_a_sample_and_not_the_top() -> None:
    sorted_by_class = [Prompt(text=f"text {row}", label=str(row // 100)) for row in range(1000)]
    chosen = choose(sorted_by_class, 100, seed=0)
    assert len({prompt.label for prompt in chosen}) >= 9
    assert chosen != choose(sorted_by_class, 100, seed=1)
    assert choose(sorted_by_class[::-1], 100, seed=0) == chosen
    assert len(choose(sorted_by_class, 0, seed=0)) == 1000


def test_cover_counts_what_was_calibrated(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    """A limit leaves prompts out of the calibration, and so out of what it is said to cover."""
    found = {}
    for limit in (0, 2):
        out = tmp_path / str(limit)
        out.mkdir()
        facts = calibrate(checkpoint, prompts, out=out, limit=limit, seed=3, **OPTIONS)
        write_product(out, "calibrate", key="test", inputs={}, facts=facts)
        found[limit] = cover(checkpoint, out, prompts, **OPTIONS)
    assert [found[limit].seen for limit in (0, 2)] == [6, 2]
    assert found[2].vocabulary.words < found[0].vocabulary.words
    kept = choose(PromptSet(folder=prompts).split("calibrate"), 2, 3)
    assert found[2].labels.seen == len({prompt.label for prompt in kept})


def test_coverage_warns_with_a_remedy() -> None:
    seen = [Prompt(text=f"play jazz {row}", label="music") for row in range(8)]
    held = [Prompt(text="entirely different words", label="lamp"), Prompt(text="play jazz", label="music")]
    report, warnings = coverage(seen, held, [4] * 8, [9, 3], max_length=9)
    assert report.vocabulary.new_share == pytest.approx(3 / 5)
    assert report.length.longer_share == 0.5
    assert report.labels.unseen == ("lamp",)
    assert report.truncated == 1
    assert len(warnings) == 4
    assert all(word in " ".join(warnings) for word in ("varied", "longer", "'lamp'", "max_length = 9"))
    assert coverage(seen, seen, [4] * 8, [4] * 8, max_length=9)[1] == []


def test_activations_outside_the_ranges_are_counted(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    facts = calibrate(checkpoint, prompts, out=tmp_path, **OPTIONS)
    assert all(0 < share <= 1 for share in facts["coverage"]["outside_ranges"].values())
    calibration, module = load_calibration(tmp_path), TASKS["text-classification"].load(checkpoint)
    model = load_model(checkpoint)
    texts = [prompt.text for prompt in PromptSet(folder=prompts).split("calibrate")]
    own = outside_ranges(module, of_tokens(model.encode(texts, 32), 0), calibration, batch=1)
    assert sorted(own) == sorted(calibration.stats)
    # A batch of another size rounds otherwise: of 6 texts' 32 channels at most one value lies beyond the largest.
    assert max(own.values()) <= 1 / (6 * 32)
    other = outside_ranges(module, of_tokens([[4, 4, 4, 4, 4]], 0), calibration)
    assert max(other.values()) > 0.01


def test_no_prompts_and_no_calibration_are_errors(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match="the calibrate split is empty"):
        calibrate(checkpoint, tmp_path, out=tmp_path, **OPTIONS)
    with pytest.raises(EdgekitError, match=r"no calibration\.npz"):
        load_calibration(tmp_path)
