"""Codebooks of vectors against brute force and closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.linalg.codebooks import Codebooks, share_for_outputs, share_nearest
from onnxcomp.linalg.kmeans import nearest_vectors, vector_kmeans
from onnxcomp.linalg.sweeps import coordinate_descent, nearest_plane
from tests.test_codebooks import loss, problem

Array = np.ndarray[Any, Any]


def distances(vectors: Array, weights: Array, centres: Array) -> Array:
    """(n, k)."""
    found: Array = (weights[:, None, :] * np.square(vectors[:, None, :] - centres[None])).sum(axis=2)
    return found


def best_cost(vectors: Array, weights: Array, clusters: int) -> float:
    """Of all assignments."""
    best = np.inf
    for numbers in itertools.product(range(clusters), repeat=len(vectors)):
        parts = [np.array(numbers) == number for number in range(clusters)]
        means = [(weights[part] * vectors[part]).sum(0) / weights[part].sum(0) for part in parts if part.any()]
        best = min(best, float(distances(vectors, weights, np.stack(means)).min(axis=1).sum()))
    return best


def random_books(seed: int, books: int, rows: int, dim: int, size: int = 5) -> Codebooks:
    return Codebooks(np.random.default_rng(seed).normal(size=(books, size, dim)), rows)


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(max_examples=10, deadline=None)
def test_clusters_that_lie_apart_are_found(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    far = np.stack([rng.permutation([-6.0, 0.0, 6.0]) for _ in range(dim)], axis=1)
    vectors = rng.permutation(np.repeat(far, 2, axis=0) + rng.uniform(-1, 1, size=(6, dim)))
    weights = rng.uniform(0.5, 2.0, size=(6, dim))
    found = distances(vectors, weights, vector_kmeans(vectors, weights, 3)).min(axis=1).sum()
    assert found == pytest.approx(best_cost(vectors, weights, 3))


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_centres_are_the_means_of_the_vectors_they_are_nearest_to(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, weights = rng.normal(size=(20, dim)), rng.uniform(0.3, 2.0, size=(20, dim))
    centres = vector_kmeans(vectors, weights, 3)
    apart = distances(vectors, weights, centres)
    nearest = apart.argmin(axis=1)
    for number in set(nearest.tolist()):
        part = nearest == number
        mean = (weights[part] * vectors[part]).sum(axis=0) / weights[part].sum(axis=0)
        np.testing.assert_allclose(centres[number], mean, atol=1e-9)


def test_two_dimensions_are_better_than_one_at_the_same_bits() -> None:
    """A normal density at 2 bits: Max's four values leave 0.1175; 16 random vectors, moved 200 times, 0.107 or more."""
    vectors = np.random.default_rng(0).normal(size=(40_000, 2))
    centres = vector_kmeans(vectors, np.ones_like(vectors), 16)
    error = float(distances(vectors, np.ones_like(vectors), centres).min(axis=1).mean()) / 2
    assert 0.104 < error < 0.113


def test_nearest_vectors_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors, weights, centres = rng.normal(size=(3000, 4)), rng.uniform(size=(3000, 4)), rng.normal(size=(9, 4))
    np.testing.assert_array_equal(
        nearest_vectors(vectors, weights, centres), distances(vectors, weights, centres).argmin(axis=1)
    )


def test_few_distinct_vectors_are_kept() -> None:
    vectors = np.array([[3.0, 1.0], [-1.0, 0.0], [3.0, 1.0]])
    assert vector_kmeans(vectors, np.ones((3, 2)), 4).tolist() == [[-1.0, 0.0], [3.0, 1.0], [3.0, 1.0], [3.0, 1.0]]
    many = np.random.default_rng(0).choice(vectors, size=70_000)
    assert vector_kmeans(many, np.ones_like(many), 2).tolist() == [[-1.0, 0.0], [3.0, 1.0]]


@pytest.mark.parametrize("dim", [2, 4])
@pytest.mark.parametrize(("groups", "rows"), [(1, 6), (1, 2), (2, 4)])
def test_vectors_of_inputs_that_do_not_correlate_are_the_best_of_each_block(dim: int, groups: int, rows: int) -> None:
    W, H = problem(0, groups)
    H *= np.kron(np.eye(12 // dim), np.ones((dim, dim)))
    books = random_books(1, -(-groups * 6 // rows), rows, dim)
    found = nearest_plane(W, H, books)
    for g, o, start in itertools.product(range(groups), range(6), range(0, 12, dim)):
        part = slice(start, start + dim)
        change = books.values[(g * 6 + o) // rows] - W[g, o, part]
        best = np.einsum("ki,ij,kj->k", change, H[g, part, part], change).argmin()
        np.testing.assert_array_equal(found[g, o, part], books.values[(g * 6 + o) // rows, best])
    np.testing.assert_array_equal(coordinate_descent(W, H, books, found), found)


def test_the_last_vector_makes_up_for_the_errors_of_the_first() -> None:
    """With two vectors, the second is the best of all given the first; brute force knows it."""
    W, H = problem(3, inputs=4)
    books = random_books(2, 1, 6, 2)
    found = nearest_plane(W, H, books)
    trace = np.diag(H[0]).reshape(2, 2).sum(axis=1)
    last = int(trace.argmin())
    for o in range(6):
        tried = np.repeat(found[:, o : o + 1], 5, axis=0)
        tried[:, 0, 2 * last : 2 * last + 2] = books.values[0]
        losses = [loss(W[:, o : o + 1], H, each[None]) for each in tried]
        assert loss(W[:, o : o + 1], H, found[:, o : o + 1]) == pytest.approx(min(losses))


@pytest.mark.parametrize("dim", [2, 4])
def test_after_coordinate_descent_no_vector_alone_can_do_better(dim: int) -> None:
    W, H = problem(4, groups=2)
    books = random_books(3, 3, 4, dim)
    start = books.decode(books.codes(W))
    found = coordinate_descent(W, H, books, start, sweeps=50)
    assert loss(W, H, found) < 0.9 * loss(W, H, start)
    for g, o, first in itertools.product(range(2), range(6), range(0, 12, dim)):
        for vector in books.values[(g * 6 + o) // 4]:
            other = found.copy()
            other[g, o, first : first + dim] = vector
            assert loss(W, H, other) >= loss(W, H, found) - 1e-9


@pytest.mark.parametrize(("clusters", "dim"), [(16, 2), (256, 4)])
def test_vectors_for_outputs_beat_the_nearest_ones(clusters: int, dim: int) -> None:
    W, H = problem(2, outputs=64, inputs=48)
    nearest = share_nearest(W[0], np.diag(H[0])[None], clusters, 64, dim=dim)
    books, codes = share_for_outputs(W, H, clusters, 64, dim=dim)
    assert codes.shape == (1, 64, 48 // dim)
    assert loss(W, H, books.decode(codes)) < 0.6 * loss(W, H, nearest.decode(nearest.codes(W)))


def test_codes_and_weights_of_vectors_are_inverse() -> None:
    books = random_books(5, 3, 4, 4)
    codes = np.random.default_rng(0).integers(0, 5, size=(2, 5, 3))
    W = books.decode(codes)
    assert W.shape == (2, 5, 12)
    np.testing.assert_array_equal(books.codes(W), codes)
    np.testing.assert_array_equal(books.values.reshape(-1)[books.cells(codes)], W.reshape(10, 12))
