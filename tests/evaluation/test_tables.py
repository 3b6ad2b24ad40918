"""The five formats of a table say the same: of single runs, of seeds averaged, of tests and of published figures."""

import csv
import io
import json
import re

import pytest

from evaluation.comparison import Comparison, Estimate, Interval, ResultRow, Spread
from evaluation.published import published_rows
from evaluation.tables import FIGURES, FORMATS, as_dict
from metrics.ranks import COLUMNS, CUTOFFS, DIRECTIONS
from metrics.table import WIDTH


def row(name, first, dataset="flickr8k", protocol="test 1000", **more):
    way = {"R@1": first, "R@5": 50.04, "R@10": 60.06, "median_rank": 7.0, "mean_rank": 33.333}
    figures = {"image_to_text": way, "text_to_image": {**way, "median_rank": 7.5}, "rsum": 2 * (first + 50.04 + 60.06)}
    about = {"dataset": dataset, "split": "test", "protocol": protocol, "images": 1000, "captions": 5000}
    return ResultRow(**{"run": name, "row": name, **about, **figures, **more})


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
    assert [line.count("|") for line in lines[2:]] == [len(FIGURES) + 3] * 4
    assert "`a_longer_name_50%`" in lines[5]
    assert set(lines[3]) <= set("|-: ")


def test_latex_escapes_and_balances():
    table = FORMATS["latex"](ROWS)
    assert r"a\_longer\_name\_50\%" in table
    for piece in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        rf"\begin{{tabular}}{{lr{'r' * len(FIGURES)}}}",
        r"\end{tabular}",
    ):
        assert piece in table
    body = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert [line.count("&") for line in body] == [3, *[len(FIGURES) + 1] * 3]
    assert f"\\multicolumn{{{len(COLUMNS)}}}{{c}}{{Image to text}}" in table


def test_csv_and_json_keep_every_digit():
    (one, two) = csv.DictReader(io.StringIO(FORMATS["csv"](ROWS)))
    assert float(two["image_to_text R@1"]) == 7.25
    assert float(one["text_to_image mean_rank"]) == 33.333
    rows = json.loads(FORMATS["json"](ROWS))
    assert rows == list(map(as_dict, ROWS))
    assert set(rows[0]) == {
        *("run", "row", "dataset", "split", "protocol", "images", "captions", "rsum"),
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
    published = row("paper", 10.0, image_to_text={"R@1": 10.0})
    assert FORMATS["text"]([published]).splitlines()[4].split()[2:6] == ["–"] * 4
    assert "--" in FORMATS["latex"]([published])


def grouped(name, first, seeds=(0, 1, 2), against=None):
    """A row of several seeds, as comparison.py makes it."""
    rsum = row(name, first).rsum
    runs = tuple(f"{name}-flickr8k-efficientnet_lite0+inception_v3-{seed}-1a2b3c4d" for seed in seeds)
    deviations = {way: dict.fromkeys(COLUMNS, 0.44) for way in DIRECTIONS}
    ends = {way: {f"R@{k}": (first - 1, first + 1) for k in CUTOFFS} for way in DIRECTIONS}
    return row(
        name,
        first,
        run=runs[0] if len(seeds) == 1 else name,
        features=("efficientnet_lite0", "inception_v3"),
        runs=runs,
        seeds=tuple(seeds),
        std=Spread(**deviations, rsum=1.96) if len(seeds) > 1 else None,
        interval=Interval(**ends, rsum=(rsum - 9.04, rsum + 9.06)),
        against=Comparison(*against) if against else None,
    )


LONG = "order_embedding loss.margin=0.05 training.batch_size=128"
COMPARED = [
    grouped("strong", 20.0),
    grouped("vse0 loss.margin=0.1", 7.25, against=("strong", -25.5, (-33.3, -17.7), 0.0001, "lower")),
    grouped(LONG, 20.03, seeds=[0], against=("strong", 0.06, (-4.0, 4.1), 0.81, "no more than noise")),
]
EVERYTHING = COMPARED + published_rows("flickr8k", "test 1000")


def test_long_names_wrap_in_the_table_of_metrics_too():
    more = {way: {"nDCG@10": Estimate(50.0, (45.0, 55.0))} for way in DIRECTIONS}
    text = FORMATS["text"]([row(f"{LONG} from strong (scenes), trained on another folder", 20.0, more=more)])
    *_, table = text.partition("metrics in percent")
    assert max(map(len, table.splitlines())) <= 120
    assert max(len(line) for line in table.splitlines() if "50.0" in line) < 80


def test_text_of_seeds_fits_a_terminal():
    for rows in (COMPARED, EVERYTHING):
        lines = FORMATS["text"](rows).splitlines()
        assert max(map(len, lines)) <= WIDTH == 120
        assert lines[0] == "flickr8k, test 1000 (1,000 images, 5,000 captions), efficientnet_lite0+inception_v3"
        assert lines[4].split() == [
            *("strong", "20.0", "50.0", "60.1", "7", "33.3", "20.0", "50.0", "60.1", "7.5", "33.3", "260.2"),
            "251.2–269.3",
        ]
        assert lines[5].split() == ["seeds", "0", "1", "2", *["±0.4"] * len(FIGURES), "±2.0"]
        ends = [match.end() for match in re.finditer(r"\S+", lines[4])][1 : len(FIGURES) + 2]
        assert ends == [match.end() for match in re.finditer(r"\S+", lines[5])][4:], "deviations stand under figures"
        assert lines[8].startswith("order_embedding loss.margin=0.05  ")
        assert lines[9:11] == ["  training.batch_size=128", "  seed 0"], "a long name goes on below"
        assert any("order_embedding" in line and line.endswith("no more than noise") for line in lines)
        assert any(line.split()[3:] == ["−33.3", "to", "−17.7", "<0.001", "lower"] for line in lines)
        assert "±: standard deviation over seeds." in lines


def test_text_of_single_runs_says_which_they_are():
    rows = [grouped("strong", 20.0, seeds=[3]), grouped("vse0", 10.0, seeds=[0])]
    table = FORMATS["text"](rows)
    assert "±" not in table
    assert f"\n\nstrong: {rows[0].run}\nvse0: {rows[1].run}\n" in table
    assert "95 %: bootstrap interval" in table


def test_published_rows_stand_under_a_rule():
    lines = FORMATS["text"](EVERYTHING).splitlines()
    rules = [number for number, line in enumerate(lines) if line and set(line) == {"─"}]
    assert lines[rules[1] + 1].split()[:4] == ["DeViSE,", "CNN", "4.8", "16.5"]
    assert any("ties are not counted against the model" in line for line in lines)
    assert "Cross-modal_Retrieval_Tutorial" in " ".join(lines)
    markdown = FORMATS["markdown"](EVERYTHING).splitlines()
    assert [line.split("|")[1].strip() for line in markdown if line.startswith("|")][4:7] == [
        f"`{LONG}`",
        "*published*",
        "DeViSE, CNN",
    ]
    assert len({line.count("|") for line in markdown if line.startswith("|")}) == 1
    assert FORMATS["latex"](EVERYTHING).count(r"\midrule") == 2
    assert FORMATS["latex"](COMPARED).count(r"\midrule") == 1


def test_markdown_has_deviations_beside_figures_and_a_star():
    cells = [c.strip() for c in FORMATS["markdown"](COMPARED).splitlines()[5].strip("|").split("|")]
    assert cells[:2] == ["`vse0 loss.margin=0.1`", "7.2 ± 0.4"]
    assert cells[-4:] == ["234.7 ± 2.0", "225.7–243.8", "−25.5* (−33.3 to −17.7)", "<0.001"]


def test_latex_is_bold_where_a_column_is_best():
    table = FORMATS["latex"](EVERYTHING)
    body = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in body[1:]}) == 1
    assert body[0].count("&") + 2 * (len(COLUMNS) - 1) == body[1].count("&"), "two spans of five columns"
    assert rf"\begin{{tabular}}{{l{'r' * body[1].count('&')}}}" in table
    strong, vse0, order = ([c.strip() for c in line.removesuffix(r"\\").split("&")] for line in body[2:5])
    assert strong[1] == r"\textbf{20.0} {\scriptsize$\pm$0.4}"
    assert order[1] == r"\textbf{20.0}", "what is printed alike is bold alike"
    assert vse0[1] == r"7.2 {\scriptsize$\pm$0.4}"
    assert [c[4].startswith(r"\textbf{7}") for c in (strong, vse0, order)] == [True] * 3, "the lowest rank"
    assert strong[len(FIGURES) + 1].startswith("260.2")
    assert order[len(FIGURES) + 1] == r"\textbf{260.3}"
    assert vse0[-2:] == ["$-$25.5* ($-$33.3 to $-$17.7)", "$<$0.001"]
    assert not any(r"\textbf" in line for line in body[5:]), "published rows are left out"
    assert "% Bold: the best of each column, published rows left out." in table
    assert not re.search(r"(?m)^[^%].*([–−±]|(?<!\$)<)", table)
    assert table.count("{") == table.count("}")


def test_csv_and_json_hold_all_there_is():
    found = list(csv.DictReader(io.StringIO(FORMATS["csv"](EVERYTHING))))
    assert len(found) == len(EVERYTHING)
    assert [found[1][key] for key in ("seeds", "text_to_image R@5 std", "rsum std", "rsum low", "p", "verdict")] == [
        *("0 1 2", "0.44", "1.96", str(COMPARED[1].interval.rsum[0]), "0.0001", "lower")
    ]
    assert found[0]["against"] == found[2]["rsum std"] == found[0]["source"] == ""
    assert (found[3]["run"], found[3]["image_features"], found[3]["images"]) == ("DeViSE", "CNN", "")
    assert json.loads(FORMATS["json"](EVERYTHING)) == json.loads(json.dumps(list(map(as_dict, EVERYTHING))))
