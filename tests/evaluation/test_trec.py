"""TREC's runs and qrels: written, read back, read by trec_eval itself, and what is refused."""

import json

import numpy as np
import pytest

import eval as evaluation
from metrics.ranks import DIRECTIONS, metrics_of, ranks_of
from tests.helpers import call

OWNER = np.repeat(np.arange(9), 3)
IDS = [f"my image {number}%.jpg" for number in range(9)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    np.save(
        "model.npy", random.integers(0, 40, (9, 27)).astype(np.float32) / 7 + 3 * (OWNER[None] == np.arange(9)[:, None])
    )
    lines = [f"{IDS[image]}\t{IDS[image]}#{row}\n" for row, image in enumerate(OWNER)]
    (tmp_path / "mine.tsv").write_text("image\tcaption\n" + "".join(lines))
    return tmp_path


@pytest.fixture
def rows(monkeypatch, capsys):
    def of(*args):
        capsys.readouterr()
        assert call(monkeypatch, evaluation, *args, "--format", "json", "--metrics", "recall", "ndcg", "map") == 0
        return json.loads(capsys.readouterr().out)

    return of


WRITE = ["--scores", "model.npy", "--pairs", "mine.tsv", "--trec", "trec"]
RUNS = [f"trec/model.{direction}.run" for direction in DIRECTIONS]
QRELS = [f"trec/mine.{direction}.qrels" for direction in DIRECTIONS]


def comparable(row):
    return {key: row[key] for key in (*DIRECTIONS, "rsum", "more", "dataset", "images", "captions")}


def test_what_is_written_reads_the_same(folder, rows):
    (written,) = rows(*WRITE)
    assert sorted(map(str, (folder / "trec").iterdir())) == sorted(str(folder / name) for name in RUNS + QRELS)
    for pairs in (QRELS, QRELS[:1], ["mine.tsv"]):
        (back,) = rows("--scores", *RUNS, "--pairs", *pairs)
        assert comparable(back) == comparable(written), pairs
    first = (folder / RUNS[0]).read_text().splitlines()[0].split()
    assert (first[0], first[1], first[3], first[5]) == ("my%20image%200%25.jpg", "Q0", "1", "model")


def test_beyond_its_depth_a_run_has_the_figures_of_its_first_documents(folder, rows, monkeypatch):
    monkeypatch.setattr("evaluation.trec.DEPTH", 10)
    (written,) = rows(*WRITE)
    assert len((folder / RUNS[0]).read_text().splitlines()) == 9 * 10
    (back,) = rows("--scores", *RUNS, "--pairs", "mine.tsv")
    for direction in DIRECTIONS:
        for column in ("R@1", "R@5", "R@10"):
            assert back[direction][column] == written[direction][column]
        for column in ("recall@10", "nDCG@10", "mAP@R"):
            assert back["more"][direction][column] == written["more"][direction][column]


def test_what_a_run_leaves_out_stands_below_and_ties(folder, rows):
    """One document a topic: a true item that is left out ties with all that are, and stands last."""
    (folder / "a.i2t.run").write_text("i1 Q0 c1 1 0.5 t\ni2 Q0 c1 1 0.25 t\n")
    (folder / "a.t2i.run").write_text("c1 Q0 i1 1 0.5 t\nc2 Q0 i2 1 0.5 t\nc2 Q0 i1 2 0.5 t\n")
    (folder / "a.qrels").write_text("c1 0 i1 1\nc2 0 i2 1\n")
    (row,) = rows("--scores", "a.i2t.run", "a.t2i.run", "--pairs", "a.qrels")
    ranks = ranks_of(np_scores([[0.5, -np.inf], [0.25, -np.inf]]), np.arange(2))
    assert row["image_to_text"] == metrics_of(ranks)["image_to_text"]
    ranks = ranks_of(np_scores([[0.5, 0.5], [-np.inf, 0.5]]), np.arange(2))
    assert row["text_to_image"] == metrics_of(ranks)["text_to_image"]


def np_scores(values):
    import torch

    return torch.tensor(values)


def test_documents_that_no_pair_names_are_in_the_gallery(folder, rows):
    (folder / "a.i2t.run").write_text("i1 Q0 other 1 0.9 t\ni1 Q0 c1 2 0.5 t\n")
    (folder / "a.t2i.run").write_text("c1 Q0 i1 1 0.5 t\nc1 Q0 i9 2 0.4 t\n")
    (folder / "a.qrels").write_text("c1 0 i1 1\n")
    (row,) = rows("--scores", "a.i2t.run", "a.t2i.run", "--pairs", "a.qrels")
    assert (row["images"], row["captions"], row["queries"]) == (2, 2, [1, 1])
    assert (row["image_to_text"]["mean_rank"], row["text_to_image"]["mean_rank"]) == (2, 1)


def test_trec_eval_reads_them(folder, rows):
    """Without ties, of which it makes another order."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    scores = np.random.default_rng(0).permutation(9 * 27).reshape(9, 27).astype(np.float32) / 7
    np.save("model.npy", scores)
    (row,) = rows(*WRITE)
    for direction, run, qrels in zip(DIRECTIONS, RUNS, QRELS, strict=True):
        with open(run) as one, open(qrels) as other:
            judged, ranked = pytrec_eval.parse_qrel(other), pytrec_eval.parse_run(one)
        found = pytrec_eval.RelevanceEvaluator(judged, {"recall.1,5,10", "ndcg_cut.10", "success.1,5,10"}).evaluate(
            ranked
        )
        theirs = {name: 100 * np.mean([one[name] for one in found.values()]) for name in next(iter(found.values()))}
        for k in (1, 5, 10):
            assert row[direction][f"R@{k}"] == pytest.approx(theirs[f"success_{k}"])
            assert row["more"][direction][f"recall@{k}"]["mean"] == pytest.approx(theirs[f"recall_{k}"])
        assert row["more"][direction]["nDCG@10"]["mean"] == pytest.approx(theirs["ndcg_cut_10"])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--scores", RUNS[0], "--pairs", "mine.tsv"], "a row is one TREC run of each direction, and model has 1"),
        (["--scores", *RUNS, "--pairs", "owner.npy"], "are neither the images nor the captions that the pairs name"),
        (["--scores", *RUNS, "model.npy", "--pairs", "mine.tsv"], "would be called model"),
        (
            ["--scores", *RUNS, "--pairs", "mine.tsv", "--correction", "nnn"],
            "has no scores but those that a TREC run lists",
        ),
        (["--scores", "twice.run", "--pairs", "mine.tsv"], "twice.run: topic a names b twice"),
        (["--scores", "inf.run", "--pairs", "mine.tsv"], "inf.run: line 1 is not 'topic Q0 document rank score tag'"),
        (["--scores", "blank.run", "--pairs", "mine.tsv"], "blank.run: has no line"),
        (["--scores", "m=other.i2t.run", f"m={RUNS[1]}", "n=model.npy", "--pairs", "mine.tsv"], "xyz is no caption"),
    ],
)
def test_bad_runs_are_one_sentence(folder, rows, monkeypatch, capsys, args, sentence):
    rows(*WRITE)
    np.save("owner.npy", OWNER)
    (folder / "twice.run").write_text("a Q0 b 1 1 t\na Q0 b 2 0 t\n")
    (folder / "inf.run").write_text("a Q0 b 1 inf t\n")
    (folder / "blank.run").write_text("\n")
    (folder / "other.i2t.run").write_text("my%20image%200%25.jpg Q0 xyz 1 1 t\n")
    assert call(monkeypatch, evaluation, *args) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
