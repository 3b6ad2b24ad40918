"""What eval.py leaves beside its table: images, a report, and how far scores agree with people's judgements."""

import csv
import io
import json
import re

import pytest
from PIL import Image

import eval as evaluation
from evaluation.judgements import CROWDFLOWER, EXPERT
from tests.helpers import call, copy_of, train_drawn
from training.run import Run

SWEEP = ["loss.margin=0.1,0.2"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A prepared folder, a sweep of two values with two seeds each, and made-up judgements of its test images."""
    folder = train_drawn(tmp_path_factory.mktemp("outputs"), ["vsepp", *SWEEP, "--seeds", 0, 1])
    test = [f"{number}.png" for number in range(3, 24, 4)]
    pairs = [(a, f"{b}#{n}", i + j + n) for i, a in enumerate(test) for j, b in enumerate(test) for n in (0, 1)]
    (folder / "judged").mkdir()
    expert = [f"{a}\t{b}\t{1 + k % 4}\t{1 + k % 3}\t{1 + k % 4}\n" for a, b, k in pairs]
    crowd = [f"{a}\t{b}\t{k % 4 / 3}\t{k % 4}\t{3 - k % 4}\n" for a, b, k in pairs]
    (folder / "judged" / EXPERT).write_text("".join(expert))
    (folder / "judged" / CROWDFLOWER).write_text("".join(crowd))
    return folder


def test_figures_and_report(swept, monkeypatch, capsys, tmp_path):
    plots, report = tmp_path / "new/plots", tmp_path / "other/report.html"
    everything = ["--plots", plots, "--report", report, "--judgements", swept / "judged", "--folds", 2]
    assert call(monkeypatch, evaluation, f"{swept}/runs/*", *everything) == 0
    assert "human judgements" in capsys.readouterr().out
    names = {"learning_curves.png", "recall.png", "similarity.png", "sweep-loss.margin.png"}
    assert {path.name for path in plots.iterdir()} == names
    for path in plots.iterdir():
        with Image.open(path) as drawn:
            drawn.load()
            assert min(drawn.size) > 200
    page = report.read_text()
    for wanted in ("vsepp loss.margin=0.1", "Kendall", "margin = 0.1", 'class="true"', "true one at rank", "</html>"):
        assert wanted in page, wanted
    assert page.count("data:image/png") == 2 * 4, "each figure once for a light page and once for a dark one"
    assert "data:image/jpeg" in page
    assert page.count("<details>") == 2
    assert page.count("<h3>") == 2


def test_a_run_without_a_log_has_a_report_without_its_curve(swept, monkeypatch, capsys, tmp_path):
    first, second = (copy_of(run, tmp_path / run.name) for run in sorted((swept / "runs").iterdir())[:2])
    (first / "log.jsonl").unlink()
    assert call(monkeypatch, evaluation, first, "--plots", tmp_path / "one") == 0
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"recall.png", "similarity.png"}
    assert call(monkeypatch, evaluation, first, second, "--plots", tmp_path / "two") == 0
    assert "learning_curves.png" in {path.name for path in (tmp_path / "two").iterdir()}
    capsys.readouterr()
    assert call(monkeypatch, evaluation, first, "--logs", tmp_path / "logs.csv") == 2
    assert f"{first}: keeps no log of its training, as runs that are shared do not; leave --logs" in (
        capsys.readouterr().err
    )


def test_every_run_is_opened_and_embedded_once(swept, monkeypatch, tmp_path):
    calls = []

    def counted(name, function):
        def count(*args):
            calls.append((name, str(args[0])) if name == "open" else name)
            return function(*args)

        return count

    for name in ("embed_features", "embed_captions", "embed_sentences"):
        monkeypatch.setattr(Run, name, counted(name, getattr(Run, name)))
    monkeypatch.setattr(Run, "open", counted("open", Run.open))
    everything = ["--plots", tmp_path, "--report", tmp_path / "a.html", "--judgements", swept / "judged", "--folds", 2]
    assert call(monkeypatch, evaluation, f"{swept}/runs/*", *everything) == 0
    assert len({call for call in calls if isinstance(call, tuple)}) == 4
    assert len(calls) == 12
    assert calls.count("embed_features") == calls.count("embed_captions") == 4


def test_judgements_in_every_format(swept, monkeypatch, capsys):
    def printed(form):
        judged = ["--judgements", swept / "judged", "--format", form]
        assert call(monkeypatch, evaluation, f"{swept}/runs/*", *judged) == 0
        return capsys.readouterr().out

    rows = json.loads(printed("json"))
    for row in rows:
        expert, crowd = row["judgements"]["expert"], row["judgements"]["crowdflower"]
        assert (expert["variant"], expert["pairs"], expert["ratings"]) == ("c", 60, 180)
        assert (crowd["variant"], crowd["pairs"]) == ("b", 72)
        assert -100 <= expert["tau"] <= 100
        assert expert["std"] >= 0
    cells = [f"{row['judgements'][name]['tau']:.1f}" for row in rows for name in ("expert", "crowdflower")]
    text, markdown, latex = printed("text"), printed("markdown"), printed("latex")
    for out in (text, markdown, latex):
        assert all(cell in out for cell in cells)
        assert "expert τ-c over 60 pairs (180 ratings)" in re.sub(r"\s+", " ", out)
    assert "Expert τ-c  CrowdFlower τ-b" in text
    lines = list(csv.DictReader(io.StringIO(printed("csv"))))
    assert [float(line["expert tau"]) for line in lines] == [row["judgements"]["expert"]["tau"] for row in rows]


def test_the_mean_over_seeds_is_that_of_the_runs(swept, monkeypatch, capsys):
    def taus(pattern):
        assert call(monkeypatch, evaluation, pattern, "--judgements", swept / "judged", "--format", "json") == 0
        (row,) = json.loads(capsys.readouterr().out)
        return row["runs"], row["judgements"]["crowdflower"]

    assert call(monkeypatch, evaluation, f"{swept}/runs/*", "--format", "json") == 0
    first = json.loads(capsys.readouterr().out)[0]["runs"]
    found = [taus(swept / "runs" / run)[1] for run in first]
    assert all("std" not in one for one in found)
    digest = first[0].rsplit("-", 1)[1]
    runs, both = taus(f"{swept}/runs/*{digest}")
    assert runs == first
    assert both["tau"] == pytest.approx((found[0]["tau"] + found[1]["tau"]) / 2)
    assert both["std"] == pytest.approx(abs(found[0]["tau"] - found[1]["tau"]) / 2**0.5)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--plots", "{root}/captions.csv"], "choose another folder with --plots"),
        (["--report", "{root}/captions.csv/a.html"], "choose another folder with --report"),
        (["--report", "{root}/judged"], "is a folder; name an HTML file with --report"),
        (["--report", "{root}/out.pdf"], "is written as HTML; name a file that ends in .html"),
        (["--judgements", "{root}/nowhere"], "nowhere: no such folder; point --judgements"),
        (["--judgements", "{root}/images"], "no such file; point --judgements"),
    ],
)
def test_bad_input_names_the_flag(swept, monkeypatch, capsys, args, sentence):
    assert call(monkeypatch, evaluation, f"{swept}/runs/*", *(arg.format(root=swept) for arg in args)) == 2
    said = capsys.readouterr()
    assert sentence in said.err.splitlines()[-1]
    assert said.out == ""


def test_judgements_of_another_dataset_are_refused(swept, monkeypatch, capsys, tmp_path):
    (tmp_path / EXPERT).write_text("a.jpg\tb.jpg#0\t1\t2\t3\n")
    (tmp_path / CROWDFLOWER).write_text("a.jpg\tb.jpg#0\t1\t3\t0\n")
    assert call(monkeypatch, evaluation, f"{swept}/runs/*", "--judgements", tmp_path) == 2
    assert "judge runs on flickr8k, or leave --judgements out" in capsys.readouterr().err
