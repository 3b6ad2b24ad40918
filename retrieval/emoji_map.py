"""Emoji in color: a map of where they lie in a run's space, and images with their emoji under them.

Pillow renders Noto Color Emoji, whose glyphs are bitmaps of one size; an HTML map leaves that to the reader's browser.
scikit-learn and SciPy are imported inside, so that ranking emoji needs neither.
"""

import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont, ImageOps, features

from features.images.decode import thumbnail
from retrieval.contact_sheet import INK, PAPER, QUIET, font_of
from retrieval.emoji import EmojiHit, EmojiSpace
from utils import BadInput, atomic_write

PROJECTIONS = {"tsne": "t-SNE", "pca": "PCA"}
FILLED_SHARE = 0.45  # of the map's cells hold an emoji: dense enough to be seen at once, loose enough to keep its shape
MIN_EMOJI = 3  # two emoji lie on a line whatever they mean
GLYPH_PIXELS = 109  # the one size that Noto Color Emoji has bitmaps of
MIN_CELL_PIXELS, MAX_CELL_PIXELS, MAP_PIXELS = 36, 96, 1600  # of the map, as wide as cells are not too small
MARGIN_PIXELS = 40
SHEET_IMAGE_PIXELS, SHEET_EMOJI_PIXELS, EMOJI_PER_LINE = (330, 240), 66, 5  # an image, and lines of emoji under it
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")


@dataclass(frozen=True)
class EmojiMap:
    """A map. space: its emoji; cells: (N, 2) int, column and row of each in a grid of `columns` by `rows`."""

    space: EmojiSpace
    cells: np.ndarray
    columns: int
    rows: int
    title: str
    caption: str


def find_emoji_font() -> Path:
    """Return where NotoColorEmoji.ttf lies. Raises BadInput if it is not installed."""
    for folder in FONT_FOLDERS:
        for path in Path(folder).expanduser().rglob("NotoColorEmoji.ttf"):
            return path
    if shutil.which("fc-match"):
        command = ["fc-match", "--format", "%{file}", "Noto Color Emoji"]
        path = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
        if path.name.startswith("NotoColorEmoji") and path.is_file():  # it answers with its best other font, too
            return path
    raise BadInput(
        "Noto Color Emoji: this font, which emoji are rendered with, is not installed; install the package "
        "fonts-noto-color-emoji (a map written to FILE.html needs it in the reader's browser only)"
    )


class EmojiFont:
    """Tiles with one emoji each, rendered once."""

    def __init__(self) -> None:
        """Raises BadInput if the font is missing, or none that Pillow can render."""
        path = find_emoji_font()
        self.shapes = features.check("raqm")  # without it, a sequence falls apart into its characters
        layout = ImageFont.Layout.RAQM if self.shapes else ImageFont.Layout.BASIC
        try:
            self.font = ImageFont.truetype(str(path), GLYPH_PIXELS, layout_engine=layout)
        except OSError as error:
            raise BadInput(f"{path}: Pillow cannot render it ({error}); install fonts-noto-color-emoji") from None
        self.tiles: dict[str, PILImage.Image | None] = {}
        self.width = self.font.getlength("\N{GRINNING FACE}")
        if self.tile("\N{GRINNING FACE}") is None:
            raise BadInput(f"{path}: holds no glyphs that Pillow renders; install Debian's fonts-noto-color-emoji")

    def tile(self, text: str) -> PILImage.Image | None:
        """Return an emoji as a square RGBA image; None if the font has none, or renders its characters one by one."""
        if text not in self.tiles:
            self.tiles[text] = self._render(text if self.shapes else text.replace("\N{VARIATION SELECTOR-16}", ""))
        return self.tiles[text]

    def _render(self, text: str) -> PILImage.Image | None:
        if self.font.getlength(text) > 1.2 * self.width:
            return None
        tile = PILImage.new("RGBA", (round(self.width),) * 2)
        ImageDraw.Draw(tile).text((tile.width / 2,) * 2, text, font=self.font, embedded_color=True, anchor="mm")
        return tile if tile.getbbox() else None


def make_map(
    space: EmojiSpace, run: str, projection: str = "tsne", max_emoji: int | None = None, font: EmojiFont | None = None
) -> EmojiMap:
    """Lay emoji out on a plane, `max_emoji` of them at most: taken at even distances from the list.

    run: its name, for the caption; projection: a key of PROJECTIONS; font: what it has no glyph of is left out.
    Raises BadInput if too few are left to make a map.
    """
    if max_emoji is not None and max_emoji < MIN_EMOJI:
        raise BadInput(f"`max_emoji` {max_emoji}: a map wants {MIN_EMOJI} emoji or more; name a larger number")
    rows = with_glyph = [row for row, emoji in enumerate(space.emoji) if font is None or font.tile(emoji.text)]
    if len(rows) < MIN_EMOJI:
        raise BadInput(
            f"`map`: {run} knows {len(rows)} emoji that can be rendered, but a map wants {MIN_EMOJI} or more; name a "
            f"run with a larger vocabulary"
        )
    if max_emoji is not None and max_emoji < len(rows):
        rows = [rows[index] for index in np.linspace(0, len(rows) - 1, max_emoji).round().astype(int)]
    shown = EmojiSpace([space.emoji[row] for row in rows], space.embeddings[rows], space.left_out)
    cells, columns, lines = free_cells(project(shown.embeddings, projection))
    left_out = {
        "without a known word": space.left_out,
        "that the font has no glyph of": len(space.emoji) - len(with_glyph),
        f"beyond the {max_emoji} asked for": len(with_glyph) - len(rows),
    }
    caption = (
        f"{len(rows):,} emoji where the text branch of {run} puts their names, by {PROJECTIONS[projection]}. So that "
        f"none hides another, they stand in cells of a grid, as near to their points as all of them can be: neighbors "
        f"are kept, distances are not. Left out: "
    )
    caption += ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count) or "none"
    return EmojiMap(shown, cells, columns, lines, "Emoji by the meaning of their names", f"{caption}.")


def project(embeddings: np.ndarray, projection: str) -> np.ndarray:
    """Project embeddings (N, dim) to points (N, 2), the same on every call."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if np.ptp(embeddings, axis=0).max() < 1e-6:
        return np.zeros((len(embeddings), 2))  # a collapsed run: all are one point
    if projection == "pca":
        return PCA(2, random_state=0).fit_transform(embeddings)
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(embeddings)


def free_cells(points: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return the cells of points (N, 2) in a grid, column and row, (N, 2) int; its columns; its rows.

    No two share a cell, and the squares of the distances from points to cells add up to the least possible.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    low, span = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-12)
    aspect = float(np.clip(span[0] / span[1], 2 / 3, 2))  # a few far ones must not make a strip of it
    count = len(points) / FILLED_SHARE
    columns, rows = int(np.ceil(np.sqrt(count * aspect))), int(np.ceil(np.sqrt(count / aspect)))
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"), axis=-1).reshape(-1, 2)
    targets = (points - low) / span * (columns - 1, rows - 1)
    _, cells = linear_sum_assignment(cdist(targets, grid, "sqeuclidean"))
    return grid[cells], columns, rows


def write_map(path: Path, space: EmojiSpace, run: str, projection: str = "tsne", max_emoji: int | None = None) -> None:
    """Write a map as PNG, or where `path` ends in .html as a page; the rest is as for `make_map`."""
    if path.suffix.lower() == ".html":
        page = map_page(make_map(space, run, projection, max_emoji))
        with atomic_write(path) as file:
            file.write(page)
    else:
        font = EmojiFont()
        image = map_image(make_map(space, run, projection, max_emoji, font), font)
        _write_png(path, image.quantize(256, dither=PILImage.Dither.NONE))  # looks the same in a quarter of the bytes


def map_image(shown: EmojiMap, font: EmojiFont) -> PILImage.Image:
    """Return the map with its title above and its caption below."""
    cell = int(np.clip(MAP_PIXELS // shown.columns, MIN_CELL_PIXELS, MAX_CELL_PIXELS))
    width = max(900, shown.columns * cell + 2 * MARGIN_PIXELS)
    size = max(18, width // 80)  # of the caption's characters
    caption = textwrap.wrap(shown.caption, int((width - 2 * MARGIN_PIXELS) / (0.56 * size)), break_on_hyphens=False)
    above, below = MARGIN_PIXELS + 3 * size, MARGIN_PIXELS + round(1.5 * size * len(caption))
    image = PILImage.new("RGB", (width, above + shown.rows * cell + MARGIN_PIXELS + below), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN_PIXELS, MARGIN_PIXELS // 2), shown.title, INK, font_of(round(1.7 * size)))
    left = (width - shown.columns * cell) // 2
    for emoji, (column, row) in zip(shown.space.emoji, shown.cells.tolist(), strict=True):
        _paste(image, font.tile(emoji.text), left + column * cell, above + row * cell, cell)
    for number, line in enumerate(caption):
        draw.text((MARGIN_PIXELS, image.height - below + round(1.5 * size * number)), line, QUIET, font_of(size))
    return image


def map_page(shown: EmojiMap) -> str:
    """Return the map as one HTML file without any other: the reader's own font renders, a name shows on hover."""
    import jinja2

    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    cells = list(zip(shown.space.emoji, shown.cells.tolist(), strict=True))
    facts = {"title": shown.title, "caption": shown.caption, "columns": shown.columns, "rows": shown.rows}
    return environment.from_string(template).render(**facts, cells=cells)


def write_emoji_sheet(path: Path, images: Sequence[Path | str], hits: Sequence[Sequence[EmojiHit]]) -> None:
    """Write a PNG of the images, four in a row, each with its emoji and their scores under it."""
    font = EmojiFont()
    lines = -(-max(map(len, hits)) // EMOJI_PER_LINE)
    gap, line = 24, SHEET_EMOJI_PIXELS + 22
    width, height = SHEET_IMAGE_PIXELS[0] + gap, SHEET_IMAGE_PIXELS[1] + 2 * gap + lines * line
    columns = min(4, len(images))
    sheet = PILImage.new("RGB", (columns * width + gap, -(-len(images) // columns) * height + gap), PAPER)
    for number, (path_of_image, matches) in enumerate(zip(images, hits, strict=True)):
        x, y = gap + number % columns * width, gap + number // columns * height
        image = thumbnail(Path(path_of_image), SHEET_IMAGE_PIXELS[0])
        if image is not None:
            image = ImageOps.contain(image, SHEET_IMAGE_PIXELS, PILImage.Resampling.LANCZOS)
            sheet.paste(image, (x, y))
        name, y = Path(path_of_image).name, y + SHEET_IMAGE_PIXELS[1]
        name = name if len(name) <= 40 else f"…{name[-39:]}"
        ImageDraw.Draw(sheet).text((x, y + 4), name, QUIET, font_of(13))
        for index, hit in enumerate(matches):
            row, column = divmod(index, EMOJI_PER_LINE)
            _paste_hit(sheet, font, hit, x + column * SHEET_EMOJI_PIXELS, y + gap + row * line)
    _write_png(path, sheet)


def _paste_hit(sheet: PILImage.Image, font: EmojiFont, hit: EmojiHit, left: int, top: int) -> None:
    """An emoji, or its name where the font has none, with its score below."""
    draw, middle, size = ImageDraw.Draw(sheet), left + SHEET_EMOJI_PIXELS / 2, SHEET_EMOJI_PIXELS
    tile = font.tile(hit.emoji.text)
    if tile is None:
        words = "\n".join(textwrap.wrap(hit.emoji.name, 10)[:4])
        draw.text((middle, top + size / 2), words, QUIET, font_of(10), anchor="mm", align="center")
    _paste(sheet, tile, left, top, size)
    draw.text((middle, top + size), f"{hit.score:.3f}", INK, font_of(14), anchor="ma")


def _paste(image: PILImage.Image, tile: PILImage.Image | None, left: int, top: int, cell: int) -> None:
    """Put a tile into a cell, a little smaller than that, so that neighbors do not touch."""
    if tile is not None:
        edge = cell // 18
        small = tile.resize((cell - 2 * edge,) * 2, PILImage.Resampling.LANCZOS)
        image.paste(small, (left + edge, top + edge), small)


def _write_png(path: Path, image: PILImage.Image) -> None:
    with atomic_write(path, "wb") as file:
        image.save(file, "PNG", optimize=True)
