"""Contact sheets: a query and its answers as one PNG, rank and score under each image, true ones framed."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from utils import atomic_write

TILE = 256  # pixels, the longer side of an image
GAP, MARGIN, FRAME = 16, 24, 6
COLUMNS = 5
TEXT, SMALL = 22, 17  # pixels
LINES = 12  # of a query; what is longer ends in "…"
INK, QUIET, GRAY, PAPER, TRUE = "#1a1a1a", "#5c5c5c", "#e9e9e9", "#ffffff", (179, 71, 0)


@dataclass(frozen=True)
class Tile:
    """One answer: what to write under it, its picture as JPEG bytes (None: there is none), and whether it is true."""

    label: str
    jpeg: bytes | None
    true: bool = False


def write_sheet(
    path: Path,
    title: str,
    tiles: Sequence[Tile],
    notes: Sequence[str] = (),
    picture: Pictures.Image | None = None,
) -> None:
    """A PNG: the query on top (a sentence, and a picture if that was asked with), lines of text, and the answers."""
    sheet = draw_sheet(title, tiles, notes, picture)
    with atomic_write(path, "wb") as file:
        sheet.save(file, "PNG")


def draw_sheet(
    title: str, tiles: Sequence[Tile], notes: Sequence[str] = (), picture: Pictures.Image | None = None
) -> Pictures.Image:
    """Text wraps to the width of the sheet, which is that of COLUMNS images, or of fewer where there are fewer."""
    columns = max(3, min(COLUMNS, len(tiles)))
    width = 2 * MARGIN + columns * TILE + (columns - 1) * GAP
    large, small = _font(TEXT), _font(SMALL)
    head = _thumbnail(picture)
    left = MARGIN + (head.width + GAP if head else 0)
    lines = wrap(title, large.getlength, width - left - MARGIN, LINES)
    more = [line for note in notes for line in wrap(note, small.getlength, width - left - MARGIN, LINES)]
    text_height = len(lines) * _line(TEXT) + len(more) * _line(SMALL)
    top = MARGIN + max(text_height, head.height if head else 0) + GAP
    cell = TILE + GAP + _line(SMALL)
    rows = -(-len(tiles) // columns)
    sheet = Pictures.new("RGB", (width, top + rows * cell + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    if head:
        sheet.paste(head, (MARGIN, MARGIN))
    y = MARGIN
    for some, font, size, ink in ((lines, large, TEXT, INK), (more, small, SMALL, QUIET)):
        for line in some:
            draw.text((left, y), line, ink, font)
            y += _line(size)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        _draw_tile(sheet, draw, tile, MARGIN + column * (TILE + GAP), top + row * cell, small)
    return sheet


def _draw_tile(
    sheet: Pictures.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int, font: ImageFont.FreeTypeFont
) -> None:
    """The image stands on the lower edge of its square, in the middle; the frame goes around it, outside."""
    image = _opened(tile.jpeg)
    if image is None:
        image = Pictures.new("RGB", (TILE, TILE * 3 // 4), GRAY)
    at = (x + (TILE - image.width) // 2, y + TILE - image.height)
    if tile.true:
        box = (at[0] - FRAME, at[1] - FRAME, at[0] + image.width + FRAME - 1, at[1] + image.height + FRAME - 1)
        draw.rectangle(box, fill=TRUE)
    sheet.paste(image, at)
    (label,) = wrap(tile.label, font.getlength, TILE, 1) or [""]
    place = (x + TILE / 2, y + TILE + FRAME + 2)
    draw.text(place, label, TRUE if tile.true else QUIET, font, anchor="ma")


def wrap(text: str, measure: Callable[[str], float], width: float, most: int) -> list[str]:
    """Lines of text of at most `width`, as `measure` has it; words wider than a line are cut. At most `most` lines."""
    lines = [""]
    for word in text.split():
        if lines[-1] and measure(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        while measure(word) > width and len(lines) <= most:
            fitting = _fitting(word, measure, width)
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


def _fitting(word: str, measure: Callable[[str], float], width: float) -> int:
    """How many letters of a word fit, one at least; by bisection, as a word may be very long."""
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if measure(word[:middle]) <= width else (low, middle - 1)
    return low


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib: there on every system, with more alphabets than Pillow's own font."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _line(size: int) -> int:
    return size * 4 // 3


def _opened(jpeg: bytes | None) -> Pictures.Image | None:
    return None if jpeg is None else _thumbnail(Pictures.open(io.BytesIO(jpeg)))


def _thumbnail(picture: Pictures.Image | None) -> Pictures.Image | None:
    if picture is None:
        return None
    small = picture.convert("RGB")
    small.thumbnail((TILE, TILE))
    return small
