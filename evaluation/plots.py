"""Draw the figures of a comparison: learning curves, recall@K, a swept setting, the similarity matrix of a few pairs.

Each function takes plain data and returns a matplotlib figure; `png_of` makes bytes of it, `drawn` of one on white and
of one for a dark page. Colors are those of Okabe and Ito (2008), which people with any color vision tell apart; past
seven of them, lines are dashed and dots change their shape. matplotlib is imported inside, so that a table needs none.
"""

import contextlib
import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageOps

from features.images.decode import thumbnail
from features.images.files import ImageFile
from metrics.ranks import DIRECTIONS, TITLES, Ranks, recall_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # the last one: that of the ink
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D")
DPI = 100  # a 10 point letter is 14 pixels high: read without zooming
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a $ in a caption or a name is a $
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}
PAPER = {"light": "#FFFFFF", "dark": "#16181B"}  # that of report.html
INK = {"light": "#000000", "dark": "#E8E8E8"}
GRID = {"light": "#E2E2E2", "dark": "#34383D"}
INKED = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color")
# Of scores, low to high: the closer, the farther from the paper. Signed ones turn at 0, where they are like the paper.
ONE_SIDED = {"light": "Blues", "dark": "Blues_r"}
SIGNED = {"light": ("#B2182B", "#FFFFFF", "#0B559F"), "dark": ("#E06666", "#16181B", "#6FB7F0")}


@dataclass(frozen=True)
class Drawn:
    """A figure as a PNG on white, and as one for a dark page."""

    light: bytes
    dark: bytes


_schemes = ["light"]  # the last one is drawn in


@contextlib.contextmanager
def scheme(name: str) -> Iterator[None]:
    """Draw in a scheme, "light" or "dark"."""
    _schemes.append(name)
    try:
        yield
    finally:
        _schemes.pop()


def styled(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """Run `draw` under the settings above, which are put back afterwards."""

    @functools.wraps(draw)
    def with_style(*args: Any, **more: Any) -> "Figure":
        import matplotlib

        name = _schemes[-1]
        style = {**STYLE, **dict.fromkeys(INKED, INK[name]), "grid.color": GRID[name]}
        with matplotlib.rc_context({**style, **dict.fromkeys(("axes.facecolor", "figure.facecolor"), PAPER[name])}):
            return draw(*args, **more)

    return with_style


def png_of(figure: "Figure") -> bytes:
    """Return a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def drawn(draw: Callable[..., "Figure"], *args: Any) -> Drawn:
    """Draw a figure with one of the functions below, in both schemes."""
    pngs = []
    for name in ("light", "dark"):
        with scheme(name):
            pngs.append(png_of(draw(*args)))
    return Drawn(*pngs)


@styled
def learning_curves(groups: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> "Figure":
    """Draw training loss and rsum on val by epoch, a line per run, runs of one group in one color.

    groups: name → one log for every seed, each the rows of a log.jsonl (epoch, loss, rsum). Marked is the epoch of the
    best rsum, whose weights the run keeps. A run of one epoch, as `cca` is, is that mark alone. Where first epochs
    would take more than two thirds of the scale of the loss, they run out of it, and the title says how high; but not
    where a run has no more than two epochs, of which nothing would be left.
    """
    figure, axes = _panels(groups)
    for number, (name, logs) in enumerate(groups.items()):
        for seed, log in enumerate(logs):
            best = int(np.argmax([row["rsum"] for row in log]))
            for axis, key in zip(axes, ("loss", "rsum"), strict=True):
                rows = [row for row in log if row.get(key) is not None]
                line: dict[str, Any] = {**look_of(number), "label": name if seed == 0 and key == "rsum" else None}
                if len(rows) == len(log):
                    line |= {"marker": marker_of(number), "markevery": [best]}
                axis.plot([row["epoch"] for row in rows], [row[key] for row in rows], **line)
    axes[0].set(xlabel="epoch")
    axes[0].set_title(_scale_losses(axes[0], groups))
    axes[1].set(title="rsum on val; marked: the epoch kept", xlabel="epoch")
    for axis in axes:
        _whole_numbers(axis)
    _legend(figure, axes[1])
    return figure


def _scale_losses(axis: "Axes", groups: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> str:
    """Scale the axis of the loss by the epochs after the first; return its title."""
    lines = [[row for row in log if row.get("loss") is not None] for logs in groups.values() for log in logs]
    rows = [row for line in lines for row in line]
    first = [row["loss"] for row in rows if row["epoch"] == 1]
    later = [row["loss"] for row in rows if row["epoch"] > 1] or first
    if later and min(later) > 0 and max(later) > 20 * min(later):  # losses of different kinds share no scale
        _logarithmic(axis, "y")
    elif (
        min(map(len, filter(None, lines)), default=0) > 2
        and max(first) - min(later) > 3 * (max(later) - min(later)) > 0
    ):
        room = 0.15 * (max(later) - min(later))
        axis.set_ylim(min(later) - room, max(later) + room)
        return f"Loss on train; that of epoch 1 is higher, up to {max(first):.3g}"
    return "Loss on train"


@styled
def recall_curves(ranks: Mapping[str, Sequence[Ranks]], max_k: int = 100) -> "Figure":
    """Draw recall@K for K = 1 … `max_k`, or as many as there are items, both directions, a line per name.

    ranks: name → Ranks of every seed and every fold, over which the recalls are averaged.
    """
    figure, axes = _panels(ranks, sharey=True)
    for axis, direction, other in zip(axes, DIRECTIONS, DIRECTIONS[::-1], strict=True):
        # the queries of the other direction are items of this one, and there is no rank without an item
        sizes = [
            max(len(getattr(one, other)), *getattr(one, direction)) for several in ranks.values() for one in several
        ]
        top = max(2, min(max_k, max(sizes)))
        ks = np.arange(1, top + 1)
        for number, (name, several) in enumerate(ranks.items()):
            recalls = [[recall_at(k, getattr(one, direction)) for k in ks.tolist()] for one in several]
            axis.plot(ks, np.mean(recalls, axis=0), **look_of(number), label=name)
        axis.set(title=TITLES[direction], xlabel="K", xlim=(1, top), ylim=(0, 100))
        _logarithmic(axis, "x")
    axes[0].set_ylabel("recall@K, % of queries")
    _legend(figure, axes[0])
    return figure


@styled
def sweep_curve(
    setting: str,
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]],
    bars: str = "95 % interval",
    measure: str = "rsum",
) -> "Figure":
    """Draw a swept setting against a measure, a line with its intervals per name.

    lines: name → points (value of the setting, mean, low end, high end of the interval), in any order.
    bars: what the interval is. Values that span more than a factor of 20 go on a logarithmic axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9 if len(lines) > 1 else 6.5, _legend_height(lines)), layout="constrained")
    axis = figure.subplots()
    values = sorted({point[0] for points in lines.values() for point in points})
    for number, (name, points) in enumerate(lines.items()):
        x, mean, low, high = np.array(sorted(points), dtype=float).reshape(-1, 4).T
        error = np.maximum(0.0, [mean - low, high - mean])
        axis.errorbar(x, mean, yerr=error, **look_of(number), marker=marker_of(number), capsize=4, label=name)
    axis.set(xlabel=setting, ylabel=f"{measure}, {bars}", title=next(iter(lines)) if len(lines) == 1 else "")
    if values[0] > 0 and values[-1] > 20 * values[0]:
        _logarithmic(axis, "x")
    if len(values) <= 12:
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.set_xticks([], minor=True)
    axis.margins(x=0.06)
    if len(lines) > 1:
        _legend(figure, axis)
    return figure


@styled
def similarity_matrix(
    scores: np.ndarray, captions: Sequence[str], images: Sequence[str], paths: Sequence[ImageFile | None], measure: str
) -> "Figure":
    """Draw scores (N, N) of N images, the rows, against a caption of each, the columns; the true pairs are framed.

    captions: (N,) texts; images: (N,) ids; paths: where the images lie, drawn beside their rows. A row whose image
    is missing or cannot be read shows the end of its id instead. measure: what the scores are. Scores of both signs
    have a scale that is as long on either side of 0, and a color for each.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    # Inches: every cell is a square of `cell`; `left` holds the images or ids, `above` and `right` the captions.
    count, cell, left, above, below = len(scores), 0.3, 1.15, 2.75, 0.75
    side = count * cell
    width, height = left + side + 1.75, above + side + below
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((left / width, below / height, side / width, side / height))
    look: dict[str, Any] = {"cmap": ONE_SIDED[_schemes[-1]]}
    if count and scores.min() < 0 < scores.max():
        end = float(np.abs(scores).max())
        look = {"cmap": LinearSegmentedColormap.from_list("signed", SIGNED[_schemes[-1]]), "vmin": -end, "vmax": end}
    shown = axis.imshow(scores, aspect="auto", interpolation="nearest", **look)
    for row in range(count):
        axis.add_patch(Rectangle((row - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLORS[4], linewidth=1.8))
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_yticks([])
    axis.set_xticks(range(count), [_short(text, 42) for text in captions])
    axis.xaxis.tick_top()
    axis.tick_params(axis="x", length=0, pad=3)
    for label in axis.get_xticklabels():
        label.set(rotation=60, ha="left", va="bottom", fontsize=8.5, rotation_mode="anchor")
    for row, (image, path) in enumerate(zip(images, paths, strict=True)):
        bottom = (below + (count - 1 - row) * cell) / height
        small = thumbnail(path, 64)
        if small is None:
            text = image if len(image) <= 14 else f"…{image[-13:].lstrip()}"
            figure.text((left - 0.08) / width, bottom + cell / 2 / height, text, ha="right", va="center", fontsize=8)
        else:
            box = (left - cell - 0.05) / width, bottom, (cell - 0.02) / width, (cell - 0.02) / height
            beside = figure.add_axes(box)
            beside.imshow(ImageOps.fit(small, (64, 64)), aspect="auto")
            beside.axis("off")
    scale = figure.add_axes((left / width, 0.45 / height, 0.5 * side / width, 0.12 / height))
    figure.colorbar(shown, cax=scale, orientation="horizontal").outline.set_visible(False)
    scale.grid(False)
    figure.text((left + 0.5 * side + 0.15) / width, 0.51 / height, f"{measure}; true pairs are framed", va="center")
    return figure


def look_of(number: int) -> dict[str, Any]:
    """Return color and dashes of line `number`, from 0: 28 of them differ."""
    color = number % len(COLORS)
    return {
        "color": INK[_schemes[-1]] if color == len(COLORS) - 1 else COLORS[color],
        "linestyle": DASHES[number // len(COLORS) % len(DASHES)],
    }


def marker_of(number: int) -> str:
    return MARKERS[number // len(COLORS) % len(MARKERS)]


def _panels(names: Iterable[str], sharey: bool = False) -> "tuple[Figure, Sequence[Axes]]":
    """Make two panels side by side, high enough for a legend of `names` on their right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, _legend_height(names)), layout="constrained")
    return figure, figure.subplots(1, 2, sharey=sharey)


def _legend_height(names: Iterable[str]) -> float:
    return max(4.2, 0.6 + sum(0.07 + 0.165 * (1 + _wrapped(name).count("\n")) for name in names))


def _legend(figure: "Figure", axis: "Axes") -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, [_wrapped(name) for name in names], loc="outside right upper", handlelength=2.6)


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 38, break_on_hyphens=False)


def _logarithmic(axis: "Axes", which: str) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5, 10, …"""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    getattr(axis, f"set_{which}scale")("log")
    line = getattr(axis, f"{which}axis")
    line.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    line.set_minor_locator(NullLocator())
    line.set_minor_formatter(NullFormatter())


def _whole_numbers(axis: "Axes") -> None:
    """Put ticks at whole numbers: no epoch is 2.5."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
