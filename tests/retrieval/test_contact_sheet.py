"""Contact sheets: their size, the frame of a true image, and text of any length."""

import io

import numpy as np
import pytest
from PIL import Image as PILImage

from retrieval import commands
from retrieval.contact_sheet import (
    FRAME_PIXELS,
    GAP_PIXELS,
    MARGIN_PIXELS,
    MAX_COLUMNS,
    MAX_LINES,
    SMALL_PIXELS,
    TILE_PIXELS,
    TRUE_COLOR,
    Tile,
    end_of,
    font_of,
    make_sheet,
    wrap,
    write_sheet,
)
from retrieval.searcher import Hit


def jpeg(color="blue", size=(TILE_PIXELS, TILE_PIXELS)):
    buffer = io.BytesIO()
    PILImage.new("RGB", size, color).save(buffer, "JPEG")
    return buffer.getvalue()


def pixels_of(sheet, color):
    """The box around all pixels of a color: left, upper, right, lower; None without any."""
    mask = PILImage.new("1", sheet.size)
    mask.putdata([pixel == color for pixel in sheet.getdata()])
    return mask.getbbox()


def width_of(columns):
    return 2 * MARGIN_PIXELS + columns * TILE_PIXELS + (columns - 1) * GAP_PIXELS


def test_size_grows_with_the_answers():
    sizes = [make_sheet("a dog", [Tile("1 · 0.5", jpeg())] * count).size for count in (1, 3, 5, 6, 20)]
    assert [width for width, _ in sizes] == [width_of(n) for n in (3, 3, MAX_COLUMNS, MAX_COLUMNS, MAX_COLUMNS)]
    heights = [height for _, height in sizes]
    assert heights[0] == heights[1] == heights[2]
    row = heights[3] - heights[2]
    assert row > TILE_PIXELS
    assert heights[4] == heights[2] + 3 * row


@pytest.mark.parametrize("size", [(256, 256), (256, 100), (60, 256)])
@pytest.mark.parametrize("position", [0, 3, 6])
def test_the_true_image_is_framed_and_no_other(size, position):
    tiles = [Tile("", jpeg(size=size), true=number == position) for number in range(7)]
    sheet = make_sheet("a dog", tiles)
    left, upper, right, lower = pixels_of(sheet, TRUE_COLOR)
    assert (right - left, lower - upper) == (size[0] + 2 * FRAME_PIXELS, size[1] + 2 * FRAME_PIXELS)
    column = position % MAX_COLUMNS
    assert (left + right) / 2 == MARGIN_PIXELS + column * (TILE_PIXELS + GAP_PIXELS) + TILE_PIXELS / 2
    red, _, blue = np.asarray(sheet)[(upper + lower) // 2, (left + right) // 2]
    assert blue > 200 > 60 > red, "the image itself, within the frame"
    assert (lower > sheet.height / 2) is (position >= MAX_COLUMNS)
    assert pixels_of(make_sheet("a dog", [Tile("", jpeg())]), TRUE_COLOR) is None


def test_a_long_query_wraps_and_ends():
    short, longer = make_sheet("a dog", [Tile("1", jpeg())]), make_sheet("a dog and " * 30, [Tile("1", jpeg())])
    endless = make_sheet("a dog and " * 5000, [Tile("1", jpeg())])
    one_word = make_sheet("dog" * 5000, [Tile("1", jpeg())])
    assert short.width == longer.width == endless.width
    assert short.height < longer.height < endless.height == one_word.height
    for sheet in (longer, endless, one_word):
        assert pixels_of(sheet.crop((sheet.width - MARGIN_PIXELS + 2, 0, sheet.width, 200)).convert("L"), 0) is None


def test_wrapping():
    def wrapped(text, width, most=10):
        return wrap(text, len, width, most)

    assert wrapped("a dog runs", 5) == ["a dog", "runs"]
    assert wrapped("a abcdefghij b", 4) == ["a", "abcd", "efgh", "ij b"]
    assert wrapped("", 4) == []
    assert wrapped("a b c d", 1, most=2) == ["a", "…"]
    assert wrapped("abcdefgh", 2, most=2) == ["ab", "c…"]
    assert wrapped("abcd", 2, most=2) == ["ab", "cd"]
    for text in ("one two three four", "x" * 50, "a" + " b" * 40):
        lines = wrapped(text, 7, most=100)
        assert all(len(line) <= 7 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert len(wrapped(text * 100, 7, MAX_LINES)) == MAX_LINES


def test_names_stand_below_and_end_within_the_tile():
    def length(text):
        return font_of(SMALL_PIXELS).getlength(text)

    name = "folder-" * 9 + "last.jpg"
    short = end_of(name, length, TILE_PIXELS)
    assert short.startswith("…")
    assert short.endswith("last.jpg")
    assert TILE_PIXELS - length("m") <= length(short) <= TILE_PIXELS
    assert end_of("last.jpg", length, TILE_PIXELS) == "last.jpg"
    without, named = (make_sheet("a dog", [Tile("1", jpeg(), name=text), Tile("2", jpeg())]) for text in ("", name))
    line = SMALL_PIXELS * 4 // 3
    assert named.height - without.height == line
    top = named.height - MARGIN_PIXELS - line + FRAME_PIXELS + 2
    below = named.crop((0, top, named.width, top + line))
    inked = np.flatnonzero((np.asarray(below.convert("L")) < 200).any(axis=0))
    assert MARGIN_PIXELS <= inked.min() < inked.max() <= MARGIN_PIXELS + TILE_PIXELS


def test_a_sheet_of_an_answer_says_how_likely_each_image_is(searcher, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(commands, "write_sheet", lambda path, title, tiles, *more: written.extend(tiles))
    hits = searcher.ask("a red circle", 3).hits
    commands.write_answer_sheet(
        tmp_path / "sheet.png", searcher, "", commands.Result([*hits, Hit(4, 0.5, "3.png")]), None
    )
    assert written[0].label == f"1 · {100 * hits[0].probability:.0f} % · {hits[0].score:.3f}"
    assert written[0].name == hits[0].image
    assert (written[-1].label, written[-1].name) == ("4 · 0.500", "3.png")


def test_missing_images_and_an_image_as_query(tmp_path):
    image = PILImage.new("RGB", (1000, 500), "green")
    path = tmp_path / "sheet.png"
    write_sheet(path, "犬 😀 \\xff", [Tile("1 · 0.5", None)], ["1 · 0.9 · a caption"], image)
    with PILImage.open(path) as sheet:
        left, upper, right, lower = pixels_of(sheet, (0, 128, 0))
        assert (left, upper, right - left, lower - upper) == (
            MARGIN_PIXELS,
            MARGIN_PIXELS,
            TILE_PIXELS,
            TILE_PIXELS // 2,
        )
    assert image.size == (1000, 500)
    assert make_sheet("no answers", []).size[0] == width_of(3)
