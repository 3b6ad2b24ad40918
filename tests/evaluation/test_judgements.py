"""Human judgements: Kendall's τ against its definition, the files of Flickr8k, a run against both, and bad input."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.judgements import (
    CROWDFLOWER,
    EXPERT,
    MEASURES,
    captions_by_key,
    correlate,
    judge,
    note_of,
    read_crowdflower,
    read_expert,
)
from evaluation.splits import EmbeddedSplit
from features.prepared import Split
from features.text.vocabulary import Vocabulary
from tests.helpers import FLICKR8K
from utils import BadInput

# Image a with its own caption, then with those of b and c; image b with those of a and c.
EXPERT_LINES = [
    ("a.jpg", "a.jpg#0", "4", "4", "4"),
    ("a.jpg", "b.jpg#1", "1", "2", "1"),
    ("a.jpg", "c.jpg#0", "3", "3", "4"),
    ("b.jpg", "a.jpg#1", "1", "1", "1"),
    ("b.jpg", "c.jpg#0", "2", "1", "2"),
]
CROWD_LINES = [
    ("a.jpg", "a.jpg#0", "1", "3", "0"),
    ("a.jpg", "b.jpg#1", "0.333333333333333", "1", "2"),
    ("b.jpg", "c.jpg#0", "0.333333333333333", "2", "4"),
]


def write(folder, expert=EXPERT_LINES, crowd=CROWD_LINES):
    for name, lines in ((EXPERT, expert), (CROWDFLOWER, crowd)):
        (folder / name).write_text("".join("\t".join(line) + "\n" for line in lines))
    return folder


def plain_tau(x, y, variant):
    """Kendall's τ as it is defined, over all pairs of observations."""
    n, agree, tied_x, tied_y = len(x), 0, 0, 0
    for i in range(n):
        for j in range(i):
            agree += np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
            tied_x += x[i] == x[j]
            tied_y += y[i] == y[j]
    if variant == "c":
        m = min(len(set(x)), len(set(y)))
        return 2 * agree / (n * n * (m - 1) / m)
    pairs = n * (n - 1) / 2
    return agree / np.sqrt((pairs - tied_x) * (pairs - tied_y))


@pytest.mark.parametrize("variant", ["b", "c"])
@pytest.mark.parametrize("levels", [3, 1000])
def test_kendall_is_its_definition(variant, levels):
    random = np.random.default_rng(levels)
    scores = random.integers(0, levels, 40) / 7
    ratings = random.integers(1, 5, (40, 3)).astype(float)
    long = [(scores[i], ratings[i, j]) for i in range(40) for j in range(3)]
    x, y = zip(*long, strict=True)
    assert correlate(scores, ratings, variant) == pytest.approx(100 * plain_tau(x, y, variant))


def test_kendall_of_perfect_opposite_and_collapsed_scores():
    ratings = np.array([[1.0], [2.0], [3.0], [4.0]])
    rising = np.array([0.1, 0.2, 0.3, 0.4])
    assert correlate(rising, ratings, "c") == pytest.approx(100)
    assert correlate(-rising, ratings, "b") == pytest.approx(-100)
    assert correlate(np.zeros(4), ratings, "b") is None
    assert correlate(np.zeros(4), ratings, "c") is None


def test_experts_without_a_caption_of_the_image_itself(tmp_path):
    found = read_expert(write(tmp_path))
    assert found.images.tolist() == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]
    assert found.captions.tolist() == ["b.jpg#1", "c.jpg#0", "a.jpg#1", "c.jpg#0"]
    assert found.caption_images().tolist() == ["b.jpg", "c.jpg", "a.jpg", "c.jpg"]
    assert found.ratings.tolist() == [[1, 2, 1], [3, 3, 4], [1, 1, 1], [2, 1, 2]]


def test_crowdflower_keeps_every_pair_and_equal_fractions_are_equal_numbers(tmp_path):
    found = read_crowdflower(write(tmp_path))
    assert len(found) == 3
    assert found.ratings[:, 0].tolist() == [1, 1 / 3, 1 / 3]


def test_windows_lines_and_blank_ones(tmp_path):
    write(tmp_path)
    (tmp_path / EXPERT).write_bytes((tmp_path / EXPERT).read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read_expert(tmp_path).ratings[-1].tolist() == [2, 1, 2]


def fake_prepared(train=()):
    rows = [
        {"image": name, "split": "train" if name in train else "test", "captions": [f"{name} one", f"{name} two"]}
        for name in ("b.jpg", "a.jpg", "c.jpg")
    ]
    angles = {"a.jpg": 0.0, "b.jpg": 0.5, "c.jpg": 0.9}

    def features_of(ids, features, normalize):
        return np.array([[np.cos(angles[i]), np.sin(angles[i])] for i in ids])

    return SimpleNamespace(rows=rows, folder=Path("data/made_up"), name="made_up", features_of=features_of)


def fake_run(similarity="cosine"):
    """Images are embedded as their features; captions at an angle that their image's letter and number give."""

    def embed_sentences(sentences, check):
        places = {"a.jpg one": 0.05, "a.jpg two": 1.5, "b.jpg two": 1.2, "c.jpg one": 0.3}
        return np.array([[np.cos(places[text]), np.sin(places[text])] for text in sentences], np.float32)

    settings = SimpleNamespace(similarity=similarity, image=SimpleNamespace(normalize=True))
    info = SimpleNamespace(features=("made_up",))
    return SimpleNamespace(settings=settings, info=info, embed_features=lambda x: x, embed_sentences=embed_sentences)


def judged(folder, similarity="cosine", train=(), rows=None):
    """What `judge` says of the run and the judgements in `folder`; every judged pair is of another split."""
    run: Any = fake_run(similarity)
    prepared: Any = fake_prepared(train)
    prepared.rows = rows or prepared.rows
    split = Split("val", [], [], np.empty(0, np.int64), np.empty((0, 2)))
    embedded = EmbeddedSplit(run, prepared, split, torch.empty(0, 2), torch.empty(0, 2))
    return {name: judge(prepared, embedded.scores_of, read(folder)) for name, read in MEASURES.items()}


def test_a_run_is_judged_pair_by_pair(tmp_path):
    found = judged(write(tmp_path))
    scores = np.cos([1.2, 0.3, 1.5 - 0.5, 0.5 - 0.3])
    x, y = np.repeat(scores, 3), [1, 2, 1, 3, 3, 4, 1, 1, 1, 2, 1, 2]
    assert found["expert"].tau == pytest.approx(100 * plain_tau(x, y, "c"))
    crowd = plain_tau(np.cos([0.05, 1.2, 0.2]), [1, 1 / 3, 1 / 3], "b")
    assert found["crowdflower"].tau == pytest.approx(100 * crowd)
    assert {key: getattr(found["expert"], key) for key in ("variant", "pairs", "ratings", "left_out")} == {
        "variant": "c",
        "pairs": 4,
        "ratings": 12,
        "left_out": 0,
    }
    assert "no image or caption of them was seen in training" in note_of(found)


def test_pairs_that_are_not_there_are_left_out_and_counted(tmp_path):
    more = [("z.jpg", "a.jpg#0", "1", "1", "1"), ("a.jpg", "z.jpg#0", "1", "1", "1"), ("a.jpg", "b.jpg#7", *"111")]
    found = judged(write(tmp_path, [*EXPERT_LINES, *more]))
    assert (found["expert"].pairs, found["expert"].left_out) == (4, 3)
    assert "3 pairs left out" in note_of(found)


def test_what_training_saw_is_said(tmp_path):
    found = judged(write(tmp_path), "order", train=("b.jpg",))
    assert (found["expert"].images_seen, found["expert"].captions_seen) == (2, 1)
    assert "the image of 2 and the caption of 1 of them seen in training" in note_of(found)


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (EXPERT, "a.jpg\tb.jpg#0\t1\t2", "line 6 is not image, caption (image.jpg#0) and three ratings from 1 to 4"),
        (EXPERT, "a.jpg\tb.jpg#0\t1\t2\t5", "line 6"),
        (EXPERT, "a.jpg\tb.jpg\t1\t2\t3", "line 6"),
        (CROWDFLOWER, "a.jpg\tb.jpg#0\tnan\t1\t2", "line 4 is not image, caption (image.jpg#0) and fraction of yeses"),
        (CROWDFLOWER, "a.jpg\tb.jpg#0\t0.5\t1\t2", "line 4"),
        (CROWDFLOWER, "a.jpg\tb.jpg#0\t0\t0\t0", "line 4"),
        (CROWDFLOWER, "a.jpg\tb.jpg#0\tyes\t1\t2", "line 4"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, name, line, said):
    write(tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text() + line + "\n")
    with pytest.raises(BadInput) as error:
        judged(tmp_path)
    assert str(tmp_path / name) in str(error.value)
    assert said in str(error.value)
    assert "again" in str(error.value)


def test_missing_folder_and_files_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere: no such folder; point `judgements`"):
        read_expert(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"CrowdFlowerAnnotations.txt: no such file; point `judgements`"):
        read_crowdflower(tmp_path)


def test_a_dataset_without_a_single_judged_pair_is_refused(tmp_path):
    rows = [{"image": "other.jpg", "split": "test", "captions": ["one"]}]
    with pytest.raises(BadInput, match=r"none of its images and captions is in data/made_up, which holds made_up"):
        judged(write(tmp_path), rows=rows)


@pytest.mark.skipif(not (FLICKR8K / EXPERT).is_file(), reason="the judgements of Flickr8k are not there")
def test_the_real_files():
    expert, crowd = read_expert(FLICKR8K), read_crowdflower(FLICKR8K)
    assert (len(expert), expert.ratings.size, len(crowd)) == (5664, 16992, 47830)
    assert len(set(expert.images.tolist())) == len(set(crowd.images.tolist())) == 1000
    test_split = set((FLICKR8K / "Flickr_8k.testImages.txt").read_text().split())
    for found in (expert, crowd):
        assert set(found.images.tolist()) | set(found.caption_images().tolist()) <= test_split


def test_captions_are_numbered_as_in_the_file(tmp_path):
    """From the original files through the prepared folder to the text that was judged."""
    from features.datasets.readers import read
    from features.prepared import Prepared, write_prepared

    keys = [f"{image}.jpg#{n}" for image in "abc" for n in range(3)]
    (tmp_path / "Flickr8k.token.txt").write_text("".join(f"{key}\tcaption {key}\n" for key in keys))
    for split, image in (("train", "c"), ("dev", "b"), ("test", "a")):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text(f"{image}.jpg\n")
    (tmp_path / "data").mkdir()
    write_prepared(tmp_path / "data", read("flickr8k", tmp_path, None), None, Vocabulary.build(["caption"]))
    assert captions_by_key(Prepared(tmp_path / "data")) == {key: f"caption {key}" for key in keys}
