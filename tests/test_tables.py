"""The five formats of a table say the same."""

import csv
import io
import json
import re

import pytest

from retrieval.metrics import COLUMNS, DIRECTIONS
from retrieval.tables import FORMATS


def row(run, first, dataset="flickr8k", protocol="test 1000"):
    way = {"R@1": first, "R@5": 50.04, "R@10": 60.06, "median_rank": 7.0, "mean_rank": 33.333}
    return {
        "run": run,
        "dataset": dataset,
        "split": "test",
        "protocol": protocol,
        "images": 1000,
        "captions": 5000,
        "image_to_text": way,
        "text_to_image": {**way, "median_rank": 7.5},
        "rsum": 2 * (first + 50.04 + 60.06),
    }


ROWS = [row("strong-1", 20.0), row("a_longer_name_50%", 7.25)]


def test_text_is_aligned():
    lines = FORMATS["text"](ROWS).splitlines()
    assert lines[0] == "flickr8k, test 1000 (1,000 images, 5,000 captions)"
    assert len({len(line) for line in lines[1:]}) in (1, 2)  # the line above the heads may end earlier
    assert lines[4].split() == [
        "strong-1",
        *["20.0", "50.0", "60.1", "7", "33.3"],
        *["20.0", "50.0", "60.1", "7.5", "33.3"],
        "260.2",
    ]
    heads, figures = lines[2], lines[4]
    for match in re.finditer(r"\S+", heads[len("a_longer_name_50%") :]):
        end = match.end() + len("a_longer_name_50%")
        assert figures[end - 1].isdigit(), "figures end under their heads"


def test_markdown_has_one_cell_a_column():
    lines = FORMATS["markdown"](ROWS).splitlines()
    assert [line.count("|") for line in lines[2:]] == [13] * 4
    assert "`a_longer_name_50%`" in lines[5]
    assert set(lines[3]) <= set("|-: ")


def test_latex_escapes_and_balances():
    table = FORMATS["latex"](ROWS)
    assert r"a\_longer\_name\_50\%" in table
    for piece in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrrrrrrrrr}", r"\end{tabular}"):
        assert piece in table
    body = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert [line.count("&") for line in body] == [3, 11, 11, 11]
    assert "\\multicolumn{5}{c}{Image to text}" in table


def test_csv_and_json_keep_every_digit():
    (one, two) = csv.DictReader(io.StringIO(FORMATS["csv"](ROWS)))
    assert float(two["image_to_text R@1"]) == 7.25
    assert float(one["text_to_image mean_rank"]) == 33.333
    rows = json.loads(FORMATS["json"](ROWS))
    assert rows == ROWS
    assert set(rows[0]) == {
        *("run", "dataset", "split", "protocol", "images", "captions", "rsum"),
        *DIRECTIONS,
    }
    assert set(rows[0]["image_to_text"]) == set(COLUMNS) == {"R@1", "R@5", "R@10", "median_rank", "mean_rank"}


@pytest.mark.parametrize("name", ["text", "markdown", "latex"])
def test_datasets_and_protocols_stand_apart(name):
    table = FORMATS[name](
        [row("a", 1.0, "coco", "1K, 5 folds"), row("a", 2.0, "coco", "5K"), row("b", 3.0, "coco", "5K")]
    )
    assert table.count("coco, 1K, 5 folds") == 1
    assert table.count("coco, 5K") == 1
    assert len(re.findall(r"\bb\b", table)) >= 1


def test_figures_that_are_not_known_are_dashes():
    published = row("paper", 10.0)
    published["image_to_text"] = {"R@1": 10.0}
    assert FORMATS["text"]([published]).splitlines()[4].split()[2:6] == ["–"] * 4
    assert "--" in FORMATS["latex"]([published])
