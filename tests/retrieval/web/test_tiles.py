"""What is shown of an image: proportions, captions, near-duplicates, and the facts of its file."""

import shutil

import pytest
from PIL import Image as PILImage
from PIL import ImageDraw

from retrieval.build import build_index
from retrieval.searcher import Searcher
from retrieval.web.answers import Answers
from retrieval.web.home import Home
from retrieval.web.images import file_facts
from retrieval.web.tiles import Tiles


@pytest.fixture(scope="module")
def folder(tmp_path_factory, page_folder):
    """An image, copies of it, others of its size, and an index of them all."""
    folder = tmp_path_factory.mktemp("tiles")
    images = folder / "images"
    images.mkdir()
    for number, name in ((3, "a.png"), (0, "b.png")):
        image = PILImage.open(page_folder / f"images/{number}.png").resize((200, 150))
        ImageDraw.Draw(image).line((0, 0, 200, 40 + 60 * number), fill="black", width=6)
        image.save(images / name)
    image = PILImage.open(images / "a.png")
    shutil.copy(images / "a.png", images / "same.png")
    image.resize((100, 75)).save(images / "small.jpg", quality=40)
    image.point(lambda value: int(0.9 * value)).save(images / "darker.png")
    image.transpose(PILImage.Transpose.FLIP_TOP_BOTTOM).save(images / "turned.png")
    return folder


@pytest.fixture(scope="module")
def copies(folder, searcher):
    lines = folder / "captions.txt"
    lines.write_text("a red circle\na blue square, painted blue\n")
    build_index(searcher.run, [folder / "images"], folder / "index", captions=lines)
    return Searcher.open(folder / "index")


def test_copies_are_recognized(copies, monkeypatch):
    tiles = Tiles(copies)
    names = ["b.png", "a.png", "small.jpg", "turned.png", "same.png", "darker.png"]
    rows = [copies.row_of(name) for name in names]
    monkeypatch.setattr("retrieval.web.tiles.COPY_COSINE", -1)  # the run is hardly trained
    first = rows[1]
    assert tiles.originals(rows) == [None, None, first, None, first, first]
    monkeypatch.setattr("retrieval.web.tiles.COPY_COSINE", 1.1)
    assert tiles.originals(rows) == [None] * 6, "embeddings have to be near, too"


def test_proportions_are_those_of_the_thumbnail(copies):
    tiles = Tiles(copies)
    assert tiles.size(copies.row_of("a.png")) == (200, 150)
    assert tiles.size(copies.row_of("small.jpg")) == (100, 75)


def test_captions_of_the_dataset_come_before_the_nearest(copies, searcher):
    row = copies.row_of("a.png")
    ((nearest, _),) = copies.captions_of(copies.index.embedding(row), 1)
    assert Tiles(copies).describe([row, row]) == [f"perhaps {nearest}"] * 2
    (caption,) = Tiles(searcher).describe([searcher.row_of("3.png")])
    assert "3.png" in searcher.true_images(caption)


def test_home_offers_captions_that_suit_or_neutral_ones(searcher, copies, monkeypatch):
    home = Home(Answers(searcher))
    assert (len(home.wall), home.name, home.trained_on) == (24, "index", "folder")
    assert len(home.examples) == 4
    assert all(text in searcher.index.known for text, _ in home.examples)
    monkeypatch.setattr("retrieval.web.home.NEUTRAL", ("a red circle", "a blue zebra", "an xyzzy"))
    assert [text for text, _ in Home(Answers(copies)).examples] == ["a red circle"], "two captions are too few"


def test_facts_of_a_file(tmp_path):
    image = PILImage.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # on its side
    exif.get_ifd(0x8769)[0x9003] = "2021:07:04 10:20:30"
    image.save(tmp_path / "taken.jpg", exif=exif)
    facts = file_facts(tmp_path / "taken.jpg")
    assert (facts["width"], facts["height"], facts["date"], facts["taken"]) == (20, 40, "2021-07-04 10:20", True)
    exif.get_ifd(0x8769)[0x9003] = "yesterday"
    image.save(tmp_path / "odd.jpg", exif=exif)
    facts = file_facts(tmp_path / "odd.jpg")
    assert (facts["width"], facts["taken"], facts["bytes"]) == (20, False, (tmp_path / "odd.jpg").stat().st_size)
    (tmp_path / "text.jpg").write_text("no image")
    assert file_facts(tmp_path / "text.jpg")["width"] is None
    assert file_facts(tmp_path / "text.jpg")["bytes"] == 8
    assert set(file_facts(tmp_path / "none.jpg").values()) == {None, False}
    assert set(file_facts(None).values()) == {None, False}
