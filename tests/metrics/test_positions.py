"""Positions of all true items against plain loops with ties; their metrics against loops and independent libraries."""

import numpy as np
import pytest
import torch

from metrics.positions import METRICS, Positions, Truth, metric_columns, ndcg, positions_by_block
from metrics.protocols import Fold, Protocol, folds_of, ranks_of_fold, ranks_of_folds
from metrics.ranks import DIRECTIONS, ranks_of
from metrics.similarity import RANKING


def look_up(scores):
    """A similarity that reads scores: embeddings are row numbers."""
    return lambda images, captions: scores[images[:, 0].long()][:, captions[:, 0].long()]


def numbered(count):
    return torch.arange(float(count))[:, None]


def positions(scores, truth, block=3):
    return positions_by_block(look_up(scores), numbered(len(scores)), numbered(scores.shape[1]), truth, block)


def plain_positions(scores, pairs, direction):
    """Query → positions of its true items: sorted, those that are not true before their equals."""
    axis, found = DIRECTIONS.index(direction), {}
    for query in sorted(set(pairs[:, axis].tolist())):
        true = set(pairs[pairs[:, axis] == query][:, 1 - axis].tolist())
        row = (scores[query] if axis == 0 else scores[:, query]).tolist()
        order = sorted(range(len(row)), key=lambda item: (-row[item], item in true))
        found[query] = [place for place, item in enumerate(order, 1) if item in true]
    return found


def random_truth(random, images, captions):
    """Many to many, other pairs in each direction, in no order; some images and captions have none."""
    one, other = (np.argwhere(random.random((images, captions)) < 0.25) for _ in DIRECTIONS)
    return Truth(random.permutation(one), random.permutation(other))


@pytest.mark.parametrize("seed", range(30))
def test_positions_equal_plain_loops_with_ties(seed, monkeypatch):
    monkeypatch.setattr("metrics.positions.COMPARISONS_PER_BLOCK", 20)  # several parts of a block
    random = np.random.default_rng(seed)
    images, captions = random.integers(3, 10, 2).tolist()
    scores = torch.from_numpy(random.integers(0, 4, (images, captions)).astype(np.float32))
    scores[torch.from_numpy(random.random((images, captions)) < 0.1)] = -torch.inf  # what a TREC run leaves out
    truth = random_truth(random, images, captions)
    for direction, found in positions(scores, truth).items():
        expected = plain_positions(scores, getattr(truth, direction), direction)
        assert found.queries.tolist() == list(expected)
        assert [found.position[found.query == n].tolist() for n in range(len(expected))] == list(expected.values())


def test_not_a_number_stands_last_if_true_and_first_if_not():
    scores = torch.tensor([[0.5, torch.nan, 0.1, torch.nan]])
    truth = Truth(np.array([[0, 0], [0, 1]]), np.array([[0, 0]]))
    assert positions(scores, truth)["image_to_text"].position.tolist() == [2, 4]


@pytest.mark.parametrize("block", [1, 7, 50])
def test_ranks_of_one_image_a_caption_are_the_usual_ones(block):
    random = np.random.default_rng(block)
    owner = random.permutation(np.repeat(np.arange(23), random.integers(1, 8, 23)))
    scores = torch.from_numpy(random.integers(0, 12, (23, len(owner))).astype(np.float32))
    both, ranks = positions(scores, Truth.of(owner), block), ranks_of(scores, owner)
    for direction in DIRECTIONS:
        assert both[direction].first.tolist() == getattr(ranks, direction).tolist()


@pytest.mark.parametrize("similarity", RANKING)
def test_folds_with_positions_have_the_ranks_of_folds_without(similarity):
    random = np.random.default_rng(1)
    owner = np.repeat(np.arange(12), random.integers(1, 5, 12))
    images, captions = (torch.rand(n, 5, generator=torch.Generator().manual_seed(n)) for n in (12, len(owner)))
    images, captions = (torch.nn.functional.normalize(side, dim=1) for side in (images, captions))
    protocol = Protocol(folds=3, captions=2)
    plain = ranks_of_folds(RANKING[similarity], images, captions, folds_of(owner, 12, protocol))
    folds = folds_of(owner, 12, protocol, Truth.of(owner))
    for fold, one, other in zip(
        folds, plain, ranks_of_folds(RANKING[similarity], images, captions, folds), strict=True
    ):
        for direction in DIRECTIONS:
            assert getattr(one, direction).tolist() == getattr(other, direction).tolist()
            assert fold.images_of_queries(one)[direction].tolist() == fold.images_of_queries(other)[direction].tolist()


def test_captions_of_several_images_or_none():
    """By hand: caption 0 is of both images, caption 2 of none and yet in the gallery."""
    truth = Truth(np.array([[0, 0], [1, 0], [1, 1]]), np.array([[0, 0], [1, 0], [1, 1]]))
    scores = torch.tensor([[0.5, 0.4, 0.9], [0.7, 0.1, 0.2]])
    fold = Fold(0, 2, np.arange(3), np.array([0, 1, -1]), truth)
    ranks = ranks_of_fold(look_up(scores), numbered(2), numbered(3), fold)
    assert ranks.image_to_text.tolist() == [2, 1]
    assert ranks.text_to_image.tolist() == [1, 2]
    assert fold.images_of_queries(ranks)["text_to_image"].tolist() == [0, 1]


def plain_metrics(places, gallery):
    """One query's metrics from a list of 0 and 1, best first."""
    row, count = [place in places for place in range(1, gallery + 1)], len(places)
    gains = [hit / np.log2(1 + place) for place, hit in enumerate(row, 1)]
    ideal = sum(1 / np.log2(1 + place) for place in range(1, min(count, 10) + 1))
    return {
        **{f"recall@{k}": sum(row[:k]) / count for k in (1, 5, 10)},
        "nDCG@10": sum(gains[:10]) / ideal,
        "mAP@R": sum(sum(row[: n + 1]) / (n + 1) for n in range(count) if row[n]) / count,
        "R-precision": sum(row[:count]) / count,
    }


@pytest.fixture(scope="module")
def measured():
    """Scores without ties, and each metric of each query, by direction."""
    random = np.random.default_rng(4)
    scores = torch.from_numpy(random.permutation(40 * 60).reshape(40, 60).astype(np.float32))
    truth = random_truth(random, 40, 60)
    both = positions(scores, truth, 16)
    columns = metric_columns([*METRICS])
    return scores, truth, both, {d: {name: one(both[d]) for name, one in columns.items()} for d in DIRECTIONS}


def test_metrics_equal_plain_loops(measured):
    scores, truth, _, values = measured
    for direction, columns in values.items():
        gallery = scores.shape[direction == "image_to_text"]
        places = plain_positions(scores, getattr(truth, direction), direction).values()
        expected = [plain_metrics(set(one), gallery) for one in places]
        assert set(columns) == set(expected[0])
        for name, column in columns.items():
            assert column == pytest.approx([one[name] for one in expected]), name


def test_metrics_equal_torchmetrics_and_scikit_learn(measured):
    from sklearn.metrics import ndcg_score
    from torchmetrics.functional.retrieval import retrieval_r_precision, retrieval_recall

    scores, truth, both, values = measured
    for direction, columns in values.items():
        flip = direction == "text_to_image"
        true = torch.zeros(scores.shape, dtype=torch.bool)
        true[tuple(torch.from_numpy(getattr(truth, direction).T))] = True
        rows, relevant = (scores.T, true.T) if flip else (scores, true)
        for place, query in enumerate(both[direction].queries.tolist()):
            row, relevance = rows[query], relevant[query]
            for k in (1, 5, 10):
                assert columns[f"recall@{k}"][place] == pytest.approx(float(retrieval_recall(row, relevance, top_k=k)))
            assert columns["R-precision"][place] == pytest.approx(float(retrieval_r_precision(row, relevance)))
            expected = ndcg_score(relevance[None].numpy(), row[None].numpy(), k=10)
            assert columns["nDCG@10"][place] == pytest.approx(expected)


def test_metrics_equal_trec_eval(measured):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    scores, truth, both, values = measured
    qrels: dict[str, dict[str, int]] = {str(image): {} for image in both["image_to_text"].queries}
    for image, caption in truth.image_to_text.tolist():
        qrels[str(image)][str(caption)] = 1
    run = {q: {str(c): float(score) for c, score in enumerate(scores[int(q)].tolist())} for q in qrels}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"recall.1,5,10", "ndcg_cut.10", "Rprec"}).evaluate(run)
    names = {"recall_1": "recall@1", "recall_5": "recall@5", "recall_10": "recall@10", "ndcg_cut_10": "nDCG@10"}
    for theirs, mine in (*names.items(), ("Rprec", "R-precision")):
        expected = [found[str(query)][theirs] for query in both["image_to_text"].queries]
        assert values["image_to_text"][mine] == pytest.approx(expected), mine


def test_a_perfect_and_a_collapsed_model():
    owner = np.repeat(np.arange(20), 3)
    perfect = torch.from_numpy((owner[None] == np.arange(20)[:, None]).astype(np.float32))
    for scores, value in ((perfect, 1.0), (torch.zeros_like(perfect), 0.0)):
        for one in positions(scores, Truth.of(owner)).values():
            for name, metric in metric_columns([*METRICS]).items():
                if not name.startswith("recall@") or name == "recall@10":
                    assert (metric(one) == value).all(), name


def test_ndcg_of_more_true_items_than_places():
    one = Positions(np.array([0]), np.zeros(12, np.int64), np.arange(1, 13))
    assert ndcg(one).tolist() == [1.0]
