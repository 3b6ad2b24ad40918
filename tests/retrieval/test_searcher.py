"""Nearest rows against plain loops, ties included; graphs; the Searcher; and what search.py find prints."""

import json
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image as PILImage

import prep
import search as search_script
import train
from retrieval import approximate, milvus, nearest
from retrieval import commands as search_commands
from retrieval.approximate import Approximate, recall_of
from retrieval.build import build_index
from retrieval.index import Index
from retrieval.nearest import CAPTION_TO_IMAGE, COSINE, IMAGE_TO_CAPTION, exact_nearest, positions
from retrieval.searcher import Hit, Searcher, plain
from retrieval.words import MAX_QUERY_CHARS
from script import run_script
from tests.helpers import QUICK, WORDS, FakeRun, copy_of, draw_images, paint, prep_args
from tests.helpers import call as script_call
from utils import BadInput


def embeddings(rng, rows, dim=16, distinct=None, order=False):
    """Unit rows, of which `distinct` differ: the others repeat them, so that there are ties."""
    unit = rng.normal(size=(distinct or rows, dim)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit = np.abs(unit) if order else unit
    return unit[rng.integers(0, len(unit), rows)] if distinct else unit


def plain_score(measure, query, row):
    total = 0.0
    for q, r in zip(query.tolist(), row.tolist(), strict=True):
        if measure is COSINE:
            total += q * r
        else:
            caption, image = (q, r) if measure is CAPTION_TO_IMAGE else (r, q)
            total -= max(0.0, caption - image) ** 2
    return total


def plain_nearest(measure, query, rows, k):
    scores = [plain_score(measure, query, row) for row in rows]
    # a sum in another order may differ in its last bits: what is nearly equal is equal
    return sorted(range(len(rows)), key=lambda row: (-round(scores[row], 9), row))[:k], scores


@pytest.mark.parametrize("measure", [COSINE, CAPTION_TO_IMAGE, IMAGE_TO_CAPTION], ids=["cosine", "text", "image"])
@pytest.mark.parametrize("block", [1, 16 * 4 * 7, 2**20])
@pytest.mark.parametrize("distinct", [None, 5, 1])
def test_nearest_rows_are_those_of_plain_loops(measure, block, distinct):
    rng = np.random.default_rng(0)
    order = measure is not COSINE
    rows, queries = embeddings(rng, 60, distinct=distinct, order=order), embeddings(rng, 70, order=order)
    best, scores = exact_nearest(queries, rows, 12, measure, block)
    assert (best.dtype, scores.dtype) == (np.int64, np.float32)
    for query, result, values in zip(queries[::9], best[::9], scores[::9], strict=True):
        wanted, all_scores = plain_nearest(measure, query, rows, 12)
        assert result.tolist() == wanted
        assert values.tolist() == pytest.approx([all_scores[row] for row in wanted], abs=1e-6)
        whole, _ = plain_nearest(measure, query, rows, 60)
        assert positions(query, rows, (0, 7, 59), measure, block) == [whole.index(row) + 1 for row in (0, 7, 59)]


def test_more_answers_than_rows_and_none():
    rows = embeddings(np.random.default_rng(0), 3)
    best, scores = exact_nearest(rows[:1], rows, 10, COSINE)
    assert best.shape == scores.shape == (1, 3)
    assert best[0, 0] == 0
    assert exact_nearest(rows[:0], rows, 2, COSINE)[0].shape == (0, 2)
    assert exact_nearest(rows, rows[:0], 2, COSINE)[0].shape == (3, 0)


def test_not_a_number_stands_last():
    rows = embeddings(np.random.default_rng(0), 6)
    rows[1] = np.nan
    best, _ = exact_nearest(rows[:1], rows, 6, COSINE)
    assert sorted(best[0].tolist()) == list(range(6))
    assert best[0, -1] == 1


def test_rows_on_disk_are_read_block_by_block(tmp_path):
    rng = np.random.default_rng(0)
    rows, queries = embeddings(rng, 500), embeddings(rng, 3)
    np.save(tmp_path / "rows.npy", rows)
    for mode in ("r", "c"):
        mapped = np.load(tmp_path / "rows.npy", mmap_mode=mode)
        np.testing.assert_array_equal(
            exact_nearest(queries, mapped, 9, COSINE, 2**10)[0], exact_nearest(queries, rows, 9, COSINE)[0]
        )


def test_recall_is_counted_by_scores():
    exact = np.array([[0.9, 0.5], [0.8, 0.8]], np.float32)
    assert recall_of(exact, exact) == 1
    assert recall_of(np.array([[0.9, 0.4], [0.8, 0.8]], np.float32), exact) == 0.75
    assert recall_of(np.array([[0.5, 0.5], [0.8, -np.inf]], np.float32), exact) == 0.75


@pytest.mark.parametrize(("kind", "count"), [("hnsw", 2000), ("ivf_pq", 10_000), ("milvus", 2000)])
def test_approximate_search_and_its_recall(tmp_path, kind, count):
    rng = np.random.default_rng(0)
    rows, queries = embeddings(rng, count, dim=60), embeddings(rng, 50, dim=60)
    if kind == "milvus":
        pytest.importorskip("milvus_lite")
        url = str(tmp_path / "vectors.db")
        about = milvus.write_collection(url, rows, queries, tmp_path / "note")
        open_as = partial(milvus.open_collection, url, about)
    else:
        pytest.importorskip("faiss")
        about = approximate.write_approximate(kind, rows, queries, tmp_path / "x.faiss")
        open_as = partial(open_faiss, kind, tmp_path / "x.faiss", about["effort"])
    exact, _ = exact_nearest(queries, rows, 10, COSINE)
    opened = open_as(rows)
    assert about["search"] == kind
    result, scores = opened.nearest(queries, 10)
    common = [len(set(a) & set(b)) for a, b in zip(result.tolist(), exact.tolist(), strict=True)]
    recall = sum(common[1::2]) / 250
    assert about["recall@10"] == pytest.approx(recall), "no rows score equal here: by score is by row"
    assert sum(common[::2]) / 250 >= approximate.MIN_RECALL, "by which effort was chosen"
    assert (np.diff(scores, axis=1) <= 0).all()
    for query, hits, of_hits in zip(queries.astype(np.float64), result, scores, strict=True):
        assert of_hits.tolist() == [np.float32((query * rows[row]).sum()) for row in hits], "exact ones"
    low = recall_of(opened.nearest(queries, 10, effort=1)[1], exact_nearest(queries, rows, 10, COSINE)[1])
    assert low < sum(common) / 500, "an honest measure can be low"
    assert opened.nearest(queries, 3 * count)[0].shape == (50, count)
    assert [len(part) for part in opened.nearest(queries[:0], 10)] == [0, 0]
    with pytest.raises(BadInput, match="of this index; build the index again with"):
        open_as(rows[:10])


def open_faiss(kind, path, effort, rows):
    return Approximate.open(kind, path, rows, effort)


def test_a_damaged_file_of_faiss(tmp_path):
    pytest.importorskip("faiss")
    (tmp_path / "x.faiss").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="damaged"):
        Approximate.open("hnsw", tmp_path / "x.faiss", np.empty((3, 4), np.float32), 16)


def test_without_faiss_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(BadInput, match="pip install faiss-cpu"):
        approximate.check_search("hnsw", "cosine")


@pytest.mark.parametrize(
    ("search", "similarity", "sentence"),
    [
        ("hsnw", "cosine", "`search` hsnw: no such way to search; did you mean hnsw"),
        ("ivf_pq", "order", "order similarity is no inner product"),
    ],
)
def test_ways_to_search_that_there_are_not(search, similarity, sentence):
    with pytest.raises(BadInput, match=sentence):
        approximate.check_search(search, similarity)


@pytest.fixture(params=["cosine", "order"])
def searcher(request, tmp_path):
    """Twelve images, two of them the same, and their captions."""
    run = FakeRun(tmp_path, request.param)
    for number in range(11):
        paint(tmp_path / "images" / f"{number:02d}.png", number)
    paint(tmp_path / "images" / "99.png", 3)
    (tmp_path / "captions.txt").write_text("a red house\nA dog\n\n  a   cat \na cat\n")
    build_index(run, [tmp_path / "images"], tmp_path / "index", captions=tmp_path / "captions.txt")
    return Searcher.open(tmp_path / "index", run)


def test_a_sentence_finds_images(searcher):
    measure = nearest.TEXT_QUERY[searcher.similarity]
    (query,) = searcher.run.embed_sentences(["a red house"])
    wanted, scores = plain_nearest(measure, query, searcher.index.embeddings, 12)
    result = searcher.search("  a red\nhouse ", k=12)
    assert [image for image, _ in result] == [searcher.index.ids[row] for row in wanted]
    assert [score for _, score in result] == pytest.approx([scores[row] for row in wanted], abs=1e-6)
    images = [image for image, _ in result]
    assert images.index("99.png") == images.index("03.png") + 1, "the same image twice: a tie, by id"
    for rank, (image, score) in enumerate(result, 1):
        assert searcher.rank_of("a red house", image) == rank
        assert searcher.score_of("a red house", image) == score
    assert searcher.search("a red house", k=3) == result[:3]


def test_an_image_finds_captions_and_similar_images(searcher, tmp_path):
    assert searcher.index.captions[:] == ["A dog", "a cat", "a red house"]
    measure = nearest.IMAGE_QUERY[searcher.similarity]
    (query,) = searcher.run.embed_images([tmp_path / "images/05.png"])
    wanted, _ = plain_nearest(measure, query, searcher.index.caption_embeddings, 3)
    result = searcher.search_image(tmp_path / "images/05.png", k=5)
    assert [caption for caption, _ in result] == [searcher.index.captions[row] for row in wanted]
    similar = searcher.similar(tmp_path / "images/03.png", k=3)
    assert similar[0] == ("03.png", pytest.approx(1))
    assert similar[1] == ("99.png", similar[0][1])
    with PILImage.open(tmp_path / "images/03.png") as image:
        assert searcher.similar(image, k=3) == similar
        assert searcher.similar(image.convert("RGBA"), k=3) == similar
    assert searcher.similar_to("03.png", k=2) == similar[1:]
    (query,) = searcher.run.embed_images([tmp_path / "images/03.png"])
    third, _ = plain_nearest(COSINE, query, searcher.index.embeddings, 3)
    assert similar[2][0] == searcher.index.ids[third[2]], "cosine, whatever the similarity of the run"
    assert searcher.captions_of(query[None], 1, ["a cat"])[0][0] == "a cat"


def test_thumbnails_and_paths(searcher, tmp_path):
    assert searcher.thumbnail("03.png").startswith(b"\xff\xd8\xff")
    assert searcher.path("03.png") == tmp_path / "images/03.png"


def test_what_cannot_be_asked(searcher, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    cases = [
        (lambda: searcher.search("  \n"), "the query is empty"),
        (lambda: searcher.search("xyzzy plugh"), r"unknown words only \(xyzzy, plugh\)"),
        (lambda: searcher.search("?!"), "holds no word"),
        (lambda: searcher.search("a " * MAX_QUERY_CHARS), "characters; say it in 5,000 at most"),
        (lambda: searcher.search("a dog", k=0), "`k` 0"),
        (lambda: searcher.search(["a dog"]), "the query is list, no sentence; ask with one text at a time"),
        (lambda: searcher.rank_of(None, "03.png"), "the query is NoneType, no sentence"),
        (lambda: searcher.similar([tmp_path / "images/03.png"] * 2), "2 images: a query is one"),
        (lambda: searcher.search_image(tmp_path / "broken.jpg"), r"broken.jpg: cannot be read"),
        (lambda: searcher.thumbnail("none"), "has no image none"),
    ]
    for call, sentence in cases:
        with pytest.raises(BadInput, match=sentence):
            call()
    assert searcher.unknown_words("a dog xyzzy xyzzy") == ["xyzzy"]


def test_what_a_notebook_shows(searcher):
    folder, shown = searcher.index.folder, repr(searcher)
    counts = f"12 images, 3 captions, 24 dimensions, {searcher.similarity}"
    assert shown.startswith(f"Searcher(Index('{folder}': {counts}, by {searcher.index.meta.run}), ")
    first, second = searcher.ask("a dog", k=2).hits
    assert repr(searcher.ask("a dog", k=2)).splitlines() == ["Answer: 2 images", f"  {first}", f"  {second}"]
    assert repr(first) == f"Hit(rank=1, image={first.image!r}, score={first.score:.4f})"
    assert repr(Hit(3, 0.5, "a.jpg", true=True, probability=0.25)) == (
        "Hit(rank=3, image='a.jpg', score=0.5000, probability=0.25, true=True)"
    )


def test_captions_without_a_known_word_are_left_out(searcher, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("a cat\nxyzzy\n?!\n")
    build_index(searcher.run, [tmp_path / "images"], tmp_path / "mine", captions=tmp_path / "mine.txt")
    assert "mine.txt: 2 captions left out, of which the run knows no word" in capsys.readouterr().err
    assert Index.open(tmp_path / "mine").captions[:] == ["a cat"]
    (tmp_path / "mine.txt").write_text("xyzzy\n")
    with pytest.raises(BadInput, match="the run knows no word of its captions, such as 'xyzzy'"):
        build_index(searcher.run, [tmp_path / "images"], tmp_path / "mine", captions=tmp_path / "mine.txt")


def test_an_index_of_another_run(searcher, tmp_path):
    other = FakeRun(tmp_path, searcher.similarity, name="other")
    with pytest.raises(BadInput, match="is the index of another run than"):
        Searcher.open(tmp_path / "index", other)
    with pytest.raises(BadInput, match="say where it is with `run`"):
        Searcher.open(tmp_path / "index")
    with pytest.raises(BadInput, match="not an index"):
        Searcher.open(tmp_path / "images")


def test_approximate_where_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    run = FakeRun(tmp_path, "cosine")
    for number in range(30):
        paint(tmp_path / "images" / f"{number:02d}.png", number)
    built = build_index(run, [tmp_path / "images"], tmp_path / "index", search="hnsw")
    assert built.approximate is not None
    assert built.approximate["recall@10"] == 1
    assert built.approximate["queries"] == len(WORDS) // 2, "words stand for captions; half of them chose effort"
    searcher, exact = Searcher.open(tmp_path / "index", run), Searcher.open(tmp_path / "index", run, exact=True)
    assert searcher.index.approximate is not None
    assert exact.index.approximate is None
    assert searcher.search("a dog", 5) == exact.search("a dog", 5)
    paint(tmp_path / "images" / "new.png", 77)
    assert build_index(run, [tmp_path / "images"], tmp_path / "index", search="hnsw").approximate is not None
    assert len(Searcher.open(tmp_path / "index", run).search("a dog", 40)) == 31
    with pytest.raises(BadInput, match="wants 10,000 images at least, and there are 31"):
        build_index(run, [tmp_path / "images"], tmp_path / "index", search="ivf_pq")
    assert build_index(run, [tmp_path / "images"], tmp_path / "index").approximate is None
    assert not list((tmp_path / "index").glob("*.faiss"))
    monkeypatch.setattr(approximate, "MOST_IMAGES", {"exact": 20, "hnsw": 40})
    built = build_index(run, [tmp_path / "images"], tmp_path / "index")
    assert built.approximate is not None, "so many images ask for it"
    assert built.approximate["search"] == "hnsw"


def test_names_on_a_terminal():
    assert plain("a\nb\x1b[31m\udcff ü 犬") == "a\\nb\\x1b[31m\\xff ü 犬"


def call(monkeypatch, run, *args):
    """search.py as a command would run it, with a run of our own; returns the exit status."""
    monkeypatch.setattr("retrieval.searcher.open_for_sentences", lambda folder: run)
    monkeypatch.setattr(search_commands, "open_run", lambda *_: run)
    where = ["--run", run.folder] if args[0] == "find" else []  # the run of these tests has no folder
    monkeypatch.setattr(sys, "argv", ["search.py", *map(str, [*args, *where])])
    try:
        run_script(search_script.main)
    except SystemExit as end:
        return end.code or 0
    return 0


def test_find_prints_tables_json_lines_and_sheets(searcher, tmp_path, monkeypatch, capsys):
    run, index = searcher.run, tmp_path / "index"
    assert call(monkeypatch, run, "find", index, "a dog xyzzy", "-k", 3, "--sheet", tmp_path / "new/sheet.png") == 0
    said = capsys.readouterr()
    head, *lines = said.out.splitlines()
    assert head.split() == ["rank", "score", "image"]
    assert [line.split()[2] for line in lines] == [image for image, _ in searcher.search("a dog xyzzy", 3)]
    assert "Unknown words, left out: xyzzy." in said.err
    with PILImage.open(tmp_path / "new/sheet.png") as sheet:
        assert sheet.format == "PNG"
    assert call(monkeypatch, run, "find", index, "a dog", "-k", 2, "--format", "jsonl") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(row) for row in rows] == [{"rank", "score", "image", "path"}] * 2
    assert [row["rank"] for row in rows] == [1, 2]
    image = tmp_path / "images/05.png"
    assert call(monkeypatch, run, "find", index, "--image", image, "-k", 2, "--format", "jsonl") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(row) - {"rank", "score"} for row in rows] == [{"caption"}] * 2 + [{"image", "path"}] * 2
    (tmp_path / "mine.txt").write_text("a cat\na dog\n")
    more = ["--captions", tmp_path / "mine.txt", "--sheet", tmp_path / "sheet.png"]
    assert call(monkeypatch, run, "find", index, "--image", image, "-k", 2, *more) == 0
    out = capsys.readouterr().out
    assert "a cat" in out
    assert "A dog" not in out
    assert "05.png" not in out, "the image that asks"


BAD = [
    (["{index}"], "neither a sentence nor --image"),
    (["{index}", "a dog", "--image", "{image}"], "both a sentence and --image"),
    (["{index}", ""], "the query is empty"),
    (["{index}", "xyzzy"], "unknown words only (xyzzy)"),
    (["{index}", "a dog", "-k", "0"], "-k 0"),
    (["{index}", "--image", "{root}/none.png"], "none.png: cannot be read (no such file)"),
    (["{index}", "a dog", "--captions", "{image}"], "--captions: are searched from an image"),
    (["{index}", "--image", "{image}", "--captions", "{image}"], "not UTF-8 text"),
    (["{index}", "--image", "{image}", "--captions", "{root}/none.txt"], "none.txt: no such file"),
    (["{index}", "a dog", "--sheet", "{root}/sheet.jpg"], "name a file that ends in .png"),
    (["{root}/none", "a dog"], "not an index"),
    (["{root}/images", "a dog"], "not an index"),
]


def test_bad_input_is_one_sentence_and_status_2(searcher, tmp_path, monkeypatch, capsys):
    names = {"index": tmp_path / "index", "image": tmp_path / "images/05.png", "root": tmp_path}
    for args, sentence in BAD:
        args = [arg.format(**names) for arg in args]
        assert call(monkeypatch, searcher.run, "find", *args) == 2, args
        said = capsys.readouterr()
        assert sentence in said.err
        assert (said.out, len(said.err.splitlines())) == ("", 1)


def test_the_true_image_of_a_dataset_caption(tmp_path, monkeypatch, capsys):
    """Framed and marked, at the end with its rank where it is not among the top ones."""
    run = FakeRun(tmp_path, "cosine")
    folder = run.prepare(tmp_path, 10)
    assert call(monkeypatch, run, "index", "--run", "RUN", folder, "--out", tmp_path / "index") == 0
    assert "10 images (10 new," in capsys.readouterr().out
    searcher = Searcher.open(tmp_path / "index", run)
    assert searcher.index.captions[:] == [f"picture {n} of a dog" for n in range(6)], "of the training split only"
    query = "picture 7 of a dog"
    assert searcher.true_images(query) == ["7.png"]
    rank = searcher.rank_of(query, "7.png")
    for k in (rank, rank - 1) if rank > 1 else (1,):
        assert call(monkeypatch, run, "find", tmp_path / "index", query, "-k", k) == 0
        out = capsys.readouterr().out
        (marked,) = [line for line in out.splitlines() if "← true" in line]
        assert marked.split()[0] == str(rank)
        assert f"true image: 7.png at rank {rank} of 10" in out
    assert call(monkeypatch, run, "find", tmp_path / "index", "a dog", "-k", 2) == 0
    assert "true" not in capsys.readouterr().out
    assert searcher.true_images("two pictures of one caption") == ["8.png", "9.png"]


def test_a_caption_of_more_images_than_are_said(tmp_path, monkeypatch):
    """All are ranked, in the exact list, and the best one is shown, wherever its id stands."""
    run = FakeRun(tmp_path, "cosine")
    folder = run.prepare(tmp_path, 40)  # all but eight have the caption
    build_index(run, [folder], tmp_path / "index")
    searcher = Searcher.open(tmp_path / "index", run)
    query = "two pictures of one caption"
    true = searcher.true_images(query)
    answer = searcher.ask(query, 40)
    whole = [hit.image for hit in answer.hits]
    assert len(true) == 32 > search_commands.MAX_TRUE_SHOWN
    assert answer.positions == {image: rank for rank, image in enumerate(whole, 1) if image in true}
    assert list(answer.positions.values()) == sorted(answer.positions.values())
    others = [image for image in whole if image not in true]
    first = np.array([[searcher.row_of(others[0])]])
    monkeypatch.setattr(searcher, "nearest_images", lambda queries, k: (first, np.zeros((1, 1))))
    best = min(true, key=whole.index)
    assert [(hit.image, hit.rank, hit.below) for hit in searcher.ask(query, 1).hits] == [
        (others[0], 1, False),
        (best, whole.index(best) + 1, True),
    ]
    (note,) = search_commands.find_images(searcher, query, 1).notes
    assert note.count(" at rank ") == search_commands.MAX_TRUE_SHOWN
    assert note.endswith(" and 12 more of 40")


def test_a_true_image_that_the_graph_does_not_find_stands_below(tmp_path, monkeypatch, capsys):
    """Its rank is exact, and may be smaller than k: it is still no answer of the graph's."""
    run = FakeRun(tmp_path, "cosine")
    build_index(run, [run.prepare(tmp_path, 10)], tmp_path / "index")
    searcher = Searcher.open(tmp_path / "index", run)
    query = "picture 7 of a dog"
    rank, nearest_images = searcher.rank_of(query, "7.png"), searcher.nearest_images

    def forgetful(queries, k):
        best, scores = nearest_images(queries, k + 1)
        keep = best[0] != searcher.row_of("7.png")
        return best[:, keep][:, :k], scores[:, keep][:, :k]

    monkeypatch.setattr(searcher, "nearest_images", forgetful)
    answer = searcher.ask(query, 9)
    assert len(answer.hits) == 10
    assert [hit.image for hit in answer.hits if hit.true or hit.below] == ["7.png"]
    last = answer.hits[-1]
    assert (last.rank, last.score, last.below) == (rank, searcher.score_of(query, "7.png"), True)
    assert answer.positions == {"7.png": rank}
    result = search_commands.find_images(searcher, query, 9)
    assert result.notes == [f"a caption of the dataset; true image: 7.png at rank {rank} of 10"]
    assert len(search_commands.as_jsonl(searcher, result).splitlines()) == 9
    assert search_commands.as_table(searcher, result).splitlines()[10].strip() == "…"


def test_an_index_opens_its_run_where_it_lies(searcher, tmp_path):
    assert Index.open(tmp_path / "index").meta.run == str(searcher.run.folder.resolve())


def test_from_images_to_answers(tmp_path, monkeypatch, capsys):
    """The whole way on a handful of images, with the weights that come with the install."""
    draw_images(tmp_path)
    assert script_call(monkeypatch, prep, *prep_args(tmp_path)) == 0
    train_args = ["strong", "--data", tmp_path / "data/folder", "--runs", tmp_path / "runs", *QUICK]
    assert script_call(monkeypatch, train, *train_args) == 0
    (run,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()

    def searched(*args):
        status = script_call(monkeypatch, search_script, *args)
        return status, capsys.readouterr()

    # from the images, and from the features that prep.py has left: the same
    for images, out in ((tmp_path / "images", "index"), (tmp_path / "data/folder", "prepared")):
        status, said = searched("index", "--run", run, images, "--out", tmp_path / out)
        assert (status, said.out.splitlines()[0]) == (
            0,
            f"{tmp_path / out}: 24 images (24 new, 0 changed, 0 moved, 0 removed, 0 kept), "
            f"{len(Index.open(tmp_path / out).captions)} captions",
        )
    one, other = Index.open(tmp_path / "index"), Index.open(tmp_path / "prepared")
    assert list(one.ids) == list(other.ids)
    np.testing.assert_allclose(one.embeddings, other.embeddings, atol=1e-5)
    query = json.loads((tmp_path / "data/folder/captions.jsonl").read_text().splitlines()[0])["captions"][0]
    status, said = searched("find", tmp_path / "prepared", query, "-k", 24, "--sheet", tmp_path / "sheet.png")
    assert status == 0
    assert "0.png at rank" in said.out
    true = Searcher.open(tmp_path / "prepared").true_images(query)
    assert said.out.count("← true") == len(true) >= 1
    status, said = searched("find", tmp_path / "index", "--image", tmp_path / "images/0.png", "-k", 3)
    assert status == 0
    captions, images = said.out.split("\n\n")
    assert len(captions.splitlines()) == len(images.splitlines()) == 4
    assert "0.png" not in images.split(), "the image that asks"
    status, said = searched("find", tmp_path / "index", "zyx", "-k", 3)
    assert (status, said.out) == (2, "")
    assert "unknown words only (zyx)" in said.err
    copy = copy_of(run, tmp_path / "copy", seed=1, digests=["0"])
    status, said = searched("find", tmp_path / "index", query, "--run", copy)
    assert status == 2
    assert "is the index of another run" in said.err
    assert searched("index", "--run", copy, tmp_path / "images", "--out", tmp_path / "index")[0] == 2
