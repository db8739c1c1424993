"""The benchmark of one step's loss: its ways are one loss each, and its goals judge what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kd_step import GOALS, WARM, WAYS, Step, Taken, edgekit, judge, measure, stray


def test_the_ways_are_one_loss() -> None:
    """Of edgekit's and torch's KL, measured; of Jensen-Shannon by the formula, which is what TRL's computes."""
    mine, plain = (measure(way, 16, repeats=1, vocabulary=700) for way in ("edgekit_kl", "plain_kl"))
    assert mine.loss == pytest.approx(plain.loss, rel=1e-5)
    assert mine.gradient == pytest.approx(plain.gradient, rel=1e-5)
    assert min(mine.seconds, plain.seconds) >= 0
    torch.manual_seed(0)
    step = Step(
        states=torch.randn(9, 4, requires_grad=True),
        weight=torch.randn(50, 4, requires_grad=True),
        teacher_states=torch.randn(9, 4),
        teacher_weight=torch.randn(50, 4),
    )
    p, q = (step.teacher_states @ step.teacher_weight.T).softmax(-1), (step.states @ step.weight.T).softmax(-1)
    m = (p + q) / 2
    wanted = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean() / 2
    torch.testing.assert_close(WAYS["edgekit_jsd"](step), wanted, rtol=1e-5, atol=1e-6)


def test_bf16_is_held_against_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bf16 costs edgekit's loss is little; a way at another temperature is far off in the loss that both should have."""
    off = stray("edgekit_jsd", tokens=64, vocabulary=500)
    assert 0 < off["loss"] < 0.002
    assert 0 < off["gradient"] < 0.03
    monkeypatch.setitem(WARM, "liger", edgekit("jensen_shannon", 1.0))
    assert stray("liger", tokens=64, vocabulary=500)["gradient"] > 0.05


def test_goals_judge_what_was_measured() -> None:
    one = Taken(way="", tokens=1024, memory_mb=1000.0, seconds=10.0, loss=2.0, gradient=3.0)
    found = {(way, tokens): one for way in WAYS for tokens in (1024, 8192)}
    found["gkd", 1024] = replace(one, memory_mb=10_000.0, seconds=20.0, loss=2.0 * (1 + 1e-5))
    found["plain_kl", 1024] = replace(one, memory_mb=4000.0)
    figures = judge(found)
    assert set(figures) == set(GOALS)
    assert figures["memory_of_gkd"] == pytest.approx(0.1)
    assert figures["time_of_gkd"] == pytest.approx(0.5)
    assert all(figures[name] <= goal for name, goal in GOALS.items())
    found["edgekit_kl", 8192] = replace(one, memory_mb=1200.0)
    found["plain_kl", 1024] = replace(one, gradient=3.1)
    missed = {name for name, goal in GOALS.items() if judge(found)[name] > goal}
    assert missed == {"memory_8k_of_1k", "memory_of_plain_kl", "difference"}
