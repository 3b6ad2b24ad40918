"""One table in every format: groups, rules, best cells, further lines of a cell, emoji, what has to be escaped."""

import csv
import io

from metrics.table import Table, as_csv, as_latex, as_markdown, as_text

TABLE = Table(
    "my title_1",
    ["row", "R@1", "R@5", "R@1", "rsum", "verdict"],
    [["a_b", "1.0\n±0.4", "50.0", "2.0", "300.0", "higher"], ["c", "20.0", "–", "", "−3.5", ""]],
    groups=["", "image → text", "image → text", "text → image", "", ""],
    left=frozenset({0, 5}),
    rules={0: "", 1: "published"},
    best=frozenset({(0, 1)}),
    notes=["p (*): 5 % of " + "words " * 30],
)


def test_text_is_aligned_and_a_further_line_stands_below():
    lines = as_text(TABLE).splitlines()
    assert lines[0] == "my title_1"
    assert lines[1:8] == [
        "      image → text    text → image",
        "row        R@1  R@5             R@1   rsum  verdict",
        "───────────────────────────────────────────────────",
        "a_b        1.0 50.0             2.0  300.0  higher",
        "          ±0.4",
        "───────────────────────────────────────────────────",
        "c         20.0    –                   −3.5",
    ]
    assert lines[8] == ""
    assert max(map(len, lines)) <= 120


def test_text_without_rules_and_with_emoji():
    signs = ["👍", "👍🏽", "👨‍👩‍👧", "🇫🇷", "❤️", "1️⃣"]
    lines = as_text(Table("", ["emoji", "name"], [[sign, "x"] for sign in signs], left=frozenset({0, 1}), rules={}))
    assert lines.splitlines() == ["emoji  name", *(f"{sign}     x" for sign in signs)]


def test_markdown_names_groups_and_what_follows_a_rule():
    lines = as_markdown(TABLE).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")][:4] == [
        *("row", "image→text R@1", "image→text R@5", "text→image R@1")
    ]
    assert lines[5].startswith("| *published* |")
    assert "1.0 ±0.4" in lines[4]
    assert lines[-1].startswith(r"p (\*)")
    assert as_markdown(Table("", ["a"], [["x|y"]])).endswith(r"| x\|y |")


def test_latex_is_escaped_bold_and_balanced():
    lines = as_latex(TABLE).splitlines()
    assert lines[0] == "% my title_1"
    assert lines[2:6] == [
        r"\begin{tabular}{lrrrrl}",
        r"\toprule",
        r" & \multicolumn{2}{c}{Image to text} & \multicolumn{1}{c}{Text to image} & & \\",
        r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}",
    ]
    assert r"a\_b & \textbf{1.0} {\scriptsize$\pm$0.4} & 50.0 & 2.0 & 300.0 & higher \\" in lines
    assert r"c & 20.0 & -- &  & $-$3.5 &  \\" in lines
    assert lines.count(r"\midrule") == 2


def test_csv_quotes():
    assert list(csv.reader(io.StringIO(as_csv(Table("", ["a", "b"], [["1,5", 'x "y"']]))))) == [
        ["a", "b"],
        ["1,5", 'x "y"'],
    ]
