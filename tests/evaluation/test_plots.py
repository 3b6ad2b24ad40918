"""The images: what was given is what is drawn, names and captions are printed as they are, files come whole."""

import base64
import io
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from evaluation.figures import find_sweeps, first_pairs, write_figures
from evaluation.plots import (
    COLORS,
    DPI,
    learning_curves,
    look_of,
    marker_of,
    png_of,
    recall_curves,
    similarity_matrix,
    sweep_curve,
)
from evaluation.plots import drawn as in_both
from evaluation.report import Report, write_report
from features.images.decode import thumbnail
from metrics.ranks import Ranks, recall_at
from metrics.similarity import RANKING


def log(losses, rsums):
    return [{"epoch": i + 1, "loss": x, "rsum": y} for i, (x, y) in enumerate(zip(losses, rsums, strict=True))]


LOGS = {
    "vsepp": [log([300, 200, 100], [100, 160, 150]), log([310, 205, 110], [90, 150, 170])],
    "a $name_with^signs$": [log([2.0, 1.0], [120, 130])],
    "cca": [[{"epoch": 1, "loss": None, "rsum": 110}]],
}


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(png_of(figure))).convert("RGB"))


def drawn(line):
    """What a line shows: lists of x and y."""
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def legend_of(figure):
    return [text.get_text().replace("\n", " ") for legend in figure.legends for text in legend.get_texts()]


def has_color(drawn, color):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(drawn.astype(int) - wanted).max(axis=2) < 8).any())


def test_learning_curves_draw_every_run_in_the_color_of_its_group():
    figure = learning_curves(LOGS)
    losses, rsums = (axis.get_lines() for axis in figure.axes)
    assert [drawn(line)[1] for line in rsums] == [[100, 160, 150], [90, 150, 170], [120, 130], [110]]
    assert [drawn(line)[1] for line in losses] == [[300, 200, 100], [310, 205, 110], [2.0, 1.0], []]
    assert [line.get_color() for line in rsums] == [COLORS[0], COLORS[0], COLORS[1], COLORS[2]]
    assert [line.get_markevery() for line in rsums] == [[1], [2], [1], [0]], "the epoch that the run keeps"
    assert legend_of(figure) == list(LOGS), "each group once"
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())
    assert figure.axes[0].get_yscale() == "log", "300 and 2: losses of different kinds"
    assert learning_curves({"vsepp": LOGS["vsepp"]}).axes[0].get_yscale() == "linear"


def test_a_figure_has_the_size_it_says_and_shows_its_lines():
    figure = learning_curves(LOGS)
    drawn = pixels(figure)
    assert drawn.shape[:2] == tuple(round(DPI * side) for side in figure.get_size_inches()[::-1])
    assert all(has_color(drawn, COLORS[i]) for i in range(3))
    assert not has_color(drawn, COLORS[3])


def test_a_long_legend_has_room():
    names = [
        f"recipe {i} with a name that does not fit on one line, inception_v3 + efficientnet_lite0" for i in range(28)
    ]
    figure = learning_curves({name: LOGS["vsepp"] for name in names})
    drawn = pixels(figure)
    assert legend_of(figure) == names, "wrapped, not cut: the end of a name may be what tells it apart"
    box = figure.legends[0].get_window_extent()
    assert box.height <= figure.bbox.height
    assert (drawn[[0, -1]] == 255).all(), "nothing runs over the edge"


def test_28_lines_differ():
    looks = {(look_of(i)["color"], str(look_of(i)["linestyle"]), marker_of(i)) for i in range(28)}
    assert len(looks) == 28


def test_recall_curves_average_seeds_and_folds():
    random = np.random.default_rng(0)
    one, two = (Ranks(random.integers(1, 300, 60), random.integers(1, 300, 90)) for _ in range(2))
    figure = recall_curves({"mine": [one, two], "other": [two]})
    for axis, direction in zip(figure.axes, ("image_to_text", "text_to_image"), strict=True):
        mine, other = axis.get_lines()
        assert drawn(mine)[0] == list(range(1, 101))
        for k in (1, 10, 100):
            both = [recall_at(k, getattr(ranks, direction)) for ranks in (one, two)]
            assert drawn(mine)[1][k - 1] == pytest.approx(np.mean(both))
            assert drawn(other)[1][k - 1] == pytest.approx(both[1])
        assert axis.get_xscale() == "log"
    assert legend_of(figure) == ["mine", "other"]
    assert has_color(pixels(figure), COLORS[1])


def test_recall_ends_where_there_are_no_more_items():
    few = Ranks(np.arange(9) % 5 + 1, np.arange(45) % 9 + 1)
    of_images, of_captions = recall_curves({"few": [few]}).axes
    assert drawn(of_images.get_lines()[0])[0] == list(range(1, 46)), "of captions"
    assert drawn(of_captions.get_lines()[0])[0] == list(range(1, 10)), "of images"
    assert of_captions.get_xlim() == (1, 9)


def test_a_sweep_is_a_line_with_its_intervals():
    figure = sweep_curve("loss.margin", {"vse0": [(0.2, 300, 296, 305), (0.1, 280, 275, 284)]})
    (axis,) = figure.axes
    container: Any = axis.containers[0]
    line, _, (bars,) = container.lines
    assert drawn(line) == ([0.1, 0.2], [280, 300])
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[275, 284], [296, 305]]
    assert (axis.get_xlabel(), axis.get_title(), axis.get_xscale()) == ("loss.margin", "vse0", "linear")
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0.1", "0.2"]
    wide = sweep_curve("training.lr", {n: [(10.0**-i, 1, 0, 2) for i in range(5)] for n in ("a", "b")})
    assert wide.axes[0].get_xscale() == "log"
    assert legend_of(wide) == ["a", "b"]


def test_the_similarity_matrix_frames_true_pairs_and_shows_make_images(tmp_path):
    Image.new("RGB", (50, 30), (255, 0, 255)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    scores = np.random.default_rng(0).normal(size=(4, 4))
    captions = ["a $5 note", "a dog " * 30, "three", "four"]
    paths = [tmp_path / "0.png", tmp_path / "1.png", None, tmp_path / "missing.png"]
    figure = similarity_matrix(
        scores, captions, ["0.png", "1.png", "2.png", "a long name of an image.png"], paths, "cosine"
    )
    axis = figure.axes[0]
    np.testing.assert_array_equal(axis.get_images()[0].get_array(), scores)
    frames = [patch.get_xy() for patch in axis.patches if isinstance(patch, Rectangle)]
    assert frames == [(i - 0.5, i - 0.5) for i in range(4)]
    labels = [tick.get_text() for tick in axis.get_xticklabels()]
    assert labels[0] == "a $5 note"
    assert not any(tick.get_parse_math() for tick in axis.get_xticklabels()), "a $ is no formula"
    assert labels[1].endswith("…")
    assert [text.get_text() for text in figure.texts][:3] == ["1.png", "2.png", "…an image.png"], (
        "ids, where there is no image"
    )
    drawn = pixels(figure)
    assert has_color(drawn, "#FF00FF"), "the image of the first row"
    assert has_color(drawn, COLORS[4])


def test_scores_of_both_signs_stand_on_a_scale_of_both():
    def scale(scores):
        (image,) = similarity_matrix(np.array(scores), ["a", "b"], ["a", "b"], [None, None], "cosine").axes[0].images
        return image.get_clim(), image.cmap

    limits, colors = scale([[0.7, -0.1], [0.0, 0.6]])
    assert limits == (-0.7, 0.7)
    assert colors(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.01), "nothing is as white as the paper"
    assert scale([[0.1, -0.8], [0.0, 0.6]])[0] == (-0.8, 0.8)
    for scores in ([[0.7, 0.2], [0.3, 0.6]], [[-0.7, -0.2], [-0.3, -0.6]]):
        limits, colors = scale(scores)
        assert (limits, colors.name) == ((np.min(scores), np.max(scores)), "Blues")


def test_a_first_epoch_does_not_flatten_the_others():
    def axis(*losses):
        return learning_curves({str(i): [log(one, range(len(one)))] for i, one in enumerate(losses)}).axes[0]

    steep = axis([61, 5, 4, 3], [30, 5.5, 4, 3.5])
    low, high = steep.get_ylim()
    assert (low, high) == pytest.approx((3 - 0.375, 5.5 + 0.375))
    assert steep.get_title() == "Loss on train; that of epoch 1 is higher, up to 61"
    assert [drawn(line)[1] for line in steep.get_lines()] == [[61, 5, 4, 3], [30, 5.5, 4, 3.5]]
    for usual in (axis([6, 5, 4, 3]), axis([61]), axis([3, 3, 3]), axis([61, 5], [30, 4])):
        assert usual.get_title() == "Loss on train"
        assert usual.get_ylim()[1] > usual.get_lines()[0].get_ydata()[0]
    assert axis([300, 200, 100], [2.0, 1.0]).get_yscale() == "log"


def test_every_figure_is_drawn_for_a_dark_page_too(tmp_path):
    scores = np.array([[0.5, -0.2], [0.1, 0.4]])
    one = Ranks(np.arange(1, 9), np.arange(1, 9))
    figures = [
        in_both(learning_curves, LOGS),
        in_both(recall_curves, {"mine": [one]}),
        in_both(sweep_curve, "loss.margin", {"vse0": [(0.2, 300, 296, 305), (0.1, 280, 275, 284)]}),
        in_both(similarity_matrix, scores, ["a", "b"], ["a", "b"], [None, None], "cosine"),
    ]
    for figure in figures:
        light, dark = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in (figure.light, figure.dark))
        assert light.shape == dark.shape
        assert (light[0] == 255).all()
        assert (dark[0] == [0x16, 0x18, 0x1B]).all(), "that of the page"
        assert has_color(light, "#000000")
        assert has_color(dark, "#E8E8E8")
        assert not has_color(dark, "#FFFFFF")
        assert not has_color(dark, "#000000")
    assert has_color(pixels(learning_curves(LOGS)), "#000000"), "what comes next is drawn on white"
    page = tmp_path / "report.html"
    write_report(page, Report("Title", figures={"Curves": figures[0]}))
    text = page.read_text()
    for png in (figures[0].light, figures[0].dark):
        assert base64.b64encode(png).decode() in text
    assert '<source media="(prefers-color-scheme: dark)"' in text


@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_first_pairs_take_the_first_caption_of_the_first_images(similarity):
    random = torch.Generator().manual_seed(0)
    images, captions = (torch.rand(n, 6, generator=random) for n in (5, 9))
    owner = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    scores, rows = first_pairs(RANKING[similarity], images, captions, owner, count=3)
    assert rows.tolist() == [0, 2, 3]
    np.testing.assert_allclose(scores, RANKING[similarity](images, captions)[:3][:, rows.tolist()], rtol=1e-6)
    assert first_pairs(RANKING[similarity], images, captions, owner)[0].shape == (5, 5)


def test_a_sweep_is_found_among_rows_that_differ_in_nothing_else():
    base = {"recipe": "vse0", "features": ("vgg19",), "loss.margin": 0.2, "embed_dim": 64, "text.stem": True}
    rows = {
        "a": base,
        "b": {**base, "loss.margin": 0.1},
        "c": {**base, "text.stem": False},
        "d": {**base, "recipe": "vsepp", "loss.margin": 0.05},
    }
    assert find_sweeps(rows) == {"loss.margin": {"vse0, vgg19": [(0.1, "b"), (0.2, "a")]}}
    grid = {f"{m} {d}": {**base, "loss.margin": m, "embed_dim": d} for m in (0.1, 0.2) for d in (32, 64)}
    assert find_sweeps(grid) == {
        "loss.margin": {
            "vse0, vgg19, embed_dim 32": [(0.1, "0.1 32"), (0.2, "0.2 32")],
            "vse0, vgg19, embed_dim 64": [(0.1, "0.1 64"), (0.2, "0.2 64")],
        },
        "embed_dim": {
            "vse0, vgg19, loss.margin 0.1": [(32.0, "0.1 32"), (64.0, "0.1 64")],
            "vse0, vgg19, loss.margin 0.2": [(32.0, "0.2 32"), (64.0, "0.2 64")],
        },
    }
    assert find_sweeps({}) == {}


def test_a_file_is_written_whole_and_settings_are_put_back(tmp_path):
    before = dict(matplotlib.rcParams)
    write_figures(tmp_path, {"curves.png": ("Learning curves", in_both(learning_curves, LOGS))})
    assert dict(matplotlib.rcParams) == before
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    assert Image.open(tmp_path / "curves.png").format == "PNG"


def test_thumbnails_keep_their_shape(tmp_path):
    Image.new("L", (300, 150)).save(tmp_path / "gray.jpg")
    small = thumbnail(tmp_path / "gray.jpg", 160)
    assert small is not None
    assert (small.size, small.mode) == ((160, 80), "RGB")
    assert thumbnail(None, 160) is None
