"""Emoji drawn in color: a map of where they lie in a run's space, and photographs with their emoji under them.

Pillow draws Noto Color Emoji, whose glyphs are pictures of one size; an HTML map leaves the drawing to the reader's
browser. scikit-learn and SciPy are imported inside, so that ranking emoji needs neither.
"""

import html
import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, features

from features.images.decode import thumbnail
from retrieval.emoji import EmojiHit, EmojiSpace
from utils import BadInput, atomic_write

PROJECTIONS = {"tsne": "t-SNE", "pca": "PCA"}
FILLED = 0.45  # of the map's cells hold an emoji: dense enough to be seen at once, loose enough to keep its shape
MIN_EMOJI = 3  # two emoji lie on a line whatever they mean
GLYPH = 109  # the one size that Noto Color Emoji has pictures of
MIN_CELL_PIXELS, MAX_CELL_PIXELS, MAP_PIXELS = (
    36,
    96,
    1600,
)  # pixels: of a cell of the map; of the map, as long as cells are not too small
MARGIN = 40
INK, QUIET, LINE, PAPER = "#1a1a1a", "#5c5c5c", "#d5d5d5", "white"
PHOTOGRAPH, TILE, A_ROW = (330, 240), 66, 5  # pixels; of the sheet: a photograph with rows of five emoji under it
FONT_PLACES = (
    "/usr/share/fonts/truetype/noto",  # Debian
    "/usr/share/fonts/noto",  # Arch
    "/usr/share/fonts/google-noto-emoji",
    "/usr/share/fonts/google-noto-color-emoji-fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
)


@dataclass(frozen=True)
class EmojiMap:
    """space: what is drawn; cells: (N, 2) int, column and row of each emoji in a grid of `columns` by `rows`."""

    space: EmojiSpace
    cells: np.ndarray
    columns: int
    rows: int
    title: str
    caption: str


def find_emoji_font() -> Path:
    """Where NotoColorEmoji.ttf lies. Raises BadInput if it is not installed."""
    for folder in FONT_PLACES:
        path = Path(folder).expanduser() / "NotoColorEmoji.ttf"
        if path.is_file():
            return path
    if shutil.which("fc-match"):
        asked = ["fc-match", "--format", "%{file}", "Noto Color Emoji"]
        found = Path(subprocess.run(asked, capture_output=True, text=True, check=False).stdout)
        if found.name.startswith("NotoColorEmoji") and found.is_file():  # it answers with its best other font, too
            return found
    raise BadInput(
        "Noto Color Emoji: this font, with which emoji are drawn, is not installed; install the package "
        "fonts-noto-color-emoji (a map written to FILE.html needs it in the reader's browser only)"
    )


class EmojiFont:
    """Tiles with one emoji each, drawn once."""

    def __init__(self) -> None:
        """Raises BadInput if the font is missing, or none that Pillow can draw."""
        path = find_emoji_font()
        self.shapes = features.check("raqm")  # without it, a sequence falls apart into its characters
        layout = ImageFont.Layout.RAQM if self.shapes else ImageFont.Layout.BASIC
        try:
            self.font = ImageFont.truetype(str(path), GLYPH, layout_engine=layout)
        except OSError as error:
            raise BadInput(f"{path}: not a font that Pillow draws ({error}); install fonts-noto-color-emoji") from None
        self.drawn: dict[str, Image.Image | None] = {}
        self.width = self.font.getlength("\N{GRINNING FACE}")
        if self.tile("\N{GRINNING FACE}") is None:
            raise BadInput(f"{path}: holds no pictures that Pillow draws; install Debian's fonts-noto-color-emoji")

    def tile(self, text: str) -> Image.Image | None:
        """A square RGBA picture of an emoji; None if the font has none, or draws its characters one by one."""
        if text not in self.drawn:
            self.drawn[text] = self._draw(text if self.shapes else text.replace("\N{VARIATION SELECTOR-16}", ""))
        return self.drawn[text]

    def _draw(self, text: str) -> Image.Image | None:
        if self.font.getlength(text) > 1.2 * self.width:
            return None
        tile = Image.new("RGBA", (round(self.width),) * 2)
        ImageDraw.Draw(tile).text((tile.width / 2,) * 2, text, font=self.font, embedded_color=True, anchor="mm")
        return tile if tile.getbbox() else None


def make_map(
    space: EmojiSpace, run: str, projection: str = "tsne", most: int | None = None, font: EmojiFont | None = None
) -> EmojiMap:
    """Lay emoji out on a plane, `most` of them at most: taken at even distances from the list.

    run: its name, for the caption; projection: a key of PROJECTIONS; font: what it has no picture of is left out.
    Raises BadInput if too few are left to make a map.
    """
    if most is not None and most < MIN_EMOJI:
        raise BadInput(f"--max-emoji {most}: a map wants {MIN_EMOJI} emoji or more; name a larger number")
    drawable = [row for row, emoji in enumerate(space.emoji) if font is None or font.tile(emoji.text)]
    if len(drawable) < MIN_EMOJI:
        raise BadInput(
            f"--map: {run} knows {len(drawable)} emoji that can be drawn, but a map wants {MIN_EMOJI} or more; name "
            f"a run with a larger vocabulary"
        )
    rows = drawable
    if most is not None and most < len(drawable):
        rows = [drawable[place] for place in np.linspace(0, len(drawable) - 1, most).round().astype(int)]
    shown = EmojiSpace([space.emoji[row] for row in rows], space.embeddings[rows], space.left_out)
    cells, columns, lines = free_cells(project(shown.embeddings, projection))
    left_out = {
        "without a known word": space.left_out,
        "that the font has no picture of": len(space.emoji) - len(drawable),
        f"beyond --max-emoji {most}": len(drawable) - len(rows),
    }
    caption = (
        f"{len(rows):,} emoji where the text branch of {run} puts their names, by {PROJECTIONS[projection]}. So that "
        f"none hides another, they stand in cells of a grid, as near to their places as all of them can be: neighbors "
        f"are kept, distances are not. Left out: "
    )
    caption += ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count) or "none"
    return EmojiMap(shown, cells, columns, lines, "Emoji by the meaning of their names", f"{caption}.")


def project(embeddings: np.ndarray, projection: str) -> np.ndarray:
    """(N, dim) → (N, 2), the same on every call."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if np.ptp(embeddings, axis=0).max() < 1e-6:
        return np.zeros((len(embeddings), 2))  # a collapsed run: all lie in one place
    if projection == "pca":
        return PCA(2, random_state=0).fit_transform(embeddings)
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(embeddings)


def free_cells(points: np.ndarray) -> tuple[np.ndarray, int, int]:
    """(N, 2) points → (N, 2) int, the column and row of each in a grid, and how many columns and rows that has.

    No two share a cell, and the squares of the ways from the points to their cells add up to the least possible.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    low, span = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-12)
    aspect = float(np.clip(span[0] / span[1], 2 / 3, 2))  # a few far ones must not make a strip of it
    count = len(points) / FILLED
    columns, rows = int(np.ceil(np.sqrt(count * aspect))), int(np.ceil(np.sqrt(count / aspect)))
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), axis=-1).reshape(-1, 2)
    places = (points - low) / span * (columns - 1, rows - 1)
    _, cells = linear_sum_assignment(cdist(places, grid, "sqeuclidean"))
    return grid[cells], columns, rows


def write_map(path: Path, space: EmojiSpace, run: str, projection: str = "tsne", most: int | None = None) -> None:
    """A map as PNG, or where `path` ends in .html as a page; the rest is as for `make_map`."""
    if path.suffix.lower() == ".html":
        page = map_page(make_map(space, run, projection, most))
        with atomic_write(path) as file:
            file.write(page)
    else:
        font = EmojiFont()
        picture = map_picture(make_map(space, run, projection, most, font), font)
        _write_png(path, picture.quantize(256, dither=Image.Dither.NONE))  # looks the same in a quarter of the bytes


def map_picture(drawn: EmojiMap, font: EmojiFont) -> Image.Image:
    """The map with its title above and its caption below."""
    cell = int(np.clip(MAP_PIXELS // drawn.columns, MIN_CELL_PIXELS, MAX_CELL_PIXELS))
    width = max(900, drawn.columns * cell + 2 * MARGIN)
    size = max(18, width // 80)  # of the caption's letters
    caption = textwrap.wrap(drawn.caption, int((width - 2 * MARGIN) / (0.56 * size)), break_on_hyphens=False)
    above, below = MARGIN + 3 * size, MARGIN + round(1.5 * size * len(caption))
    picture = Image.new("RGB", (width, above + drawn.rows * cell + MARGIN + below), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN // 2), drawn.title, INK, _letters(round(1.7 * size)))
    left = (width - drawn.columns * cell) // 2
    for emoji, (column, row) in zip(drawn.space.emoji, drawn.cells.tolist(), strict=True):
        _paste(picture, font.tile(emoji.text), left + column * cell, above + row * cell, cell)
    for number, line in enumerate(caption):
        draw.text((MARGIN, picture.height - below + round(1.5 * size * number)), line, QUIET, _letters(size))
    return picture


def map_page(drawn: EmojiMap) -> str:
    """The map as one HTML file that asks nobody for anything: the reader's own font draws, a name shows on hover."""
    spans = []
    for emoji, (column, row) in zip(drawn.space.emoji, drawn.cells.tolist(), strict=True):
        name = html.escape(emoji.name)
        place = f"left:{100 * column / drawn.columns:.2f}%;top:{100 * row / drawn.rows:.2f}%"
        spans.append(
            f'<span role="img" aria-label="{name}" title="{name}" style="{place}">{html.escape(emoji.text)}</span>'
        )
    return PAGE.format(
        title=html.escape(drawn.title),
        caption=html.escape(drawn.caption),
        style=STYLE,
        columns=drawn.columns,
        rows=drawn.rows,
        spans="\n".join(spans),
    )


def write_sheet(path: Path, images: Sequence[Path | str], hits: Sequence[Sequence[EmojiHit]]) -> None:
    """A PNG of the photographs, four in a row, each with its emoji and their scores under it."""
    font = EmojiFont()
    lines = -(-max(map(len, hits)) // A_ROW)
    gap, head, line = 24, 24, TILE + 22
    width, height = PHOTOGRAPH[0] + gap, PHOTOGRAPH[1] + head + lines * line + gap
    columns = min(4, len(images))
    sheet = Image.new("RGB", (columns * width + gap, -(-len(images) // columns) * height + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (image, own) in enumerate(zip(images, hits, strict=True)):
        x, y = gap + number % columns * width, gap + number // columns * height
        photograph = thumbnail(Path(image), PHOTOGRAPH[0])
        if photograph is not None:
            photograph = ImageOps.contain(photograph, PHOTOGRAPH, Image.Resampling.LANCZOS)
            sheet.paste(photograph, (x + (PHOTOGRAPH[0] - photograph.width) // 2, y))
        name = Path(image).name
        name = name if len(name) <= 40 else f"…{name[-39:]}"
        draw.text((x, y + PHOTOGRAPH[1] + 4), name, QUIET, _letters(13))
        for place, hit in enumerate(own):
            left = x + place % A_ROW * TILE
            top = y + PHOTOGRAPH[1] + head + place // A_ROW * line
            tile = font.tile(hit.emoji.text)
            if tile is None:
                words = "\n".join(textwrap.wrap(hit.emoji.name, 10)[:4])
                draw.text((left + TILE / 2, top + TILE / 2), words, QUIET, _letters(10), anchor="mm", align="center")
            _paste(sheet, tile, left, top, TILE)
            draw.text((left + TILE / 2, top + TILE), f"{hit.score:.3f}", INK, _letters(14), anchor="ma")
    _write_png(path, sheet)


def _paste(picture: Image.Image, tile: Image.Image | None, left: int, top: int, cell: int) -> None:
    """Put a tile into a cell, a little smaller than that, so that neighbors do not touch."""
    if tile is not None:
        edge = cell // 18
        small = tile.resize((cell - 2 * edge,) * 2, Image.Resampling.LANCZOS)
        picture.paste(small, (left + edge, top + edge), small)


@cache
def _letters(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has more letters than Pillow's own font."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _write_png(path: Path, picture: Image.Image) -> None:
    with atomic_write(path, "wb") as file:
        picture.save(file, "PNG", optimize=True)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --columns: {columns}; --rows: {rows}; }}{style}</style>
</head>
<body>
<h1>{title}</h1>
<figure>
<div class="wide" role="region" aria-label="{title}" tabindex="0"><div class="map">
{spans}
</div></div>
<figcaption>{caption}</figcaption>
</figure>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --quiet: #5c5c5c; --focus: #005a9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181b; --quiet: #a8a8a8; --focus: #7cc0ff; } }
body { margin: 0 auto; padding: 1rem; max-width: 120rem; font: 1rem/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.6rem; margin: 0.5rem 0 1rem; } figure { margin: 0; } figcaption { color: var(--quiet); }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
.map { position: relative; container-type: inline-size;
  min-width: calc(1.5rem * var(--columns)); aspect-ratio: var(--columns) / var(--rows); }
.map span { position: absolute; width: calc(100cqw / var(--columns)); text-align: center; cursor: default;
  font: calc(76cqw / var(--columns))/1.25 "Noto Color Emoji", "Apple Color Emoji", "Segoe UI Emoji", sans-serif; }
.map span:hover { transform: scale(2); z-index: 1; }
"""
