"""Comparisons: flips both ways, out-of-scope, embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.verify import Margins, plan_text, read_margins
from edgekit.verify.accuracy import Answers, auroc, compare_embeddings, compare_labels, confusion, scope
from edgekit.verify.gate import Look

NUMBERS = np.random.default_rng(0)


def answers(name: str, labels: list[str]) -> Answers:
    return Answers(
        name=name, outputs=np.eye(3, dtype=np.float32)[[ord(label[0]) % 3 for label in labels]], labels=labels
    )


def test_flips_both_ways() -> None:
    truth: list[str | None] = ["a"] * 6 + ["b"] * 4
    before = answers("student", ["a"] * 6 + ["b", "b", "c", "c"])
    after = answers("artifact", ["a"] * 5 + ["b"] + ["b", "a", "b", "b"])
    found = compare_labels(before, after, truth, margin=0.01, alpha=0.05)
    assert found.flips == {"lost": 2, "gained": 2}
    assert found.loss == 0.0
    assert found.score == found.reference_score == pytest.approx(0.8)
    assert found.agreement == pytest.approx(0.6)
    assert found.divergence["mean_kl"] > 0
    assert found.verdict == "not proven"
    assert found.prompts_needed is not None
    assert confusion(before, after, truth) == [
        {"from": "a", "to": "b", "gained": 1, "lost": 0},
        {"from": "b", "to": "a", "gained": 1, "lost": 0},
        {"from": "b", "to": "c", "gained": 0, "lost": 2},
    ]


def test_prompts_without_labels_are_compared_by_agreement() -> None:
    found = compare_labels(
        answers("s", ["a"] * 9 + ["b"]), answers("a", ["a"] * 10), [None] * 10, margin=0.01, alpha=0.05
    )
    assert (found.metric, found.loss, found.score) == ("agreement", 0.1, None)
    assert found.flips == {"lost": 1, "gained": 0}


def test_a_comparison_without_margin_is_not_judged() -> None:
    found = compare_labels(answers("t", ["a"]), answers("s", ["a"]), ["a"], margin=None, alpha=0.05)
    assert found.verdict is None
    assert found.prompts_needed is None


def test_rejection_is_a_class_of_its_own() -> None:
    outputs = np.array([[5, 0], [5, 0], [0.2, 0], [5, 0]], dtype=np.float32)
    told = Answers(name="artifact", outputs=outputs, labels=["a", "a", "out", "a"])
    found = scope(told, ["a", "b", "out", "out"], "out")
    assert found == {"in_scope_accuracy": 0.5, "out_of_scope_recall": 0.5, "auroc": pytest.approx(0.75)}
    assert scope(told, ["a", "b", "a", "a"], "out") == {}
    assert scope(told, ["a", "b", "a", "a"], None) == {}


def test_auroc_counts_ties_half() -> None:
    a, b = NUMBERS.integers(0, 5, 40).astype(float), NUMBERS.integers(0, 4, 30).astype(float)
    expected = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert auroc(a, b) == pytest.approx(expected)


def test_embeddings_that_barely_move_pass() -> None:
    rows = NUMBERS.normal(size=(1000, 16)).astype(np.float32)
    moved = rows + 0.02 * NUMBERS.normal(size=rows.shape).astype(np.float32)
    cosine, neighbours = compare_embeddings(
        Answers(name="student", outputs=rows, labels=[]),
        Answers(name="artifact", outputs=moved, labels=[]),
        Margins(),
        alpha=0.05,
    )
    assert (cosine.metric, cosine.verdict) == ("cosine", "pass")
    assert cosine.lo <= cosine.loss <= cosine.bound <= 0.01
    assert (neighbours.metric, neighbours.verdict) == ("neighbours", "pass")
    assert neighbours.flips["changed"] == round(1000 * neighbours.loss)


def test_embeddings_that_are_damaged_fail() -> None:
    rows = NUMBERS.normal(size=(400, 16)).astype(np.float32)
    noise = Answers(name="artifact", outputs=NUMBERS.normal(size=rows.shape).astype(np.float32), labels=[])
    found = compare_embeddings(Answers(name="student", outputs=rows, labels=[]), noise, Margins(), alpha=0.05)
    assert [entry.verdict for entry in found] == ["fail", "fail"]
    assert found[0].lo > 0.5


def test_a_teacher_of_another_width_has_neighbours_only() -> None:
    wide = Answers(name="teacher", outputs=NUMBERS.normal(size=(20, 32)).astype(np.float32), labels=[])
    slim = Answers(name="artifact", outputs=wide.outputs[:, :16], labels=[])
    (found,) = compare_embeddings(wide, slim, None, alpha=0.05)
    assert (found.metric, found.verdict) == ("neighbours", None)


def test_margins_are_checked() -> None:
    assert read_margins({"student_margin": 0.02}) == Margins(student_margin=0.02)
    with pytest.raises(EdgekitError, match=r"student_margn: unknown key \(did you mean student_margin"):
        read_margins({"student_margn": 0.02})
    with pytest.raises(EdgekitError, match="between 0 and 1"):
        read_margins({"teacher_margin": 3})


def test_plan_says_what_the_prompts_can_prove() -> None:
    lines = "\n".join(plan_text("text-classification", 1000, {}))
    assert "0.30 points" in lines
    for share in ("1% flips", "3% flips", "10% flips"):
        assert share in lines
    assert "cannot prove" not in lines
    few = "\n".join(plan_text("text-classification", 100, {}, look=Look(index=2, alpha=0.025)))
    assert "look 2" in few
    assert "cannot prove 1.00 points; at least 368 are needed" in few
    assert "cosine loss: at least 0.0060" in "\n".join(plan_text("feature-extraction", 1000, {}))
