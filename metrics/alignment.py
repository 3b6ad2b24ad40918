"""How alike two frozen encoders see the same pairs, before anything is trained: mutual nearest neighbors and CKA."""

import numpy as np


def mutual_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    """Return the share of the k nearest neighbors of a pair that both sides agree on, its mean (Huh et al., 2024).

    x: (N, D1); y: (N, D2); neighbors are the other pairs of largest cosine. Unrelated sides share k / (N - 1).
    Raises ValueError unless N > k >= 1, and both sides have N rows.

    >>> x = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> mutual_knn(x, x, k=1), mutual_knn(x, x[[0, 2, 1, 3]], k=1)
    (1.0, 0.0)
    """
    if len(x) != len(y) or not 1 <= k < len(x):
        raise ValueError(f"mutual {k} nearest neighbors of {len(x)} and {len(y)} rows")
    return float((_neighbors(x, k) & _neighbors(y, k)).sum() / (len(x) * k))


def _neighbors(x: np.ndarray, k: int) -> np.ndarray:
    """Return (N, N) bool: the k others that each row is nearest to."""
    x = x.astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    cosines = x @ x.T
    np.fill_diagonal(cosines, -np.inf)
    near = np.zeros(cosines.shape, bool)
    np.put_along_axis(near, np.argpartition(-cosines, k - 1, axis=1)[:, :k], True, axis=1)
    return near


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return linear CKA without bias: 1 if y is x turned and scaled, 0 on average if they have nothing in common.

    Kornblith et al. (2019), with the unbiased estimator of Song et al. (2012), as Maniparambil et al. (2024) rank pairs
    of encoders. x: (N, D1); y: (N, D2); 0 where one side is constant. Raises ValueError unless both have N > 3 rows.

    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(cka(x, 3 * x[:, ::-1]), 6)
    1.0
    """
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(f"CKA of {len(x)} and {len(y)} rows")
    a, b = _products(x), _products(y)
    norm = _hsic(a, a) * _hsic(b, b)
    return _hsic(a, b) / norm**0.5 if norm > 0 else 0.0


def _products(x: np.ndarray) -> np.ndarray:
    """Return the inner products (N, N) of centered rows, zero on the diagonal. Centering changes digits alone."""
    x = x.astype(np.float64)
    x -= x.mean(axis=0)
    products = x @ x.T
    np.fill_diagonal(products, 0)
    return products


def _hsic(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased Hilbert-Schmidt independence criterion of two such matrices, but for a factor of N alone."""
    n = len(a)
    rows = 2 * (a.sum(axis=0) @ b.sum(axis=0)) / (n - 2)
    return float((a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - rows)
