"""Comparisons: flips both ways, out-of-scope, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from edgekit import gate
from edgekit.errors import EdgekitError
from edgekit.evidence import Check, Comparison, Confusion
from edgekit.verify import checks, plan_text
from edgekit.verify.accuracy import Answers, auroc, compare_embeddings, compare_labels, confusion, scope
from edgekit.verify.margins import EmbeddingMargins, Margins, for_prompts, read_embedding_margins, read_margins

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
        Confusion(label="a", answer="b", gained=1, lost=0),
        Confusion(label="b", answer="a", gained=1, lost=0),
        Confusion(label="b", answer="c", gained=0, lost=2),
    ]


def test_prompts_without_labels_are_compared_by_agreement() -> None:
    found = compare_labels(
        answers("s", ["a"] * 9 + ["b"]), answers("a", ["a"] * 10), [None] * 10, margin=0.01, alpha=0.05
    )
    assert (found.metric, found.loss, found.score) == ("agreement", 0.1, None)
    assert found.flips == {"changed": 1}


def test_without_labels_the_loss_is_at_most_the_disagreement() -> None:
    """2 of 1,000 answers differ: that proves one point. Many that differ prove no loss either: they may have become right."""
    student = ["a", "b"] * 500
    near, far = [*(["b", "b"] * 2), *student[4:]], ["a"] * 1000
    found = compare_labels(answers("s", student), answers("a", near), [None] * 1000, margin=0.01, alpha=0.05)
    assert (found.loss, found.verdict) == (0.002, "pass")
    assert found.bound == pytest.approx(stats.beta.isf(0.05, 3, 998))
    assert found.lo == -found.bound
    lost = compare_labels(answers("s", student), answers("a", far), [None] * 1000, margin=0.01, alpha=0.05)
    assert (lost.loss, lost.verdict) == (0.5, "not proven")
    # With labels on fewer than half of the prompts both bounds are made, and the lower counts.
    some = [*student[:100], *[None] * 900]
    both = compare_labels(answers("s", student), answers("a", near), some, margin=0.01, alpha=0.05)
    assert (both.metric, both.prompts, both.verdict) == ("accuracy", 100, "pass")
    assert both.bound == pytest.approx(stats.beta.isf(0.025, 3, 998))
    most = [*student[:600], *[None] * 400]
    assert compare_labels(answers("s", student), answers("a", near), most, margin=0.01, alpha=0.05).bound > both.bound


def test_a_reference_that_knows_nothing_proves_nothing() -> None:
    """0 % right before and after, or as often right as the most frequent label, is no loss, and no proof either."""
    truth = ["a", "b"] * 200

    def judged(labels: list[str], known: Sequence[str | None] = truth) -> Comparison:
        return compare_labels(answers("t", labels), answers("a", labels), known, margin=0.02, alpha=0.05)

    assert judged(truth).verdict == "pass"
    for labels in (["c"] * 400, ["a"] * 400, ["b", "a"] * 200, ["a", "b", "b", "a"] * 100):
        found = judged(labels)
        assert (found.loss, found.verdict) == (0.0, "not proven")
        assert found.reason is not None
        assert "proves nothing" in found.reason
    # Without labels: one answer to every prompt would be kept by a model that always gives it.
    assert judged(["a"] * 396 + ["b"] * 4, [None] * 400).verdict == "not proven"
    assert judged(["a"] * 300 + ["b"] * 100, [None] * 400).verdict == "pass"


def test_prompts_of_a_group_are_one_observation() -> None:
    """20 of 1,000 answers lost, one each of 20 groups of five, or all of four groups: the second proves less."""
    truth = ["a", "b"] * 500
    groups = [str(row // 5) for row in range(1000)]

    def bound(lost: list[int], groups: Sequence[str | None]) -> float:
        labels = ["c" if row in lost else label for row, label in enumerate(truth)]
        return compare_labels(
            answers("s", truth), answers("a", labels), truth, margin=0.05, alpha=0.05, groups=groups
        ).bound

    apart, together = [50 * k for k in range(20)], [50 * (k // 5) + k % 5 for k in range(20)]
    alone = bound(apart, [None] * 1000)
    assert bound(together, [None] * 1000) == alone
    assert alone < bound(apart, groups) < bound(together, groups)
    assert bound(together, groups) - 0.02 > 1.8 * (alone - 0.02)


def test_margins_are_what_the_prompts_can_prove() -> None:
    assert for_prompts(Margins(), 300) == Margins(student_margin=0.02, teacher_margin=0.06)
    assert for_prompts(Margins(), 500) == Margins(student_margin=0.01, teacher_margin=0.03)
    assert for_prompts(Margins(student_margin=0.005, at_least=0.9), 300) == Margins(
        student_margin=0.005, teacher_margin=0.06, at_least=0.9
    )
    assert "by default, for fewer than 500 prompts" in "\n".join(plan_text("text-classification", 300, {}))


def test_the_floor_of_accuracy_has_an_exact_bound() -> None:
    def floor(right: int, n: int) -> Check:
        (found,) = checks.check_floor([row < right for row in range(n)], [None] * n, 0.9, 0.05, 1)
        return found

    assert floor(100, 100).verdict == "pass"
    assert floor(100, 100).bound == pytest.approx(0.05 ** (1 / 100))
    assert (floor(92, 100).verdict, floor(80, 100).verdict) == ("not proven", "fail")
    assert "no verify prompt has a label" in str(floor(0, 0).remedy)
    assert floor(0, 0).verdict == "not proven"
    assert checks.check_floor([True], [None], None, 0.05, 1) == []


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
    student, artifact = (
        Answers(name=name, outputs=one, labels=[]) for name, one in (("student", rows), ("artifact", moved))
    )
    close, cosine, neighbours = compare_embeddings(student, artifact, EmbeddingMargins(), alpha=0.05)
    assert (close.metric, close.verdict, close.score, close.loss) == ("close", "pass", 1.0, 0.0)
    assert close.bound == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert (cosine.metric, cosine.verdict) == ("cosine", None)
    assert cosine.lo <= cosine.loss <= cosine.bound <= 0.01
    assert (neighbours.metric, neighbours.verdict) == ("neighbours", "pass")
    assert neighbours.flips["changed"] == round(1000 * neighbours.loss)
    asked = EmbeddingMargins(cosine_margin=0.01)
    assert compare_embeddings(student, artifact, asked, alpha=0.05)[1].verdict == "pass"


@pytest.mark.parametrize(("prompts", "far", "verdict"), [(58, 0, "not proven"), (59, 0, "pass"), (59, 1, "not proven")])
def test_59_embeddings_that_stay_close_prove_five_percent(prompts: int, far: int, verdict: str) -> None:
    rows = NUMBERS.normal(size=(prompts, 16)).astype(np.float32)
    moved = rows * np.where(np.arange(prompts) < far, -1.0, 1.0)[:, None].astype(np.float32)
    found = compare_embeddings(
        Answers(name="student", outputs=rows, labels=[]),
        Answers(name="artifact", outputs=moved, labels=[]),
        EmbeddingMargins(),
        alpha=0.05,
    )[0]
    assert (found.flips, found.verdict) == ({"changed": far}, verdict)


def test_embeddings_that_are_damaged_fail() -> None:
    rows = NUMBERS.normal(size=(400, 16)).astype(np.float32)
    noise = Answers(name="artifact", outputs=NUMBERS.normal(size=rows.shape).astype(np.float32), labels=[])
    asked = EmbeddingMargins(cosine_margin=0.01)
    found = compare_embeddings(Answers(name="student", outputs=rows, labels=[]), noise, asked, alpha=0.05)
    assert [entry.verdict for entry in found] == ["fail"] * 3
    assert found[1].lo > 0.5


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
    with pytest.raises(EdgekitError, match="at_least: unknown key"):
        read_embedding_margins({"at_least": 0.9})


def test_plan_says_what_the_prompts_can_prove() -> None:
    lines = "\n".join(plan_text("text-classification", 1000, {}))
    assert "0.30 points" in lines
    for share in ("1% flips", "3% flips", "10% flips"):
        assert share in lines
    assert "cannot prove" not in lines
    few = "\n".join(plan_text("text-classification", 100, {}, look=gate.Look(index=2, alpha=0.025)))
    assert "look 2" in few
    assert "cannot prove 2.00 points; at least 183 are needed" in few
    assert "asked: 5.00 points (1 - cosine above 0.02)" in "\n".join(plan_text("feature-extraction", 1000, {}))
    assert "at least 0.0060 stays" in "\n".join(plan_text("feature-extraction", 1000, {"cosine_margin": 0.01}))
