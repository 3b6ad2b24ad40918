"""Contact sheets: a query and its answers as one PNG, what is known of each image under it, true ones framed."""

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from utils import atomic_write

TILE_PIXELS = 256  # the longer side of an image
GAP_PIXELS, MARGIN_PIXELS, FRAME_PIXELS = 16, 24, 6
MAX_COLUMNS = 5
TEXT_PIXELS, SMALL_PIXELS = 22, 17
MAX_LINES = 12  # of a query; what is longer ends in "…"
INK, QUIET, GRAY, PAPER, TRUE_COLOR = "#1a1a1a", "#5c5c5c", "#e9e9e9", "#ffffff", (179, 71, 0)


@dataclass(frozen=True)
class Tile:
    """One answer: what to write under it, its image as JPEG bytes (None: there is none), and whether it is true.

    name: of its file, written in a line of its own, its end where it is too long.
    """

    label: str
    jpeg: bytes | None
    true: bool = False
    name: str = ""


def write_sheet(
    path: Path, title: str, tiles: Sequence[Tile], notes: Sequence[str] = (), image: PILImage.Image | None = None
) -> None:
    """Write a PNG: the query on top (a sentence, and an image if that was asked with), lines of text, the answers."""
    sheet = make_sheet(title, tiles, notes, image)
    with atomic_write(path, "wb") as file:
        sheet.save(file, "PNG")


def make_sheet(
    title: str, tiles: Sequence[Tile], notes: Sequence[str] = (), image: PILImage.Image | None = None
) -> PILImage.Image:
    """Return the sheet, as wide as MAX_COLUMNS images, or fewer where there are fewer; text wraps to its width.

    >>> make_sheet("a dog", [Tile("1 · 0.61", None)]).size
    (848, 371)
    """
    columns = max(3, min(MAX_COLUMNS, len(tiles)))
    width = 2 * MARGIN_PIXELS + columns * TILE_PIXELS + (columns - 1) * GAP_PIXELS
    head = None if image is None else _small(image)
    left = MARGIN_PIXELS + (head.width + GAP_PIXELS if head else 0)
    lines = [
        (line, size, ink)
        for texts, size, ink in (([title], TEXT_PIXELS, INK), (notes, SMALL_PIXELS, QUIET))
        for text in texts
        for line in wrap(text, font_of(size).getlength, width - left - MARGIN_PIXELS, MAX_LINES)
    ]
    text_height = sum(_line_height(size) for _, size, _ in lines)
    top = MARGIN_PIXELS + max(text_height, head.height if head else 0) + GAP_PIXELS
    cell = TILE_PIXELS + GAP_PIXELS + _line_height(SMALL_PIXELS) * (2 if any(tile.name for tile in tiles) else 1)
    rows = -(-len(tiles) // columns)
    sheet = PILImage.new("RGB", (width, top + rows * cell + MARGIN_PIXELS - GAP_PIXELS), PAPER)
    draw = ImageDraw.Draw(sheet)
    if head:
        sheet.paste(head, (MARGIN_PIXELS, MARGIN_PIXELS))
    y = MARGIN_PIXELS
    for line, size, ink in lines:
        draw.text((left, y), line, ink, font_of(size))
        y += _line_height(size)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        _paste_tile(sheet, tile, MARGIN_PIXELS + column * (TILE_PIXELS + GAP_PIXELS), top + row * cell)
    return sheet


def _paste_tile(sheet: PILImage.Image, tile: Tile, x: int, y: int) -> None:
    """The image stands on the lower edge of its square, in the middle; the frame goes around it, outside."""
    if tile.jpeg is None:
        image = PILImage.new("RGB", (TILE_PIXELS, TILE_PIXELS * 3 // 4), GRAY)
    else:
        image = _small(PILImage.open(io.BytesIO(tile.jpeg)))
    left, top = x + (TILE_PIXELS - image.width) // 2, y + TILE_PIXELS - image.height
    draw, font = ImageDraw.Draw(sheet), font_of(SMALL_PIXELS)
    if tile.true:
        right, lower = left + image.width + FRAME_PIXELS - 1, top + image.height + FRAME_PIXELS - 1
        draw.rectangle((left - FRAME_PIXELS, top - FRAME_PIXELS, right, lower), fill=TRUE_COLOR)
    sheet.paste(image, (left, top))
    (label,) = wrap(tile.label, font.getlength, TILE_PIXELS, 1) or [""]
    below = (x + TILE_PIXELS / 2, y + TILE_PIXELS + FRAME_PIXELS + 2)
    draw.text(below, label, TRUE_COLOR if tile.true else QUIET, font, anchor="ma")
    below = (below[0], below[1] + _line_height(SMALL_PIXELS))
    draw.text(below, end_of(tile.name, font.getlength, TILE_PIXELS), QUIET, font, anchor="ma")


def end_of(text: str, measure: Callable[[str], float], width: float) -> str:
    """Return a text no wider than `width` by `measure`: its end behind "…" if it is too long.

    >>> end_of("a/b/dog.jpg", len, 8)
    '…dog.jpg'
    """
    start = 0
    while start < len(text) and measure(f"…{text[start:]}" if start else text) > width:
        start += 1
    return f"…{text[start:]}" if start else text


def wrap(text: str, measure: Callable[[str], float], width: float, most: int) -> list[str]:
    """Return `most` lines at most, none wider than `width` by `measure`; words wider than a line are cut.

    >>> wrap("a dog runs", len, width=5, most=9)
    ['a dog', 'runs']
    """
    lines = [""]
    for word in text.split():
        if lines[-1] and measure(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        while measure(word) > width and len(lines) <= most:
            lengths = range(1, len(word) + 1)  # by bisection, as a word may be very long
            fitting = max(1, bisect_right(lengths, width, key=lambda length: measure(word[:length])))
            lines[-1], word = word[:fitting], word[fitting:]
            lines.append("")
        lines[-1] = word
        if len(lines) > most:
            break
    if len(lines) > most:
        last = lines[most - 1]
        while last and measure(f"{last}…") > width:
            last = last[:-1]
        return [*lines[: most - 1], f"{last}…"]
    return [line for line in lines if line]


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Open DejaVu Sans as it comes with matplotlib: on every system, with more alphabets than Pillow's own font."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _line_height(size: int) -> int:
    return size * 4 // 3


def _small(image: PILImage.Image) -> PILImage.Image:
    small = image.convert("RGB")
    small.thumbnail((TILE_PIXELS, TILE_PIXELS))
    return small
