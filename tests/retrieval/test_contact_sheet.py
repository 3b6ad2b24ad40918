"""Contact sheets: their size, the frame of a true image, and text of any length."""

import io

import numpy as np
import pytest
from PIL import Image as PILImage

from retrieval.contact_sheet import (
    FRAME_PIXELS,
    GAP_PIXELS,
    MARGIN_PIXELS,
    MAX_COLUMNS,
    MAX_LINES,
    TILE_PIXELS,
    TRUE_COLOR,
    Tile,
    make_sheet,
    wrap,
    write_sheet,
)


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
