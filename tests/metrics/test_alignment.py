"""Mutual nearest neighbors and CKA against plain loops."""

import numpy as np
import pytest

from metrics.alignment import cka, mutual_knn

rng = np.random.default_rng(0)
X = rng.normal(size=(30, 6)) + 2
Y = np.concatenate([X[:, :3] @ rng.normal(size=(3, 4)), rng.normal(size=(30, 5))], axis=1)


def plain_neighbors(x, i, k):
    def cosine(j):
        return sum(a * b for a, b in zip(x[i], x[j], strict=True)) / (sum(x[i] ** 2) * sum(x[j] ** 2)) ** 0.5

    return set(sorted((j for j in range(len(x)) if j != i), key=cosine, reverse=True)[:k])


@pytest.mark.parametrize("k", [1, 4, 10, 29])
def test_mutual_neighbors_equal_plain_sets(k):
    shared = [len(plain_neighbors(X, i, k) & plain_neighbors(Y, i, k)) / k for i in range(len(X))]
    assert mutual_knn(X, Y, k) == pytest.approx(sum(shared) / len(X))
    assert mutual_knn(X.astype(np.float32), Y.astype(np.float32), k) == pytest.approx(sum(shared) / len(X))


def test_unrelated_sides_share_what_chance_gives():
    x, y = rng.normal(size=(2, 400, 50))
    assert mutual_knn(x, y, 20) == pytest.approx(20 / 399, abs=0.01)
    assert cka(x, y) == pytest.approx(0, abs=0.02)


def plain_hsic(x, y):
    """Song et al. (2012), equation 5, on inner products of rows that are not centered."""
    n = len(x)
    a = [[float(x[i] @ x[j]) if i != j else 0.0 for j in range(n)] for i in range(n)]
    b = [[float(y[i] @ y[j]) if i != j else 0.0 for j in range(n)] for i in range(n)]
    trace = sum(a[i][j] * b[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, a)) * sum(map(sum, b)) / ((n - 1) * (n - 2))
    chain = sum(a[i][j] * b[j][k] for i in range(n) for j in range(n) for k in range(n)) * 2 / (n - 2)
    return (trace + sums - chain) / (n * (n - 3))


def test_cka_equals_its_definition_in_plain_loops():
    plain = plain_hsic(X, Y) / (plain_hsic(X, X) * plain_hsic(Y, Y)) ** 0.5
    assert 0.2 < plain < 0.9
    assert cka(X, Y) == pytest.approx(plain)
    assert cka(X.astype(np.float32), Y.astype(np.float32)) == pytest.approx(plain, rel=1e-5)


def test_cka_minds_neither_rotation_nor_scale_nor_shift():
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert cka(X, 5 * X @ rotation + 1) == pytest.approx(1)
    assert cka(5 * X @ rotation + 1, Y) == pytest.approx(cka(X, Y))
    assert cka(X, np.ones((30, 2))) == 0


def test_too_few_or_unequal_rows():
    for bad in [(X, Y[:9], 3), (X[:4], Y[:4], 4), (X, Y, 0)]:
        with pytest.raises(ValueError, match="rows"):
            mutual_knn(*bad)
    for x, y in [(X, Y[:9]), (X[:3], Y[:3])]:
        with pytest.raises(ValueError, match="rows"):
            cka(x, y)
