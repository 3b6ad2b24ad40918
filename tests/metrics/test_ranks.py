"""Ranks, metrics, similarities and protocols against brute force, an independent library, and by hand."""

import warnings

import numpy as np
import pytest
import torch

from metrics.pairs import pair_scores
from metrics.protocols import (
    Protocol,
    first_captions,
    folds_of,
    metrics_of_folds,
    protocol_name,
    protocols_for,
    ranks_of_folds,
)
from metrics.ranks import mean_of, mean_rank, median_rank, metrics_of, ranks_by_block, ranks_of, recall_at, rsum
from metrics.similarity import (
    RANKING,
    ROWS_PER_BLOCK,
    TRAINING,
    cosine_scores,
    order_scores,
    order_scores_by_block,
)


def brute_force(scores, owner):
    """The definition, one comparison at a time."""
    images, captions = scores.shape
    image_to_text = []
    for i in range(images):
        best = max(scores[i, c] for c in range(captions) if owner[c] == i)
        image_to_text.append(1 + sum(scores[i, c] >= best for c in range(captions) if owner[c] != i))
    text_to_image = []
    for c in range(captions):
        true = scores[owner[c], c]
        text_to_image.append(1 + sum(scores[i, c] >= true for i in range(images) if i != owner[c]))
    return image_to_text, text_to_image


def ragged_owner(rng, images):
    """1 to 7 captions an image, in no order."""
    return rng.permutation(np.repeat(np.arange(images), rng.integers(1, 8, images)))


@pytest.mark.parametrize("seed", range(8))
def test_ranks_equal_brute_force_with_ties(seed):
    rng = np.random.default_rng(seed)
    owner = ragged_owner(rng, 23)
    scores = rng.integers(0, 12, (23, len(owner))).astype(np.float32)  # few values: ties everywhere
    ranks = ranks_of(torch.from_numpy(scores), owner)
    image_to_text, text_to_image = brute_force(scores, owner)
    assert ranks.image_to_text.tolist() == image_to_text
    assert ranks.text_to_image.tolist() == text_to_image


@pytest.mark.parametrize("name", ["cosine", "order"])
def test_ranks_by_block_equal_ranks_at_once(name):
    rng = np.random.default_rng(1)
    owner = ragged_owner(rng, 50)
    images = torch.from_numpy(rng.integers(0, 3, (50, 4)).astype(np.float32))
    captions = torch.from_numpy(rng.integers(0, 3, (len(owner), 4)).astype(np.float32))
    whole = ranks_of(RANKING[name](images, captions), owner)
    for block in (1, 7, 50, 64):
        blocked = ranks_by_block(RANKING[name], images, captions, owner, block)
        assert (blocked.image_to_text == whole.image_to_text).all()
        assert (blocked.text_to_image == whole.text_to_image).all()


def test_a_perfect_model_scores_exactly_100():
    owner = np.repeat(np.arange(20), 3)
    eye = torch.eye(20)
    for name in RANKING:
        metrics = metrics_of(ranks_by_block(RANKING[name], eye, eye[owner], owner, block=8))
        for direction in metrics.values():
            assert direction == {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0, "median_rank": 1.0, "mean_rank": 1.0}
        assert rsum(metrics) == 600.0


@pytest.mark.parametrize("dim", [1, 3, 64, 1000])
@pytest.mark.parametrize("name", ["cosine", "order"])
def test_a_constant_model_scores_at_the_bottom(name, dim):
    generator = torch.Generator().manual_seed(dim)
    image, caption = (torch.nn.functional.normalize(torch.rand(1, dim, generator=generator), dim=1) for _ in range(2))
    owner = np.repeat(np.arange(301), 5)
    ranks = ranks_by_block(RANKING[name], image.repeat(301, 1), caption.repeat(1505, 1), owner, block=128)
    assert (ranks.image_to_text == 1 + 1500).all()
    assert (ranks.text_to_image == 301).all()
    assert rsum(metrics_of(ranks)) == 0


def test_not_a_number_scores_at_the_bottom():
    ranks = ranks_of(torch.full((4, 4), torch.nan), np.arange(4))
    assert ranks.image_to_text.tolist() == [4, 4, 4, 4]
    assert ranks.text_to_image.tolist() == [4, 4, 4, 4]


def test_images_without_captions_are_an_error():
    with pytest.raises(ValueError, match="without a caption"):
        ranks_of(torch.zeros(3, 2), np.array([0, 2]))
    with pytest.raises(ValueError, match="without a caption"):
        ranks_by_block(cosine_scores, torch.zeros(3, 1), torch.zeros(2, 1), np.array([0, 2]), block=1)


@pytest.mark.parametrize("rows", [[], [0, 1, 2]])
def test_captions_of_no_image_are_an_error(rows):
    with pytest.raises(ValueError, match="rows that the scores do not have"):
        ranks_of(torch.zeros(2, 3), np.array(rows, dtype=np.int64))


def test_one_caption_of_one_image_ranks_first():
    assert ranks_of(torch.zeros(1, 1), np.array([0])).text_to_image.tolist() == [1]


def test_recalls_equal_torchmetrics_on_scores_without_ties():
    from torchmetrics.functional.retrieval import retrieval_hit_rate

    rng = np.random.default_rng(5)
    owner = ragged_owner(rng, 40)
    scores = torch.from_numpy(rng.permutation(40 * len(owner)).reshape(40, -1).astype(np.float32))
    mine = metrics_of(ranks_of(scores, owner))
    belongs = torch.from_numpy(owner[None, :] == np.arange(40)[:, None])
    for k in (1, 5, 10):
        for direction, s, b in (("image_to_text", scores, belongs), ("text_to_image", scores.T, belongs.T)):
            hits = [float(retrieval_hit_rate(s[q], b[q], top_k=k)) for q in range(len(s))]
            assert mine[direction][f"R@{k}"] == pytest.approx(100 * np.mean(hits))


def test_metrics_by_hand():
    ranks = np.array([1, 2, 5, 10, 11, 200])
    assert recall_at(1, ranks) == pytest.approx(100 / 6)
    assert recall_at(5, ranks) == pytest.approx(50)
    assert recall_at(10, ranks) == pytest.approx(400 / 6)
    assert median_rank(ranks) == 7  # zero-based 4 and 9: 6.5, floored, plus one
    assert median_rank(np.array([3])) == 3
    assert mean_rank(ranks) == pytest.approx(229 / 6)


def test_the_mean_of_one_is_itself():
    metrics = metrics_of(ranks_of(torch.eye(3), np.arange(3)))
    assert mean_of([metrics]) == metrics


def plain_order(image, caption):
    return -sum(max(0.0, c - v) ** 2 for v, c in zip(image, caption, strict=True))


def test_order_scores_equal_plain_loops():
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.rand(5, 7, generator=generator), torch.rand(6, 7, generator=generator)
    plain = [[plain_order(v, c) for c in captions.tolist()] for v in images.tolist()]
    torch.testing.assert_close(order_scores(images, captions), torch.tensor(plain))
    assert order_scores(captions, captions).diagonal().abs().max() == 0
    assert order_scores(images, images * 0.5).abs().max() > 0
    assert (order_scores(images, images * 0.5).diagonal() == 0).all(), "an image holds what asks for less"


def test_order_scores_over_several_blocks():
    generator = torch.Generator().manual_seed(0)
    images, captions = (
        torch.rand(3, 4, generator=generator),
        torch.rand(2 * ROWS_PER_BLOCK + 3, 4, generator=generator),
    )
    expected = -(captions[None] - images[:, None]).clamp(min=0).square().sum(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as torch's where a block is written into room of another size
        torch.testing.assert_close(order_scores(images, captions), expected)


def test_order_scores_are_the_same_by_image_and_by_caption():
    generator = torch.Generator().manual_seed(3)
    images, captions = torch.rand(9, 64, generator=generator), torch.rand(7, 64, generator=generator)
    expected = order_scores(images, captions)
    for by_image in (True, False):
        for rows in (2, 100):
            assert torch.equal(order_scores_by_block(images, captions, rows, by_image), expected)


@pytest.mark.parametrize("name", ["cosine", "order"])
def test_pairs_score_as_they_do_in_ranking(name, monkeypatch):
    random = np.random.default_rng(0)
    images, captions = (np.abs(random.normal(size=(n, 8))).astype(np.float32) for n in (5, 7))
    image_rows, caption_rows = random.integers(0, 5, 20), random.integers(0, 7, 20)
    monkeypatch.setattr("metrics.pairs.PAIRS_PER_BLOCK", 6)
    scores = pair_scores(name, images, captions, image_rows, caption_rows)
    every = RANKING[name](torch.from_numpy(images), torch.from_numpy(captions)).numpy()
    np.testing.assert_allclose(scores, every[image_rows, caption_rows], rtol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_order_gradient_equals_autograd(sparse):
    generator = torch.Generator().manual_seed(2)
    images, captions = (torch.rand(6, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    weights = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    if sparse:
        weights = weights * (torch.rand(6, 6, generator=generator) < 0.2)
    a, b = images.clone().requires_grad_(), captions.clone().requires_grad_()
    (order_scores(a, b) * weights).sum().backward()
    c, d = images.clone().requires_grad_(), captions.clone().requires_grad_()
    (-(d[None] - c[:, None]).clamp(min=0).square().sum(-1) * weights).sum().backward()
    torch.testing.assert_close(a.grad, c.grad)
    torch.testing.assert_close(b.grad, d.grad)


def test_order_is_asymmetric_and_cosine_is_not():
    a, b = torch.tensor([[0.6, 0.8]]), torch.tensor([[0.0, 1.0]])
    assert order_scores(a, b) != order_scores(b, a)
    assert cosine_scores(a, b) == cosine_scores(b, a)
    assert set(TRAINING) == set(RANKING)


def test_folds_are_equal_consecutive_and_averaged():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(12), 5)
    images, captions = (torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32)) for n in (12, 60))
    folds = ranks_of_folds(cosine_scores, images, captions, folds_of(owner, 12, Protocol(folds=3)))
    assert len(folds) == 3
    parts = []
    for k in range(3):
        scores = (images[4 * k : 4 * k + 4] @ captions[20 * k : 20 * k + 20].T).numpy()
        image_to_text, text_to_image = brute_force(scores, owner[:20])
        assert folds[k].image_to_text.tolist() == image_to_text
        assert folds[k].text_to_image.tolist() == text_to_image
        parts.append(metrics_of(folds[k]))
    average = metrics_of_folds(folds)
    assert average == mean_of(parts)
    assert average["text_to_image"]["R@1"] == pytest.approx(np.mean([p["text_to_image"]["R@1"] for p in parts]))


@pytest.mark.parametrize(
    ("dataset", "split", "images", "protocol", "name"),
    [
        ("coco", "test", 5000, Protocol(5, 0), "1K, 5 folds, all captions"),
        ("coco", "test", 5000, Protocol(1, 1), "5K, 1 caption an image"),
        ("coco", "test", 1500, Protocol(1, 5), "test 1500"),
        ("coco", "test", 3000, Protocol(2, 5), "test 1500, 2 folds"),
        ("coco", "val", 5000, Protocol(1, 5), "val 5000"),
        ("flickr8k", "test", 1000, Protocol(1, 5), "test 1000"),
        ("flickr30k", "test", 1000, Protocol(2, 5), "test 500, 2 folds"),
        ("flickr30k", "val", 1000, Protocol(1, 0), "val 1000"),
        ("flickr30k", "test", 1000, Protocol(1, 2), "test 1000, 2 captions an image"),
        ("scenes", "test", 200, Protocol(1, 0), "test 200"),
        ("scenes", "test", 200, Protocol(1, 5), "test 200, 5 captions an image"),
    ],
)
def test_a_protocol_is_named_as_papers_do(dataset, split, images, protocol, name):
    assert protocol_name(protocol, dataset, split, images) == name


def test_folds_that_are_not_equal_are_an_error():
    with pytest.raises(ValueError, match="4 images do not divide into 3"):
        folds_of(np.arange(4), 4, Protocol(folds=3))


def test_first_captions_keeps_the_first_of_each_image():
    owner = np.array([0, 1, 0, 0, 1, 2])
    assert first_captions(owner, 2).tolist() == [0, 1, 2, 4, 5]
    assert first_captions(owner, 0).tolist() == [0, 1, 2, 3, 4, 5]


def test_protocols_and_their_names():
    assert [protocol_name(p, "coco", "test", 5000) for p in protocols_for("coco", "test", 5000, None)] == [
        "1K, 5 folds",
        "5K",
    ]
    assert all(p.captions == 5 for p in protocols_for("coco", "test", 5000, None))
    (protocol,) = protocols_for("flickr8k", "test", 1000, None)
    assert protocol == Protocol(1, 0)
    assert protocol_name(protocol, "flickr8k", "test", 1000) == "test 1000"
    assert Protocol() == Protocol(1, 0) == protocols_for("flickr8k", "test", 1000, 1)[0]
    assert protocols_for("coco", "val", 1000, None) == (Protocol(1, 5),)
    assert protocols_for("flickr30k", "test", 5000, None) == (Protocol(1, 0),)
    assert protocols_for("coco", "test", 5000, 5, captions=0) == (Protocol(5, 0),)
    with pytest.raises(ValueError, match="`captions_per_image` -1"):
        protocols_for("coco", "test", 5000, None, captions=-1)
    with pytest.raises(ValueError, match="`folds` 3"):
        protocols_for("flickr8k", "test", 1000, 3)
    with pytest.raises(ValueError, match="`folds` 0"):
        protocols_for("flickr8k", "test", 1000, 0)
