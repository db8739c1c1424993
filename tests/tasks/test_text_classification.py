"""text-classification: the rejection threshold, answers, and what is not a classifier."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.recipe import Rejection
from edgekit.tasks.contentless import ASKED, TAUGHT, untaught
from edgekit.tasks.text_classification import answer, fit, load, score, softmax

CLASSES = ["a", "b"]


def rows(*confidences: float) -> np.ndarray:
    """Logits of two classes whose first class has these probabilities."""
    return np.array([[np.log(p), np.log1p(-p)] for p in confidences], dtype=np.float32)


def test_the_threshold_is_in_the_middle_of_the_gap() -> None:
    outputs = rows(0.95, 0.9, 0.6, 0.55)
    settings = fit(outputs, ["a", "a", "oos", "oos"], CLASSES, "oos")
    assert settings["out_of_scope"] == "oos"
    assert settings["threshold"] == pytest.approx(0.75, abs=1e-6)
    assert answer(outputs, settings, CLASSES) == ["a", "a", "oos", "oos"]


def test_no_threshold_scores_better() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(200, 2)).astype(np.float32)
    labels = [str(rng.choice(["a", "b", "oos"])) for _ in range(200)]
    settings = fit(outputs, labels, CLASSES, "oos")

    def hits(threshold: float) -> int:
        told = answer(outputs, settings | {"threshold": threshold}, CLASSES)
        return sum(said == wanted for said, wanted in zip(told, labels, strict=True))

    best = hits(settings["threshold"])
    assert all(hits(threshold) <= best for threshold in np.linspace(0, 1, 400))


def test_unlabelled_rows_and_the_order_of_rows_change_nothing() -> None:
    outputs, labels = rows(0.95, 0.9, 0.6, 0.7), ["a", "a", "oos", None]
    wanted = fit(outputs[:3], labels[:3], CLASSES, "oos")
    assert fit(outputs, labels, CLASSES, "oos") == wanted
    assert fit(outputs[::-1], labels[::-1], CLASSES, "oos") == wanted


def test_the_threshold_is_fitted_for_the_mix_in_use() -> None:
    # Of 20 texts in scope half are at .6, where 1 of 2 texts of no class lies, too: rejecting there costs 10 and gains 1.
    outputs = rows(*[0.95] * 10, *[0.6] * 10, 0.6, 0.5)
    labels = ["a"] * 20 + ["oos"] * 2
    assert fit(outputs, labels, CLASSES, "oos")["threshold"] == pytest.approx(0.55, abs=1e-6)
    # Where nine of ten texts are of no class, it gains .45 and costs .05.
    told = fit(outputs, labels, CLASSES, "oos", Rejection(share=0.9))
    assert told["threshold"] == pytest.approx(0.775, abs=1e-6)
    assert fit(outputs, labels, CLASSES, "oos", Rejection(share=2 / 22)) == fit(outputs, labels, CLASSES, "oos")


def test_at_least_the_wanted_share_is_rejected() -> None:
    outputs, labels = rows(*[0.95] * 10, *[0.6] * 10, 0.6, 0.5), ["a"] * 20 + ["oos"] * 2
    assert fit(outputs, labels, CLASSES, "oos", Rejection(recall=0.5))["threshold"] == pytest.approx(0.55, abs=1e-6)
    assert fit(outputs, labels, CLASSES, "oos", Rejection(recall=0.51))["threshold"] == pytest.approx(0.775, abs=1e-6)


def test_what_says_nothing_has_no_class() -> None:
    texts = ["", "...", "\U0001f600", "?!", "yes", "7", "ja"]
    settings = {"threshold": 0.4, "out_of_scope": "oos"}
    assert answer(rows(*[0.99] * 7), settings, CLASSES, texts) == ["oos"] * 4 + ["a"] * 3
    assert answer(rows(*[0.99] * 7), {}, CLASSES, texts) == ["a"] * 7


def test_no_text_that_says_nothing_is_taught_and_asked() -> None:
    assert not {text.casefold() for text in TAUGHT} & {text.casefold() for text in ASKED}
    assert "oh" not in untaught(["Oh ", "on"])
    assert len(untaught(["Oh "])) == len(set(TAUGHT)) - 1


def test_without_an_out_of_scope_label_nothing_is_rejected() -> None:
    assert fit(rows(0.9), ["a"], CLASSES, None) == {}
    assert fit(rows(0.9), [None], CLASSES, "oos") == {}
    assert answer(rows(0.51, 0.2), {}, CLASSES) == ["a", "b"]


def test_softmax_stands_large_logits() -> None:
    np.testing.assert_allclose(
        softmax(np.array([[1e4, 1e4 - 1]], dtype=np.float32)), [[0.7310586, 0.26894143]], atol=1e-6
    )


def test_a_shift_of_all_logits_does_not_change_the_score() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    assert score(logits, logits + 3) == pytest.approx(1.0, abs=1e-6)
    assert score(logits, logits[:, ::-1].copy()) < 0.9


@pytest.mark.parametrize("change", [{"problem_type": "multi_label_classification"}])
def test_several_labels_per_text_are_refused(classifier: Path, change: dict[str, str]) -> None:
    path = classifier / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(EdgekitError, match=r"config\.json: not a single-label classifier"):
        load(classifier)


def test_weights_that_do_not_fit_the_config_are_refused(classifier: Path) -> None:
    path = classifier / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"intermediate_size": 65}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(EdgekitError, match=r"the weights do not fit config\.json"):
        load(classifier)
