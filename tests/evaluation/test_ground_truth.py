"""COCO's other ground truths: the figures of the package's own code, on made-up embeddings with its ids."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.comparison import ProtocolResult, compare
from evaluation.gallery import Gallery
from evaluation.ground_truth import TITLES, ground_truth_folds
from evaluation.groups import Group
from evaluation.ranking import Ranked, ranks_together
from metrics.positions import Truth
from metrics.ranks import DIRECTIONS
from utils import BadInput

OUTSIDE = ((575916, 144675), (421999, 467259))  # pairs with captions that are none of the 25,000
DEPTH = 120  # more than any query has true items


@pytest.fixture(scope="module")
def package():
    eccv_caption = pytest.importorskip("eccv_caption")
    return eccv_caption.Metrics()


@pytest.fixture(scope="module")
def coco(package):
    """COCO's images and captions in Karpathy's order, and embeddings of four dimensions."""
    captions = package.coco_ids.tolist()
    images = list(dict.fromkeys(package.coco_gts["t2i"][caption][0] for caption in captions))
    owner = np.repeat(np.arange(5000), 5)
    random = np.random.default_rng(0)
    of_images = random.normal(size=(5000, 4))
    both = of_images, of_images[owner] + 0.1 * random.normal(size=(25000, 4))
    sides = [torch.nn.functional.normalize(torch.from_numpy(side.astype(np.float32)), dim=1) for side in both]
    return images, captions, owner, sides


def gallery(coco, by_number=False):
    images, captions, owner, _ = coco
    names = [f"COCO_val2014_{image:012}.jpg" for image in images]
    ids = [f"{names[image]}#{row % 5}" for row, image in enumerate(owner)] if by_number else list(map(str, captions))
    return Gallery("coco", "test", names, ids, ids, owner, Truth.of(owner))


def test_figures_are_those_of_the_package(package, coco):
    images, captions, _, sides = coco
    scores = sides[0] @ sides[1].T
    of_images, of_captions = (np.array(ids) for ids in (images, captions))
    i2t = dict(zip(images, of_captions[scores.topk(DEPTH, dim=1).indices.numpy()].tolist(), strict=True))
    t2i = dict(zip(captions, of_images[scores.topk(DEPTH, dim=0).indices.T.numpy()].tolist(), strict=True))
    for image, caption in OUTSIDE:
        package.eccv_gts["i2t"][image].remove(caption)
    wanted = ("eccv_r1", "eccv_map_at_r", "eccv_rprecision", "cxc_recalls")
    expected = package.compute_all_metrics(i2t, t2i, target_metrics=wanted)
    folds = ground_truth_folds(gallery(coco), ["eccv", "cxc"])
    rows = {}
    for name, fold in folds.items():
        result = ProtocolResult("coco", "test", name, [fold], {}, ("map", "rprecision"))
        result.ranks[(Path("a"),), None] = ranks_together([Ranked("cosine", *sides)], [fold], None)
        (rows[name],) = compare([Group("a", None, None, (Path("a"),), ())], result)
    eccv, cxc = (rows[TITLES[name]] for name in ("eccv", "cxc"))
    assert eccv.more is not None
    assert (eccv.queries, cxc.queries) == ((1261, 1332), (5000, 24972))
    for direction, short in zip(DIRECTIONS, ("i2t", "t2i"), strict=True):
        assert getattr(eccv, direction)["R@1"] == pytest.approx(100 * expected["eccv_r1"][short])
        assert eccv.more[direction]["mAP@R"].mean == pytest.approx(100 * expected["eccv_map_at_r"][short])
        assert eccv.more[direction]["R-precision"].mean == pytest.approx(100 * expected["eccv_rprecision"][short])
        low, high = eccv.more[direction]["mAP@R"].interval
        assert low < eccv.more[direction]["mAP@R"].mean < high
        for k in (1, 5, 10):
            assert getattr(cxc, direction)[f"R@{k}"] == pytest.approx(100 * expected[f"cxc_r{k}"][short])


def test_captions_are_known_by_their_number_among_those_of_their_image(coco):
    one, other = (
        ground_truth_folds(gallery(coco, by_number), ["eccv"])[TITLES["eccv"]].truth for by_number in (False, True)
    )
    assert one is not None
    assert other is not None
    for side, same in zip(one.both, other.both, strict=True):
        assert np.array_equal(side, same)


def test_other_images_are_refused(package):
    few = Gallery("coco", "test", ["1.jpg"], ["a"], ["1.jpg#0"], np.array([0]), Truth.of(np.array([0])))
    with pytest.raises(
        BadInput, match=r"`ground_truth` eccv: stands for COCO's 5,000 test images .* image 391895; .* 1 i"
    ):
        ground_truth_folds(few, ["eccv"])


def test_without_the_package_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("evaluation.ground_truth.PACKAGE", "not_installed_here")
    nothing = Gallery("coco", "test", [], [], [], np.empty(0, np.int64), Truth.of(np.empty(0, np.int64)))
    assert ground_truth_folds(nothing, []) == {}
    with pytest.raises(BadInput, match="pip install not_installed_here"):
        ground_truth_folds(nothing, ["cxc"])
