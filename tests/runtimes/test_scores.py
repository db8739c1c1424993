"""Scores against plain formulas."""

from __future__ import annotations

import itertools

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


def test_log_sum_exp_is_its_formula_whatever_the_piece() -> None:
    logits = (100 * NUMBERS.normal(size=(9, 50))).astype(np.float32)
    plain = np.log(np.exp(logits.astype(np.longdouble)).sum(axis=1)).astype(float)
    assert np.allclose(scores.log_sum_exp(logits), plain, rtol=1e-14)
    assert np.array_equal(scores.log_sum_exp(logits, piece=1), scores.log_sum_exp(logits))


def test_sparse_kl_merges_what_is_not_known() -> None:
    a, b = NUMBERS.normal(size=(2, 30, 40)).astype(np.float32)
    logs, sums = scores.log_softmax(a), scores.log_sum_exp(b)
    ids = np.argsort(-a, axis=1)

    def known(count: int) -> np.ndarray:
        kept = ids[:, :count]
        return scores.sparse_kl(kept, np.take_along_axis(logs, kept, axis=1).astype(np.float32), b, sums)

    assert np.allclose(known(40), scores.kl(a, b), atol=1e-6)
    merged = []
    for row, best in enumerate(ids[:, :7]):
        p, q = (np.exp(scores.log_softmax(x[row : row + 1]))[0] for x in (a, b))
        p, q = (np.append(x[best], np.delete(x, best).sum()) for x in (p, q))
        merged.append((p * np.log(p / q)).sum())
    assert np.allclose(known(7), merged, atol=1e-6)
    # The more is known, the closer to all of it, from below.
    steps = [known(count) for count in (1, 3, 7, 20, 40)]
    assert all((fewer <= more + 1e-6).all() for fewer, more in itertools.pairwise(steps))


def test_sparse_kl_is_finite_where_one_side_is_certain() -> None:
    certain = np.array([[60.0, 0.0, 0.0, 0.0]], dtype=np.float32)
    even = np.zeros((1, 4), dtype=np.float32)
    ids, quarter = np.array([[0, 1]]), np.log(np.array([[0.25, 0.25]], dtype=np.float32))
    assert 10 < scores.sparse_kl(ids, quarter, certain, scores.log_sum_exp(certain))[0] < 100
    sure = scores.log_softmax(certain)[:, :2].astype(np.float32)
    assert scores.sparse_kl(ids, sure, even, scores.log_sum_exp(even))[0] == pytest.approx(np.log(4))
    # Rounded up to more than 1 in all, as 16-bit log-probabilities are.
    assert scores.sparse_kl(ids, quarter * 0 + np.log(0.5003), even, scores.log_sum_exp(even))[0] == pytest.approx(
        np.log(2)
    )
