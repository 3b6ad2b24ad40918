"""The report: the queries it picks, what the page says of them, that it asks nobody for anything and escapes all."""

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from evaluation.gallery import Gallery
from evaluation.plots import Drawn
from evaluation.queries import Hit, Query, find_queries
from evaluation.report import Report, write_report
from metrics.positions import Truth
from metrics.ranks import ranks_of
from metrics.similarity import RANKING
from metrics.table import Table

# Three images, two captions each. Image 0 is found by both of its captions, image 2 by none.
SCORES = torch.tensor(
    [
        [0.9, 0.8, 0.1, 0.2, 0.5, 0.7],
        [0.1, 0.2, 0.6, 0.3, 0.4, 0.6],
        [0.2, 0.1, 0.5, 0.4, 0.3, 0.1],
    ]
)
OWNER = np.array([0, 0, 1, 1, 2, 2])


def gallery_of(images, captions, owner):
    return Gallery("made", "test", images, captions, captions, owner, Truth.of(owner))


GALLERY = gallery_of(["0.png", "1.png", "2.png"], [f"caption {i}" for i in range(6)], OWNER)


def look_up(images, captions):
    """A similarity that reads SCORES: embeddings are row numbers."""
    return SCORES[images[:, 0].long()][:, captions[:, 0].long()]


def queries_of(scores=look_up, **more):
    images, captions = torch.arange(3.0)[:, None], torch.arange(6.0)[:, None]
    return find_queries(images, captions, scores, GALLERY, **more)


def pick(queries, direction, kind):
    return [query for query in queries if (query.direction, query.kind) == (direction, kind)]


def test_best_and_worst_are_those_of_rank_and_lead():
    queries = queries_of(count=1, k=2)
    (best,) = pick(queries, "text_to_image", "best")
    assert (best.text, best.rank) == ("caption 0", 1)
    assert [(hit.rank, hit.text, hit.true) for hit in best.hits] == [(1, "0.png", True), (2, "2.png", False)]
    (worst,) = pick(queries, "text_to_image", "worst")
    assert (worst.text, worst.rank) == ("caption 5", 3), "caption 4 has the same rank and a smaller gap"
    assert [(hit.rank, hit.text, hit.true) for hit in worst.hits] == [
        (1, "0.png", False),
        (2, "1.png", False),
        (3, "2.png", True),
    ], "the true one is appended with its rank"
    (found,) = pick(queries, "image_to_text", "best")
    assert (found.text, found.rank, found.hits[0].text) == ("0.png", 1, "caption 0")
    (lost,) = pick(queries, "image_to_text", "worst")
    assert (lost.text, lost.rank) == ("2.png", 3)
    assert [(hit.rank, hit.true) for hit in lost.hits] == [(1, False), (2, False), (3, True)]


def test_one_caption_of_an_image_and_no_query_twice():
    queries = queries_of(count=2)
    for direction in ("text_to_image", "image_to_text"):
        found = pick(queries, direction, "best") + pick(queries, direction, "worst")
        images = [query.text if direction == "image_to_text" else OWNER[int(query.text[-1])] for query in found]
        assert len(images) == len(set(images)) == 3, "three images: two best, one worst"


@pytest.mark.parametrize("similarity", ["cosine", "order"])
@pytest.mark.parametrize("collapsed", [False, True])
def test_printed_ranks_are_the_ranks_of_the_table_block_by_block(similarity, collapsed, monkeypatch):
    random = torch.Generator().manual_seed(0)
    images, captions = (torch.rand(n, 4, generator=random) for n in (11, 30))
    if collapsed:
        images[:], captions[:] = 0.5, 0.5
    owner = np.sort(np.concatenate([np.arange(11), np.random.default_rng(0).integers(0, 11, 19)]))
    gallery = gallery_of([f"{i}.png" for i in range(11)], [f"{j}" for j in range(30)], owner)
    ranks = ranks_of(RANKING[similarity](images, captions), owner)
    queries = find_queries(images, captions, RANKING[similarity], gallery, k=3)
    monkeypatch.setattr("evaluation.queries.IMAGES_PER_BLOCK", 4)
    assert queries == find_queries(images, captions, RANKING[similarity], gallery, k=3)
    assert len(queries) == 16 or collapsed
    for query in queries:
        if query.direction == "text_to_image":
            assert query.rank == ranks.text_to_image[int(query.text)]
        else:
            assert query.rank == ranks.image_to_text[int(query.text.split(".")[0])]
        first = next(hit for hit in query.hits if hit.true)
        assert first.rank == query.rank
        assert len(query.hits) == (3 if query.rank <= 3 else 4)


class Page(HTMLParser):
    """Collects tags and their attributes, text, and whether every tag is closed in order."""

    EMPTY = ("meta", "img", "source", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


EVIL = '<script>alert("1")</script> & <b>'


@pytest.fixture
def page(tmp_path):
    PILImage.new("RGB", (640, 480), (200, 30, 30)).save(tmp_path / "there.png")
    hits = (
        Hit(1, 0.5, "there.png", False),
        Hit(2, 0.4, 'missing"><script>.png', False),
        Hit(1802, -0.1, "true.png", True),
    )
    queries = [
        Query("text_to_image", "worst", EVIL, 1802, hits),
        Query("image_to_text", "best", "there.png", 1, (Hit(1, 0.9, EVIL, True),)),
    ]
    table = Table(
        EVIL,
        ["run", "R@1", "R@5"],
        [[EVIL, "1.0", "5.0"]],
        ["", "image → text", "image → text"],
        best=frozenset({(0, 2)}),
    )
    path = tmp_path / "report.html"
    recipe = f'source = "https://example.org {EVIL}"\n[loss]\nmargin = 0.2\n'
    parts: dict[str, Any] = {
        "figures": {EVIL: Drawn(b"\x89PNG", b"\x89DARK")},
        "recipes": {EVIL: recipe},
        "queries": {EVIL: queries},
    }
    paths = {"there.png": tmp_path / "there.png", 'missing"><script>.png': tmp_path / "missing.png"}
    write_report(path, Report(EVIL, [table], [EVIL], paths=paths, **parts))
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_asks_nobody(page):
    parsed = Page(page)
    assert parsed.open == []
    assert page.startswith("<!DOCTYPE html>")
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:image/") if "src" in attributes else True
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import", page)
    assert "https:" not in page.replace("https://example.org", ""), "only where a recipe names its source, as text"
    policy = next(m for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_captions_names_and_recipes_are_escaped(page):
    parsed = Page(page)
    assert "script" not in [tag for tag, _ in parsed.tags]
    text = "".join(parsed.text)
    assert text.count(EVIL) >= 7, "title, heading, table, note, figure, recipe, query: all as they were"
    assert "<b>" not in page.replace("<b>true</b>", "")


def test_the_true_one_is_framed_and_its_rank_printed(page):
    parsed = Page(page)
    text = " ".join("".join(parsed.text).split())
    assert "true one at rank 1,802" in text
    assert "true, rank 1,802, -0.100" in text
    assert [a.get("class") for a in parsed.all("li")] == [None, None, "true", "true"]


def test_images_are_small_and_missing_ones_a_box_with_the_id(page):
    parsed = Page(page)
    images = [a for a in parsed.all("img") if a["src"].startswith("data:image/jpeg;base64,")]
    assert [(a["alt"], a["width"], a["height"]) for a in images] == [("there.png", "160", "120")] * 2
    assert [a.get("class") for a in parsed.all("span")].count("missing") == 2
    assert 'missing"><script>.png' in parsed.text


def test_keyboard_telephone_and_dark_mode(page):
    parsed = Page(page)
    wide = [a for a in parsed.all("div") if a.get("class") == "wide"]
    assert len(wide) == 2
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in wide)
    assert any("width=device-width" in a.get("content", "") for a in parsed.all("meta"))
    assert "prefers-color-scheme: dark" in page
    assert {a["href"][1:] for a in parsed.all("a")} == {a["id"] for a in parsed.all("section")}
    assert [a["scope"] for a in parsed.all("th")] == ["colgroup", "col", "col", "col", "row"]
    assert all(a.get("alt") for a in parsed.all("img"))


def test_empty_parts_are_left_out(tmp_path):
    write_report(tmp_path / "report.html", Report("Title", [Table("t", ["run"], [["a"]])]))
    parsed = Page((tmp_path / "report.html").read_text())
    assert [a["id"] for a in parsed.all("section")] == ["results"]
