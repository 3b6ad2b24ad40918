"""Corrections equal plain loops on hand-written matrices, for both similarities and both directions."""

import math

import numpy as np
import pytest
import torch

from metrics.correction import (
    Bank,
    Parameters,
    Retrieval,
    activation_set,
    biases,
    gate,
    sinkhorn,
    with_bias,
)
from metrics.ranks import ranks_of, ranks_one_way
from metrics.similarity import RANKING

DIRECTIONS = ("text_to_image", "image_to_text")
BETA = 7.0
# item (row) against query of the bank
SCORES = [[0.9, 0.2, 0.4], [0.1, 0.8, 0.3], [0.5, 0.5, 0.5], [0.9, 0.2, 0.4]]
NEAR = [[1.0, 0.3], [0.2, 0.6], [0.1, 0.9], [1.0, 0.3]]  # and against an item of the bank


def plain_soft(row, beta):
    return math.log(sum(math.exp(beta * s) for s in row) / len(row)) / beta


def plain_bias(name, row, near):
    if name == "nnn":
        return 0.75 * sum(sorted(row)[-2:]) / 2
    if name == "db_norm":  # what the product of the two quotients orders by, over the sum of inverse temperatures
        return (BETA * plain_soft(row, BETA) + 3 * plain_soft(near, 3.0)) / (BETA + 3)
    return plain_soft(row, BETA)


PARAMETERS = {
    "inverted_softmax": Parameters(beta=BETA),
    "qb_norm": Parameters(beta=BETA),
    "nnn": Parameters(k=2, alpha=0.75),
    "db_norm": Parameters(beta=BETA, gallery_beta=3.0),
}


def reading(matrices, direction):
    """A retrieval that reads scores off matrices: items are rows of them, queries columns, by their number."""

    def score(images, captions):
        items, queries = (images, captions) if direction == "text_to_image" else (captions, images)
        matrix = torch.tensor(matrices[int(queries[0, 1])], dtype=images.dtype)
        cells = matrix[items[:, 0].long()][:, queries[:, 0].long()]
        return cells if direction == "text_to_image" else cells.T

    return Retrieval("cosine", direction, score)


def numbers(count, matrix=0):
    return torch.stack([torch.arange(count), torch.full((count,), matrix)], 1).float()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("block", [1, 2**23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_biases_equal_plain_loops(monkeypatch, name, direction, block, dtype):
    monkeypatch.setattr("metrics.correction.SCORES_PER_BLOCK", block)
    monkeypatch.setattr("metrics.correction.CACHED_SCORES_PER_BLOCK", block)
    queries, gallery, items = (rows.to(dtype) for rows in (numbers(3), numbers(2, 1), numbers(4)))
    retrieval, bank = reading([SCORES, NEAR], direction), Bank(queries, gallery)
    bias = biases(name, PARAMETERS[name], retrieval, items, bank)
    assert bias.dtype == torch.float32
    assert bias.tolist() == pytest.approx([plain_bias(name, *rows) for rows in zip(SCORES, NEAR, strict=True)])
    assert bias[0] == bias[3], "equal items have equal biases"


@pytest.mark.parametrize(
    ("name", "held", "rows"),
    [
        ("inverted_softmax", 12, [6, 2]),
        ("inverted_softmax", 1, [1] * 8),
        ("nnn", 12, [6, 2]),
        ("qb_norm", 12, [6, 2]),
        ("db_norm", 12, [2] * 8),
    ],
)
def test_a_block_holds_no_more_scores_than_it_may(monkeypatch, name, held, rows):
    """Of eight items with two queries and six items of a bank; db_norm asks both of every block."""
    monkeypatch.setattr("metrics.correction.SCORES_PER_BLOCK", held)
    seen = []

    def score(images, captions):
        seen.append(len(images))
        return torch.zeros(len(images), len(captions))

    retrieval = Retrieval("cosine", "text_to_image", score)
    biases(name, PARAMETERS[name], retrieval, numbers(8), Bank(numbers(2), numbers(6)))
    assert seen == rows


def test_what_a_bank_leaves_out_is_zero():
    assert Parameters() == Parameters(beta=0.0, gallery_beta=0.0, k=0, alpha=0.0)


def test_fewer_queries_than_k_are_all_of_them():
    (bias,) = biases(
        "nnn",
        Parameters(k=9, alpha=1.0),
        reading([[[0.1, 0.3]]], DIRECTIONS[0]),
        numbers(1),
        Bank(numbers(2), numbers(1)),
    )
    assert bias == pytest.approx(0.2)


@pytest.mark.parametrize("block", [1, 2**23])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_activation_set_holds_the_best_items_of_the_bank_and_opens_the_gate(monkeypatch, direction, block):
    monkeypatch.setattr("metrics.correction.SCORES_PER_BLOCK", block)
    queries = [[0.3, 0.7, 0.1], [0.2, 0.1, 0.6], [0.9, 0.1, 0.6], [0.3, 0.7, 0.1]]
    retrieval = reading([SCORES, queries], direction)
    active = activation_set(retrieval, numbers(4), numbers(3))
    assert active.tolist() == [True, True, True, True]
    alone = activation_set(retrieval, numbers(4), numbers(2))
    assert alone.tolist() == [True, True, False, True], "of equals, all"
    expected = []
    for column in zip(*queries, strict=True):
        best = [row for row, score in enumerate(column) if score == max(column)]
        expected.append(any(alone[row] for row in best))
    assert gate(retrieval, numbers(4), numbers(3, 1), alone).tolist() == expected == [False, True, True]


def unit(rng, count, similarity):
    rows = rng.normal(size=(count, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(np.abs(rows) if similarity == "order" else rows)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_one_more_dimension_is_the_bias(similarity, direction):
    rng = np.random.default_rng(0)
    retrieval = Retrieval(similarity, direction)
    items, queries = unit(rng, 9, similarity), unit(rng, 7, similarity)
    items[8] = items[2]
    bank = Bank(unit(rng, 20, similarity), unit(rng, 5, similarity))
    bias = biases("inverted_softmax", Parameters(beta=10.0), retrieval, items, bank)
    on = torch.tensor([True, False, True, True, False, True, True])
    plain, offset = retrieval.scores(items, queries), 1.0 if similarity == "order" else 0.0
    corrected = retrieval.scores(*with_bias(retrieval, items, queries, bias, on))
    torch.testing.assert_close(corrected, plain - (bias + offset)[:, None] * on, atol=1e-6, rtol=0)
    assert torch.equal(corrected[8], corrected[2]), "equal items stay tied"
    everyone = retrieval.scores(*with_bias(retrieval, items, queries, bias))
    torch.testing.assert_close(everyone, plain - (bias + offset)[:, None], atol=1e-6, rtol=0)


def plain_sinkhorn(scores, beta, steps):
    """Scale rows and columns of exp(beta · scores) in turn until both have means of 1."""
    matrix = [[math.exp(beta * s) for s in row] for row in scores]
    for _ in range(steps):
        for row in matrix:
            mean = sum(row) / len(row)
            row[:] = [x / mean for x in row]
        for column in range(len(matrix[0])):
            mean = sum(row[column] for row in matrix) / len(matrix)
            for row in matrix:
                row[column] /= mean
    return matrix


@pytest.mark.parametrize("beta", [5.0, 40.0, 300.0])
def test_sinkhorn_balances_rows_and_columns(beta):
    images, captions = sinkhorn(torch.tensor(SCORES), beta, steps=200)
    balanced = torch.exp(beta * (torch.tensor(SCORES).double() - images[:, None] - captions))
    torch.testing.assert_close(balanced.mean(0), torch.ones(3).double(), atol=1e-3, rtol=0)
    if beta < 50:  # at larger ones a few hundred steps are not yet the end
        torch.testing.assert_close(balanced.mean(1), torch.ones(4).double(), atol=1e-2, rtol=0)
        expected = torch.tensor(plain_sinkhorn(SCORES, beta, 300)).double()
        torch.testing.assert_close(balanced, expected, atol=1e-3, rtol=1e-3)
    assert images[0] == images[3]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_sinkhorn_begins_as_plain_steps_do(steps):
    """Before it has settled, too: two steps are taken beside those that are asked for."""
    images, captions = sinkhorn(torch.tensor(SCORES), 10.0, steps)
    balanced = torch.exp(10.0 * (torch.tensor(SCORES).double() - images[:, None] - captions))
    expected = torch.tensor(plain_sinkhorn(SCORES, 10.0, steps + 2)).double()
    torch.testing.assert_close(balanced, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ranks_one_way_are_those_of_both_ways(direction):
    rng = np.random.default_rng(1)
    image_of_caption = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    for _ in range(50):
        scores = torch.from_numpy(rng.integers(0, 4, (5, 8)).astype(np.float32))  # ties everywhere
        scores[rng.random((5, 8)) < 0.05] = torch.nan
        expected = getattr(ranks_of(scores, image_of_caption), direction)
        assert ranks_one_way(scores, image_of_caption, direction).tolist() == expected.tolist()


def test_similarities_are_those_of_ranking():
    images, captions = torch.eye(3)[:2], torch.eye(3)[1:]
    for name in ("cosine", "order"):
        expected = RANKING[name](images, captions)
        assert torch.equal(Retrieval(name, "text_to_image").scores(images, captions), expected)
        assert torch.equal(Retrieval(name, "image_to_text").scores(captions, images), expected.T)
