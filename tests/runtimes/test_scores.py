"""Scores against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.runtimes import scores

NUMBERS = np.random.default_rng(0)


def test_log_softmax_and_nll_do_not_overflow() -> None:
    logits = np.array([[1000.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    assert np.allclose(np.exp(scores.log_softmax(logits)), [[1, 0], [0.5, 0.5]])
    assert np.allclose(scores.nll(logits, np.array([0, 1])), [0, np.log(2)])
    assert scores.top1(logits).tolist() == [0, 0]


def test_kl_is_its_formula_and_never_negative() -> None:
    a, b = NUMBERS.normal(size=(2, 20, 5)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (a.astype(float), b.astype(float)))
    assert np.allclose(scores.kl(a, b), (p * np.log(p / q)).sum(axis=1))
    assert (scores.kl(a, a + 3) >= 0).all()
    assert scores.kl(a, a + 3).max() < 1e-6


def test_cosine_of_zeros_is_zero() -> None:
    a = np.array([[1, 0], [0, 0], [1, 1]], dtype=np.float32)
    assert scores.cosine(a, np.array([[2, 0], [1, 1], [-1, -1]], dtype=np.float32)) == pytest.approx([1, 0, -1])


def test_nearest_is_another_row_whatever_the_piece() -> None:
    rows = NUMBERS.normal(size=(37, 8)).astype(np.float32)
    alike = np.corrcoef(rows) * 0 + (rows @ rows.T) / np.outer(*(np.linalg.norm(rows, axis=1),) * 2)
    np.fill_diagonal(alike, -2)
    assert np.array_equal(scores.nearest(rows, piece=10), alike.argmax(axis=1))
    assert np.array_equal(scores.nearest(rows), scores.nearest(rows, piece=1))
