"""Corrected indexes give the order of the corrected score matrix; builds keep, change and drop a correction."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.torch
import torch

import search as search_script
from metrics.correction import Bank, Parameters, Retrieval, biases
from metrics.similarity import RANKING
from retrieval.build import build_index
from retrieval.correction import BY_A_BIAS, Corrector, check_correction
from retrieval.index import Index
from retrieval.searcher import Searcher
from tests.helpers import FakeRun, call, paint
from training import bank
from utils import BadInput

PARAMETERS = Parameters(beta=20.0, gallery_beta=5.0, k=4, alpha=0.75)
SENTENCES = ["a red house", "a dog", "a cat and a dog"]


@pytest.fixture(params=["cosine", "order"])
def run(request, tmp_path):
    """Fourteen images, two of them the same, three captions, and a run with a bank."""
    for number in range(13):
        paint(tmp_path / "images" / f"{number:02d}.png", number)
    paint(tmp_path / "images" / "99.png", 3)
    (tmp_path / "captions.txt").write_text("\n".join(SENTENCES))
    return with_bank(FakeRun(tmp_path, request.param))


def with_bank(run):
    rng = np.random.default_rng(1)
    dim = run.settings.embed_dim
    chosen = {way: {name: asdict(PARAMETERS) for name in BY_A_BIAS} for way in ("text_to_image", "image_to_text")}
    tensors = {
        "images": torch.from_numpy(run.unit(rng.normal(size=(9, dim)))).half(),
        "captions": torch.from_numpy(run.unit(rng.normal(size=(11, dim)))).half(),
        "image_keys": torch.arange(9),
        "caption_keys": torch.arange(11),
    }
    run.folder.mkdir(exist_ok=True)
    header = {"about": json.dumps({"chosen": {"train": chosen, "test": chosen}, "calibration": None})}
    (run.folder / bank.BANK).write_bytes(safetensors.torch.save(tensors, header))
    return run


def build(run, tmp_path, **more):
    return build_index(run, [tmp_path / "images"], tmp_path / "index", captions=tmp_path / "captions.txt", **more)


def corrected_scores(run, name, direction, images, captions):
    """The score matrix of all images with all captions, less the bias of each item: (items, queries)."""
    held = bank.read_bank(run.folder)
    assert held is not None
    way = Retrieval(run.similarity, direction)
    images, captions = torch.from_numpy(np.array(images)), torch.from_numpy(np.array(captions))
    bank_images, bank_captions = torch.from_numpy(held.images), torch.from_numpy(held.captions)
    items, one = (images, bank_captions) if direction == "text_to_image" else (captions, bank_images)
    other = bank_images if direction == "text_to_image" else bank_captions
    scores = RANKING[run.similarity](images, captions)
    scores = scores if direction == "text_to_image" else scores.T
    return (scores - biases(name, PARAMETERS, way, items, Bank(one, other))[:, None]).numpy()


def order_of(scores):
    """Rows, the largest first; what differs by a rounding is equal, and stands by row."""
    return sorted(range(len(scores)), key=lambda row: (-round(float(scores[row]), 5), row))


@pytest.mark.parametrize("name", BY_A_BIAS)
def test_a_corrected_index_gives_the_order_of_the_corrected_scores(run, tmp_path, name):
    build(run, tmp_path)
    plain = Searcher.open(tmp_path / "index", run)
    images, captions = np.array(plain.index.embeddings), np.array(plain.index.caption_embeddings)
    assert build(run, tmp_path, correction=name).correction == name
    searcher = Searcher.open(tmp_path / "index", run)
    ids, texts = list(searcher.index.ids), list(searcher.index.captions)
    moved = 0
    for sentence in SENTENCES:
        query = run.embed_sentences([sentence])
        scores = corrected_scores(run, name, "text_to_image", images, query)[:, 0]
        found = searcher.search(sentence, 20)
        assert [image for image, _ in found] == [ids[row] for row in order_of(scores)]
        assert [score for _, score in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
        assert [searcher.rank_of(sentence, image) for image, _ in found] == list(range(1, 15))
        assert [searcher.score_of(sentence, image) for image, _ in found] == [score for _, score in found]
        moved += [image for image, _ in found] != [image for image, _ in plain.search(sentence, 20)]
    assert moved, "a correction that moves nothing shows nothing"
    scores = corrected_scores(run, name, "image_to_text", images[:1], captions)[:, 0]
    file = tmp_path / "images/00.png"
    found = searcher.search_image(file, 9)
    assert [caption for caption, _ in found] == [texts[row] for row in order_of(scores)]
    assert [score for _, score in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert searcher.captions_of(searcher.embed_image(file), 9, texts) == found, "captions of the moment, too"


def test_similar_images_are_not_corrected(run, tmp_path):
    build(run, tmp_path)
    plain = Searcher.open(tmp_path / "index", run).similar_to("05.png")
    build(run, tmp_path, correction="nnn")
    assert Searcher.open(tmp_path / "index", run).similar_to("05.png") == plain


def test_a_build_keeps_changes_and_drops_a_correction_without_embedding_again(run, tmp_path):
    build(run, tmp_path)
    plain, embedded = Index.open(tmp_path / "index"), len(run.embedded)
    build(run, tmp_path, correction="nnn")
    first = Index.open(tmp_path / "index")
    assert first.embeddings.shape == (14, plain.meta.dim + 1)
    np.testing.assert_array_equal(first.embeddings[:, :-1], plain.embeddings)
    assert build(run, tmp_path).correction == "nnn"
    assert Index.open(tmp_path / "index").meta == first.meta, "nothing to do"
    paint(tmp_path / "images/50.png", 50)
    assert build(run, tmp_path).new == 1
    more = Index.open(tmp_path / "index")
    held = Corrector.of_run(run, "nnn")
    np.testing.assert_allclose(more.embeddings, held.rows(more.embeddings[:, :-1], "text_to_image"), atol=1e-6)
    np.testing.assert_array_equal(more.caption_embeddings, first.caption_embeddings)
    build(run, tmp_path, correction="db_norm")
    other = Index.open(tmp_path / "index")
    assert not np.allclose(other.embeddings[:, -1], more.embeddings[:, -1])
    assert not np.allclose(other.caption_embeddings[:, -1], more.caption_embeddings[:, -1])
    assert build(run, tmp_path, correction="none").correction is None
    last = Index.open(tmp_path / "index")
    np.testing.assert_array_equal(last.embeddings, more.embeddings[:, :-1])
    np.testing.assert_array_equal(last.caption_embeddings, plain.caption_embeddings)
    assert len(run.embedded) == embedded + 1


def test_a_graph_finds_corrected_scores(tmp_path):
    pytest.importorskip("faiss")
    for number in range(40):
        paint(tmp_path / "images" / f"{number:02d}.png", number)
    (tmp_path / "captions.txt").write_text("\n".join(SENTENCES))
    run = with_bank(FakeRun(tmp_path))
    built = build(run, tmp_path, correction="inverted_softmax", search="hnsw")
    assert built.approximate is not None
    assert built.approximate["recall@10"] == 1, "so few that all are looked at"
    near, exact = (Searcher.open(tmp_path / "index", run, exact=way) for way in (False, True))
    for sentence in SENTENCES:
        assert near.search(sentence, 5) == exact.search(sentence, 5)
    assert near.similar_to("05.png", 5) == exact.similar_to("05.png", 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [("qb_norm", "some queries only"), ("sinkhorn", "all queries at once"), ("nn", "did you mean nnn")],
)
def test_what_an_index_cannot_hold_is_refused(name, message):
    with pytest.raises(BadInput, match=message):
        check_correction(name)


def test_a_run_without_a_bank_is_named_before_anything_is_embedded(tmp_path):
    run = FakeRun(tmp_path)
    paint(tmp_path / "images/0.png", 0)
    (tmp_path / "captions.txt").write_text("a dog")
    with pytest.raises(BadInput, match=r"has no bank\.safetensors, which `correction` nnn needs"):
        build(run, tmp_path, correction="nnn")
    assert not run.embedded


def test_the_script_hands_the_correction_on(tmp_path, monkeypatch, capsys):
    run = with_bank(FakeRun(tmp_path))
    paint(tmp_path / "images/0.png", 0)
    monkeypatch.setattr("retrieval.commands.open_run", lambda *_: run)
    args = ["index", "--run", "run", tmp_path / "images", "--out", tmp_path / "index"]
    assert call(monkeypatch, search_script, *args, "--correction", "nnn") == 0
    assert capsys.readouterr().out.endswith("0 captions, corrected by nnn\n")
    assert call(monkeypatch, search_script, *args, "--correction", "hubness") == 2
    assert "no such correction" in capsys.readouterr().err
