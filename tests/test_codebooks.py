"""Codebooks against brute force and closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.linalg.codebooks import Codebooks, refitted, share_for_outputs, share_nearest
from onnxcomp.linalg.kmeans import weighted_kmeans

Array = np.ndarray[Any, Any]


def loss(W: Array, H: Array, Q: Array) -> float:
    change = Q - W
    return float(np.einsum("goi,gij,goj->", change, H, change))


def problem(seed: int, groups: int = 1, outputs: int = 6, inputs: int = 12) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(groups, inputs, 3 * inputs)) * rng.uniform(0.2, 2.0, size=(groups, inputs, 1))
    X += 0.7 * X[:, ::-1]
    return rng.normal(size=(groups, outputs, inputs)), X @ X.swapaxes(1, 2) / X.shape[2]


def cost(values: Array, weights: Array, centres: Array) -> float:
    return float((weights * np.square(values[:, None] - centres[None]).min(axis=1)).sum())


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(4, 10))
@settings(max_examples=40, deadline=None)
def test_clusters_are_the_best_intervals(seed: int, clusters: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=count), rng.uniform(0.1, 3.0, size=count)
    order = np.argsort(values)
    v, w = values[order], weights[order]
    best = min(
        cost(v, w, np.array([np.average(v[a:b], weights=w[a:b]) for a, b in itertools.pairwise((0, *cuts, count))]))
        for cuts in itertools.combinations(range(1, count), min(clusters, count) - 1)
    )
    assert cost(values, weights, weighted_kmeans(values, weights, clusters)) == pytest.approx(best, abs=1e-12)


def test_many_values_are_clustered_nearly_as_well_as_the_density_allows() -> None:
    """Panter and Dite 1951: with many clusters of a normal density the error is about √3 π / 2 / k²."""
    values = np.random.default_rng(0).normal(size=200_000)
    for clusters, known in ((4, 0.1175), (16, 0.009497)):  # Max 1960
        centres = weighted_kmeans(values, np.ones(len(values)), clusters)
        assert cost(values[:20_000], np.ones(20_000), centres) / 20_000 == pytest.approx(known, rel=0.04)


def best_cost(values: Array, weights: Array, clusters: int) -> float:
    """By dynamic programming over all values."""
    order = np.argsort(values)
    sums = [np.concatenate([[0.0], np.cumsum(w)]) for w in (weights[order] * values[order] ** p for p in range(3))]
    w, wv, wvv = (each[None, :] - each[:, None] for each in sums)
    costs = np.where(w > 0, wvv - wv**2 / np.where(w > 0, w, 1.0), np.inf)
    best = costs[0]
    for _ in range(clusters - 1):
        best = (best[:, None] + costs).min(axis=0)
    return float(best[-1])


@pytest.mark.parametrize(("clusters", "most"), [(4, 1.02), (16, 1.02), (64, 1.15)])
@pytest.mark.parametrize("tail", ["normal", "student", "outliers"])
def test_values_far_out_are_clustered_nearly_as_well_as_possible(clusters: int, most: float, tail: str) -> None:
    rng = np.random.default_rng(clusters)
    values = rng.standard_t(2, size=900) if tail == "student" else rng.normal(size=900)
    values[:6] *= 30.0 if tail == "outliers" else 1.0
    weights = rng.uniform(0.1, 3.0, size=900)
    found = cost(values, weights, weighted_kmeans(values, weights, clusters))
    assert found <= most * best_cost(values, weights, clusters)


def test_few_distinct_values_are_kept() -> None:
    values = np.array([3.0, -1.0, 3.0, 0.5, -1.0])
    assert weighted_kmeans(values, np.ones(5), 4).tolist() == [-1.0, 0.5, 3.0, 3.0]


@pytest.mark.parametrize(("zero", "dim"), [(False, 1), (True, 1), (False, 2), (False, 4)])
@pytest.mark.parametrize(("groups", "rows"), [(1, 6), (1, 2), (2, 4)])
def test_values_are_the_least_squares_solution(groups: int, rows: int, zero: bool, dim: int) -> None:
    W, H = problem(1, groups)
    if zero:
        W[np.abs(W) < 0.5] = 0.0
    books = share_nearest(W.reshape(-1, W.shape[2]), np.ones(1), 4, rows, zero, dim)
    codes = books.codes(W)
    found, Q = refitted(W, H, books, codes)
    flat = codes.reshape(-1, codes.shape[2])
    number = np.repeat(flat + 4 * books.book_of(len(flat))[:, None], dim, axis=1) * dim
    number += np.tile(np.arange(dim), flat.shape[1])
    columns = []  # of a least squares problem with a row for each weight, in the metric of H
    roots = [np.linalg.cholesky(each).T for each in H]
    for cell in range(books.values.size):
        A = (number == cell).astype(float).reshape(W.shape)
        columns.append(np.concatenate([(A[g] @ roots[g].T).reshape(-1) for g in range(len(H))]))
    wanted = np.concatenate([(W[g] @ roots[g].T).reshape(-1) for g in range(len(H))])
    free = [cell for cell in range(len(columns)) if not (zero and books.values.reshape(-1)[cell] == 0)]
    solution = np.linalg.lstsq(np.stack(columns, axis=1)[:, free], wanted, rcond=None)[0]
    values = np.zeros(len(columns))
    values[free] = solution
    np.testing.assert_allclose(Q.reshape(number.shape), values[number], atol=1e-5 if dim == 1 else 2e-3)
    assert loss(W, H, found.decode(found.codes(Q))) == pytest.approx(loss(W, H, Q), rel=1e-6)


@pytest.mark.parametrize("clusters", [4, 16])
def test_codes_for_outputs_beat_the_nearest_ones(clusters: int) -> None:
    W, H = problem(2, outputs=32, inputs=48)
    nearest = share_nearest(W[0], np.diag(H[0])[None], clusters, 32)
    books, codes = share_for_outputs(W, H, clusters, 32)
    assert loss(W, H, books.decode(codes)) < 0.6 * loss(W, H, nearest.decode(nearest.codes(W)))
    assert codes.min() >= 0
    assert codes.max() < clusters


def test_without_correlations_each_weight_gets_the_nearest_value() -> None:
    W, _ = problem(3)
    H = np.eye(W.shape[2])[None]
    books, codes = share_for_outputs(W, H, 4, 6)
    np.testing.assert_array_equal(codes, books.codes(W))


def test_zeros_stay_and_weights_of_few_values_are_reproduced() -> None:
    W, H = problem(4, groups=2)
    W[np.abs(W) < 0.8] = 0.0
    books, codes = share_for_outputs(W, H, 4, 3, zero=True)
    Q = books.decode(codes)
    assert not Q[W == 0].any()
    rng = np.random.default_rng(0)
    exact = rng.choice([-1.5, -0.25, 0.0, 0.75], size=W.shape)
    books, codes = share_for_outputs(exact, H, 4, 12)
    np.testing.assert_allclose(books.decode(codes), exact, atol=1e-12)


def test_books_of_unequal_runs_of_rows() -> None:
    books = Codebooks(np.array([[[-1.0], [1.0]], [[0.0], [2.0]]]), rows=2)
    W = np.array([[[-3.0, 0.5], [0.1, -0.1], [0.9, 1.1]]])
    codes = books.codes(W)
    assert codes.tolist() == [[[0, 1], [1, 0], [0, 1]]]
    assert books.decode(codes).tolist() == [[[-1.0, 1.0], [1.0, -1.0], [0.0, 2.0]]]
