"""Queries that add and subtract, against plain sums, in Python and by the command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import search
from retrieval.combination import add_up
from retrieval.searcher import Searcher
from tests.helpers import FakeRun, call
from utils import BadInput


def test_a_sum_by_hand():
    dog, snow, people = (np.eye(3, dtype=np.float32)[[n]] for n in range(3))
    (row,) = add_up("cosine", [dog, snow], [people])
    assert row.dtype == np.float32
    assert row.tolist() == pytest.approx([3**-0.5, 3**-0.5, -(3**-0.5)])
    assert add_up("cosine", [dog]).tolist() == dog.tolist()


def test_what_does_not_add_up():
    row = np.eye(1, 3, dtype=np.float32)
    for similarity, plus, minus, sentence in [
        ("order", [row], [], "similarity is order, not cosine"),
        ("cosine", [], [row], "nothing is asked for"),
        ("cosine", [row], [row], "the same"),
    ]:
        with pytest.raises(BadInput, match=sentence):
            add_up(similarity, plus, minus)


def near(pairs):
    """Ids and scores, which a sum of one embedding rounds anew."""
    return [(image, pytest.approx(score, abs=1e-5)) for image, score in pairs]


def combined_by_hand(searcher, plus, minus, k, without=None):
    """The k nearest of all images, by a loop over them."""
    query = sum(plus) - sum(minus)
    query = query[0] / np.linalg.norm(query)
    scores = {image: float(searcher.index.embedding(row)[0] @ query) for row, image in enumerate(searcher.index.ids)}
    scores.pop(without, None)
    return sorted(scores.items(), key=lambda pair: -pair[1])[:k]


def test_images_and_sentences_together(searcher, page_folder):
    image = searcher.index.embedding(searcher.row_of("3.png"))
    circle, red = searcher.embed_sentence("a circle"), searcher.embed_sentence("red")
    for like, sentence, minus, plus, without in [
        ("3.png", "a circle", ["red"], [image, circle], "3.png"),
        ("3.png", "", ["red"], [image], "3.png"),
        (page_folder / "images/3.png", "a circle", [], [image, circle], "3.png"),
        (image, "a circle", [], [image, circle], None),
        (None, "a circle", ["red"], [circle], None),
    ]:
        result = searcher.combined(sentence, like=like, minus=minus, k=5)
        wanted = combined_by_hand(searcher, plus, [red] if minus else [np.zeros_like(red)], 5, without)
        assert [score for _, score in result] == pytest.approx([score for _, score in wanted], abs=1e-5)
        assert without not in dict(result)
    assert searcher.combined(like="3.png", k=4) == near(searcher.similar_to("3.png", 4))
    assert searcher.combined("a circle", k=4) == near(searcher.search("a circle", 4))


def test_a_correction_is_one_of_sentences(tmp_path, searcher, page_folder):
    from retrieval.build import build_index

    build_index(searcher.run, [page_folder / "images"], tmp_path / "index", correction="inverted_softmax")
    corrected = Searcher.open(tmp_path / "index")
    assert corrected.combined("a circle", k=4) == near(corrected.search("a circle", 4))
    assert corrected.combined(like="3.png", k=4) == near(corrected.similar_to("3.png", 4))


def test_the_image_that_asks_is_known_by_its_file_or_its_content(page_folder, tmp_path):
    index = Searcher.open(page_folder / "odd.index").index
    for row, path in enumerate(index.paths):
        copy = tmp_path / f"{row}.png"
        copy.write_bytes(Path(path).read_bytes())
        assert index.row_of_file(path) == index.row_of_file(copy) == row
    copy.write_bytes(b"other")
    assert index.row_of_file(copy) is None
    assert index.row_of_file(tmp_path / "missing.png") is None
    assert Searcher.open(page_folder / "index").index.row_of_file(page_folder / "images/3.png") is not None


def test_under_order_similarity_nothing_adds_up(tmp_path):
    from retrieval.build import build_index

    run = FakeRun(tmp_path, "order")
    build_index(run, [run.prepare(tmp_path, 6)], tmp_path / "index")
    with pytest.raises(BadInput, match="not cosine"):
        Searcher.open(tmp_path / "index", run).combined("picture 1 of a dog", like="2.png")


def test_the_command(page_folder, searcher, monkeypatch, capsys, tmp_path):
    find = ["find", page_folder / "index"]
    more = ["--like", "3.png", "--minus", "red", "--minus", "blue", "-k", 5, "--sheet", tmp_path / "sheet.png"]
    assert call(monkeypatch, search, *find, "a circle", *more, "--format", "jsonl") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wanted = searcher.combined("a circle", like="3.png", minus=["red", "blue"], k=5)
    assert [(row["image"], row["score"]) for row in rows] == wanted
    assert (tmp_path / "sheet.png").is_file()
    for way in ("--like", "--image"):
        assert call(monkeypatch, search, *find, way, page_folder / "images/3.png", "-k", 24) == 0
        listed = re.findall(r"\d+\.png", capsys.readouterr().out)
        assert sorted(listed) == sorted(set(searcher.index.ids) - {"3.png"}), "all but the image that asks"
    for args, sentence in [
        (["--minus", "red"], "add a sentence or an image"),
        (["a circle", "--minus", "red", "--at-least", "0.5"], "leave them out"),
        (["--like", "3.png", "--image", page_folder / "images/3.png"], "leave them out"),
        (["--like", "none.png"], "cannot be read (no such file)"),
    ]:
        assert call(monkeypatch, search, *find, *args) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert len(said.splitlines()) == 1
