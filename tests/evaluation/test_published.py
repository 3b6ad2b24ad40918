"""What is published: every fact whole and once, those of a protocol together, and the strongest among them."""

import json

import pytest

from evaluation.published import PUBLISHED, published_rows
from metrics.ranks import COLUMNS, CUTOFFS, DIRECTIONS

FACTS = json.loads(PUBLISHED.read_text())
COUNTS = {
    ("flickr8k", "test 1000"): 16,
    ("flickr30k", "test 1000"): 20,
    ("coco", "1K, 5 folds"): 9,
    ("coco", "5K"): 10,
}
KEYS = {"dataset", "protocol", "model", "image_features", "image_to_text", "text_to_image", "source"}


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact['dataset']} {fact['protocol']} {fact['model']}")
def test_a_fact_is_whole(fact):
    assert set(fact) == KEYS
    assert all(fact[key] == fact[key].strip() != "" for key in ("model", "image_features", "source"))
    assert set(fact["image_to_text"]) == set(fact["text_to_image"])
    for way in DIRECTIONS:
        figures = fact[way]
        assert {"R@1"} <= set(figures) <= set(COLUMNS)
        recalls = [figures[f"R@{k}"] for k in CUTOFFS if f"R@{k}" in figures]
        assert recalls == sorted(recalls)
        assert all(0 < recall < 100 and round(recall, 1) == recall for recall in recalls), "as printed"
        assert all(figures[column] >= 1 for column in figures if column.endswith("rank"))


def test_no_fact_stands_twice_and_those_of_one_protocol_stand_together():
    assert {key: len(published_rows(*key)) for key in COUNTS} == COUNTS
    assert sum(COUNTS.values()) == len(FACTS)
    names = [tuple(fact[key] for key in ("dataset", "protocol", "model", "image_features")) for fact in FACTS]
    assert len(set(names)) == len(names)
    figures = [json.dumps([fact["dataset"], fact["protocol"], *(fact[way] for way in DIRECTIONS)]) for fact in FACTS]
    assert len(set(figures)) == len(figures)
    groups = [name[:2] for name in names]
    assert list(dict.fromkeys(groups)) == list(COUNTS)
    assert groups == sorted(groups, key=list(COUNTS).index)
    assert published_rows("flickr8k", "val 1000") == []


def test_the_sum_of_recalls_needs_all_six():
    rows = {row.run: row for row in published_rows("flickr8k", "test 1000")}
    assert rows["2WayNet"].rsum is None, "no R@10 was published"
    assert rows["UVS (paper)"].rsum == pytest.approx(18.0 + 40.9 + 55.0 + 12.5 + 37.0 + 51.5)


def test_no_table_flatters():
    """The strongest of Flickr8k stands in it, and on the others what is trained on far more pairs."""
    rsums = {row.run: row.rsum for row in published_rows("flickr8k", "test 1000")}
    assert rsums["NAA"] == pytest.approx(343.5), "the strongest global embedding"
    assert rsums["SCAN (ensemble, cross attention)"] == pytest.approx(407.4)
    assert max(rsums, key=lambda name: rsums[name] or 0) == "IMRAM (cross attention)"
    for dataset, protocol in [("flickr30k", "test 1000"), ("coco", "5K")]:
        rows = {row.run: row for row in published_rows(dataset, protocol)}
        for name in ("SAIL-L (GTE), zero-shot", "SAIL-L (NV-Embed-v2), zero-shot"):
            assert rows[name].image_features == "frozen DINOv2-L, 23M pairs"
        assert rows["CLIP ViT-B/32 (OpenAI), zero-shot"].rsum
        assert max(rows, key=lambda name: rows[name].rsum or 0) == "SigLIP SO400M/14-384, zero-shot"
