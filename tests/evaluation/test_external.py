"""Models of others: scores, embeddings and pairs in every format, beside runs and alone, and what is refused."""

import csv
import io
import json
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import eval as evaluation
from features.prepared import Prepared
from metrics.correction import Bank, Retrieval, biases, fixed_parameters
from metrics.ranks import DIRECTIONS, metrics_of, ranks_of
from metrics.similarity import RANKING
from tests.helpers import call, train_drawn
from training.run import Run

IMAGES = 12
OWNER = np.repeat(np.arange(IMAGES), 1 + np.arange(IMAGES) % 3)
IMAGE_IDS = [f"im {number}.jpg" for number in range(IMAGES)]
CAPTION_IDS = [f"{IMAGE_IDS[image]}#{row}" for row, image in enumerate(OWNER)]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embeddings(seed=0, dim=6):
    random = np.random.default_rng(seed)
    images = random.normal(size=(IMAGES, dim)).astype(np.float32)
    captions = (images[OWNER] + 0.9 * random.normal(size=(len(OWNER), dim))).astype(np.float32)
    return images, captions


def save(path, array, ids=None):
    """Write an array as the suffix says."""
    name, ids = "images" if len(array) == IMAGES and array.shape[1] < IMAGES else "embeddings", ids or {}
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **{name: array, **{key: np.array(value) for key, value in ids.items()}})
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file[name] = array
            for key, value in ids.items():
                file[key] = value
    else:
        safetensors.numpy.save_file({name: np.ascontiguousarray(array)}, path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two models' files, and pairs, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("one", 0), ("two", 1)):
        images, captions = embeddings(seed)
        np.save(f"{name}_images.npy", images)
        np.save(f"{name}_captions.npy", captions)
        np.save(f"{name}.npy", unit(images) @ unit(captions).T)
    np.save("owner.npy", OWNER)
    lines = [f'"{IMAGE_IDS[image]}",{caption}\n' for image, caption in zip(OWNER, CAPTION_IDS, strict=True)]
    (tmp_path / "flickr8k.csv").write_text("image,caption\n" + "".join(lines))
    return tmp_path


@pytest.fixture
def rows(monkeypatch, capsys):
    def of(*args):
        capsys.readouterr()
        assert call(monkeypatch, evaluation, *args, "--format", "json") == 0
        return json.loads(capsys.readouterr().out)

    return of


def figures(row):
    return {direction: row[direction] for direction in DIRECTIONS}


def expected(scores):
    return metrics_of(ranks_of(torch.as_tensor(scores), OWNER))


def test_scores_have_the_figures_of_their_ranks(folder, rows):
    one, two = rows("--scores", "one.npy", "b=two.npy", "--pairs", "flickr8k.csv", "--against", "one", "--paper")[:2]
    assert (one["row"], two["row"], two["source"]) == ("one", "b", "two.npy")
    assert (one["dataset"], one["images"], one["captions"]) == ("flickr8k", IMAGES, len(OWNER))
    for row, name in ((one, "one"), (two, "two")):
        assert figures(row) == expected(np.load(f"{name}.npy"))
        assert row["interval"]["rsum"][0] <= row["rsum"] <= row["interval"]["rsum"][1]
    assert two["against"]["difference"] == pytest.approx(two["rsum"] - one["rsum"])


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".safetensors"])
def test_every_format_of_arrays_gives_the_same(folder, rows, suffix):
    images, captions = embeddings()
    files = [save(folder / f"{name}{suffix}", array) for name, array in (("i", images), ("c", captions))]
    scores = save(folder / f"s{suffix}", np.load("one.npy"))
    by_scores, by_embeddings = rows("--scores", scores, "--embeddings", *files, "--pairs", "owner.npy")
    assert figures(by_scores) == figures(by_embeddings) == expected(np.load("one.npy"))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_every_type_of_numbers_keeps_its_order(folder, rows, dtype):
    scores = (np.load("one.npy") * 1000).astype(dtype)
    if dtype == "float64":  # equal in float32: its own digits decide
        scores = 1 + scores * 1e-12
    np.save("typed.npy", scores)
    (row,) = rows("--scores", "typed.npy", "--pairs", "owner.npy")
    assert figures(row) == expected(scores.astype(np.float64))


def test_bfloat16_is_read(folder, rows):
    sides = [torch.from_numpy(side).bfloat16() for side in embeddings()]
    safetensors.torch.save_file({"image_embeds": sides[0], "text_embeds": sides[1]}, "clip.safetensors")
    (row,) = rows("--embeddings", "clip.safetensors", "clip.safetensors", "--pairs", "owner.npy")
    images, captions = (torch.nn.functional.normalize(side.double(), dim=1).float() for side in sides)
    assert (row["row"], figures(row)) == ("clip", expected(RANKING["cosine"](images, captions)))


@pytest.mark.parametrize("similarity", ["order", "dot"])
def test_other_similarities(folder, rows, similarity):
    (row,) = rows(
        "--embeddings", "one_images.npy", "one_captions.npy", "--pairs", "owner.npy", "--similarity", similarity
    )
    images, captions = embeddings()
    if similarity == "order":
        images, captions = np.abs(unit(images)), np.abs(unit(captions))
    scores = RANKING["order" if similarity == "order" else "cosine"](*map(torch.from_numpy, (images, captions)))
    assert (row["row"], figures(row)) == ("one", expected(scores))


def pairs_files(folder):
    pairs = list(zip(OWNER.tolist(), range(len(OWNER)), strict=True))
    named = [(IMAGE_IDS[image], CAPTION_IDS[caption]) for image, caption in pairs]
    texts = {
        "ids.tsv": "caption\tfile_name\n" + "".join(f"{caption}\t{image}\n" for image, caption in named),
        "rows.csv": "image_row;caption_row\n" + "".join(f"{image};{caption}\n" for image, caption in pairs),
        "ids.jsonl": "".join(json.dumps({"image": image, "caption": caption}) + "\n" for image, caption in named),
        "lists.jsonl": "".join(
            json.dumps({"image": image, "captions": [c for i, c in pairs if i == image]}) + "\n"
            for image in range(IMAGES)
        ),
        "t2i.qrels": "".join(f"{caption} 0 {image} 1\n" for image, caption in pairs),
        "i2t.qrels": "".join(f"{image} 0 {caption} 1\n" for image, caption in pairs)
        + "".join(f"{image} 0 0 0\n" for image in range(1, IMAGES)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    np.save(folder / "pairs.npy", np.array(pairs)[::-1])
    return [*(name for name in texts if name != "i2t.qrels"), "pairs.npy", "owner.npy", "flickr8k.csv"]


def test_every_format_of_pairs_gives_the_same(folder, rows):
    names = pairs_files(folder)
    for name in names:
        (row,) = rows("--scores", "one.npy", "--pairs", name)
        assert figures(row) == expected(np.load("one.npy")), name


def test_rows_are_joined_by_the_ids_that_files_have(folder, rows):
    order, other = np.random.default_rng(0).permutation(IMAGES), np.random.default_rng(1).permutation(len(OWNER))
    ids = {"images": [IMAGE_IDS[row] for row in order], "captions": [CAPTION_IDS[row] for row in other]}
    scores = np.load("one.npy")[order][:, other]
    np.savez("a.npz", scores=scores, image_ids=ids["images"], caption_ids=ids["captions"])
    with h5py.File("b.h5", "w") as file:
        file["scores"], file["image"], file["caption"] = scores, ids["images"], ids["captions"]
    np.savez("i.npz", images=embeddings()[0][order], ids=ids["images"])
    np.savez("c.npz", captions=embeddings()[1][other], caption_ids=ids["captions"])
    found = rows("--scores", "a.npz", "b.h5", "--embeddings", "e=i.npz", "c.npz", "--pairs", "flickr8k.csv")
    for row in found:
        assert figures(row) == expected(np.load("one.npy")), row["row"]


def test_captions_of_several_images_and_images_without_captions(folder, rows):
    """By hand: an image and two captions belong to none."""
    pairs = [(0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (0, 2)]
    np.save("many.npy", np.array(pairs))
    scores = np.array([[5, 1, 2, 7, 0], [5, 4, 3, 2, 1], [1, 1, 1, 1, 1], [0, 2, 6, 3, 3], [9, 0, 6, 0, 0]], np.float32)
    np.save("s.npy", scores)
    (row,) = rows("--scores", "s.npy", "--pairs", "many.npy", "--metrics", "recall", "map")
    # image 0: 7 of no image stands before its best, 5; image 2: all are equal, its own last
    assert row["image_to_text"]["R@1"] == pytest.approx(100 * 2 / 4)
    assert row["text_to_image"]["mean_rank"] == pytest.approx(np.mean([2, 1, 2]))
    assert row["queries"] == [4, 3]
    assert row["more"]["image_to_text"]["recall@1"]["mean"] == pytest.approx(100 * np.mean([0, 0.5, 0, 1]))
    assert row["more"]["text_to_image"]["mAP@R"]["mean"] == pytest.approx(100 * np.mean([1 / 4, 1, 1 / 6]))


def test_both_directions_of_qrels(folder, rows):
    pairs_files(folder)
    (row,) = rows("--scores", "one.npy", "--pairs", "t2i.qrels", "i2t.qrels")
    assert figures(row) == expected(np.load("one.npy"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["inverted_softmax", "nnn", "qb_norm", "sinkhorn"])
def test_scores_are_corrected_as_embeddings_are(folder, rows, name, dtype):
    np.save("one.npy", np.load("one.npy").astype(dtype))
    models = ["--scores", "s=one.npy", "--embeddings", "one_images.npy", "one_captions.npy", "--pairs", "owner.npy"]
    plain, corrected, also_plain, also = rows(*models, "--correction", name, "--bank", "test")
    assert figures(plain) == figures(also_plain)
    assert figures(corrected) == figures(also)
    assert corrected["transductive"]


def test_what_scores_do_not_say_is_not_corrected(folder, rows, monkeypatch, capsys):
    models = ["--scores", "s=one.npy", "--embeddings", "one_images.npy", "one_captions.npy", "--pairs", "owner.npy"]
    found = rows(*models, "--correction", "db_norm", "--bank", "test")
    assert [row["row"] for row in found] == ["s", "one", "one + db_norm (transductive)"]
    alone = ["--scores", "one.npy", "--pairs", "owner.npy", "--correction", "db_norm", "--bank", "test"]
    assert call(monkeypatch, evaluation, *alone) == 2
    assert "compares images with images" in capsys.readouterr().err.splitlines()[-1]


def test_a_bank_of_training_embeddings_corrects_inductively(folder, rows, monkeypatch, capsys):
    images, captions = (torch.from_numpy(unit(side).astype(np.float32)) for side in embeddings())
    bank = embeddings(7)
    for name, side in zip(("bank_i.npy", "bank_c.npy"), bank, strict=True):
        np.save(name, side)
    model = ["--embeddings", "one_images.npy", "one_captions.npy", "--pairs", "owner.npy", "--correction", "nnn"]
    _, row = rows(*model, "--bank-embeddings", "bank_i.npy", "bank_c.npy")
    assert (row["row"], row["transductive"]) == ("one + nnn (inductive)", False)
    sides = [torch.from_numpy(unit(side).astype(np.float32)) for side in bank]
    scores = RANKING["cosine"](images, captions)
    p = fixed_parameters(float(scores.double().std()))["nnn"]
    bias = biases("nnn", p, Retrieval("cosine", "text_to_image"), images, Bank(sides[1], sides[0]))
    assert row["text_to_image"] == expected(scores - bias[:, None])["text_to_image"]
    np.save("bank_i.npy", np.concatenate([bank[0], embeddings()[0][:1]]))
    assert call(monkeypatch, evaluation, *model, "--bank-embeddings", "bank_i.npy", "bank_c.npy") == 2
    assert f"bank_i.npy: its row {IMAGES} is one of those that are measured" in capsys.readouterr().err


def test_models_together(folder, rows):
    models = ["--scores", "one.npy", "two.npy", "--pairs", "owner.npy", "--ensemble", "all"]
    *_, row = rows(*models)
    assert row["row"] == "ensemble of 2 runs"
    assert figures(row) == expected((np.load("one.npy").astype(np.float64) + np.load("two.npy")) / 2)


def test_rows_of_any_length_have_a_direction(folder, rows):
    """Their squares would overflow, or vanish."""
    for name, factor in (("huge", 1e300), ("tiny", 1e-300)):
        for side, array in zip(("images", "captions"), embeddings(), strict=True):
            np.save(f"{name}_{side}.npy", array.astype(np.float64) * factor)
        (row,) = rows("--embeddings", f"{name}_images.npy", f"{name}_captions.npy", "--pairs", "owner.npy")
        assert figures(row) == expected(np.load("one.npy")), name


def test_a_caption_alone_in_a_list_or_not(folder, rows):
    lines = [{"image": str(image), "captions": f"{row:02}"} for row, image in enumerate(OWNER)]
    (folder / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = rows("--scores", "one.npy", "--pairs", "text.jsonl")
    assert figures(row) == expected(np.load("one.npy"))


def test_what_is_no_array_beside_one_is_passed_over(folder, rows):
    np.savez("more.npz", scores=np.load("one.npy"))
    with zipfile.ZipFile("more.npz", "a") as archive:
        archive.writestr("notes.txt", "of the model")
    with h5py.File("more.h5", "w") as file:
        file["scores"], file["nothing"] = np.load("one.npy"), h5py.Empty("f")
    for row in rows("--scores", "a=more.npz", "b=more.h5", "--pairs", "owner.npy"):
        assert figures(row) == expected(np.load("one.npy"))


def test_one_image_and_one_caption_have_a_report(folder, rows):
    np.save("single.npy", np.ones((1, 1), np.float32))
    np.save("first.npy", np.array([0]))
    (row,) = rows("--scores", "single.npy", "--pairs", "first.npy", "--report", "one.html")
    assert row["rsum"] == 600
    assert "one.html" in {path.name for path in folder.iterdir()}


def test_every_format_of_the_table_has_the_other_metrics(folder, monkeypatch, capsys):
    models = [
        "--scores",
        "one.npy",
        "two.npy",
        "--pairs",
        "owner.npy",
        "--metrics",
        "recall",
        "ndcg",
        "map",
        "rprecision",
    ]

    def printed(form):
        assert call(monkeypatch, evaluation, *models, "--format", form) == 0
        return capsys.readouterr().out

    rows = json.loads(printed("json"))
    columns = ["recall@1", "recall@5", "recall@10", "nDCG@10", "mAP@R", "R-precision"]
    assert [list(rows[0]["more"][direction]) for direction in DIRECTIONS] == [columns, columns]
    values = [f"{row['more'][d][c]['mean']:.1f}" for row in rows for d in DIRECTIONS for c in columns]
    for form in ("text", "markdown", "latex"):
        out = printed(form)
        assert all(column in out for column in columns), form
        assert all(value in out for value in values), form
        assert "Ties count against the model" in " ".join(out.split()), form
        assert "the share of a query's true items among the first K" in " ".join(out.split()), form
    lines = list(csv.DictReader(io.StringIO(printed("csv"))))
    for line, row in zip(lines, rows, strict=True):
        one = row["more"]["text_to_image"]["mAP@R"]
        assert float(line["text_to_image mAP@R"]) == one["mean"]
        assert [float(line[f"text_to_image mAP@R {end}"]) for end in ("low", "high")] == one["interval"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = train_drawn(tmp_path_factory.mktemp("beside"), ["strong"])
    (run,) = (folder / "runs").iterdir()
    opened, data = Run.open(run), Prepared(folder / "data/folder")
    split = data.split("test", opened.info.features, opened.settings.image.normalize)
    np.save(folder / "own_images.npy", opened.embed_features(split.features))
    np.save(folder / "own_captions.npy", opened.embed_captions(data, "test"))
    return folder


def test_beside_a_run_in_the_order_of_its_split(trained, rows, tmp_path):
    own = ["--embeddings", trained / "own_images.npy", trained / "own_captions.npy"]
    more = ["--against", "own", "--correction", "nnn", "--bank", "test", "--ensemble", "all", "--metrics", "ndcg"]
    files = ["--report", tmp_path / "a.html", "--plots", tmp_path / "plots", "--trec", tmp_path / "trec"]
    found = {row["row"]: row for row in rows(f"{trained}/runs/*", *own, *more, *files)}
    assert figures(found["strong"]) == figures(found["own"])
    assert (found["strong"]["against"]["difference"], found["strong"]["against"]["p"]) == (0, 1)
    assert set(found) >= {"own + nnn (transductive)", "ensemble of 2 runs"}
    page = (tmp_path / "a.html").read_text()
    assert "<h3>own</h3>" in page
    assert "nDCG@10" in page
    names = {path.name for path in (tmp_path / "trec").iterdir()}
    assert {"own.image_to_text.run", "folder.text_to_image.qrels"} < names
    (alone,) = rows("--data", trained / "data/folder", *own, "--report", tmp_path / "b.html")
    assert figures(alone) == figures(found["own"])
    page = (tmp_path / "b.html").read_text()
    assert "Learning curves" not in page
    assert "Recall@K" in page
    assert "data:image/jpeg" in page, "the prepared folder knows where images lie"


def test_other_ground_truths_are_tables_of_their_own(folder, rows, monkeypatch):
    """A package of twelve images: ECCV Caption asks two images and one caption, CxC all of them."""
    captions = [900 + row for row in range(len(OWNER))]
    np.save("coco_test_ids.npy", captions)
    own = {str(caption): [100 + int(image)] for caption, image in zip(captions, OWNER, strict=True)}
    back = {
        str(100 + image): [c for c, of in zip(captions, OWNER, strict=True) if of == image] for image in range(IMAGES)
    }
    files = {
        "original_caption_to_image": own,
        "cxc_image_to_caption": back,
        "cxc_caption_to_image": own,
        "eccv_image_to_caption": {"100": [900, 901, 905], "103": [910, 5]},
        "eccv_caption_to_image": {"902": [101, 104, 107]},
    }
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    monkeypatch.setattr("evaluation.ground_truth.data_folder", lambda: folder)
    lines = [f"val2014/COCO_val2014_{100 + image:012}.jpg,{900 + row}\n" for row, image in enumerate(OWNER)]
    (folder / "coco.csv").write_text("image,caption\n" + "".join(lines))
    usual, eccv, cxc = rows("--scores", "one.npy", "--pairs", "coco.csv", "--ground-truth", "eccv", "cxc")
    assert [row["protocol"] for row in (usual, eccv, cxc)] == ["test 12", "5K, ECCV Caption", "5K, CxC"]
    assert figures(usual) == figures(cxc)
    assert "more" not in usual
    assert (eccv["queries"], list(eccv["more"]["text_to_image"])) == ([2, 1], ["mAP@R", "R-precision"])
    scores = np.load("one.npy")
    ranks = []
    for image, true in ((0, [0, 1, 5]), (3, [10])):
        best = scores[image, true].max()
        ranks.append(1 + sum(scores[image, c] >= best for c in range(len(OWNER)) if c not in true))
    assert eccv["image_to_text"]["mean_rank"] == np.mean(ranks)
    precision = [np.isin(np.argsort(-scores[:, 2])[:3], [1, 4, 7]).mean()]
    assert eccv["more"]["text_to_image"]["R-precision"]["mean"] == pytest.approx(100 * np.mean(precision))


EMBEDDINGS = ["--embeddings", "one_images.npy", "one_captions.npy", "--pairs", "owner.npy"]
BAD = [
    (["--pairs", "owner.npy"], "--pairs: is of models of others; name those with --scores or --embeddings"),
    (["--scores", "one.npy"], "say with --pairs which captions belong to which images"),
    (["--scores", "one.npy", "--pairs", "owner.npy", "--similarity", "dot"], "is of --embeddings"),
    (
        ["--scores", "one.npy", "--pairs", "owner.npy", "--judgements", "x"],
        "--judgements x: takes runs of this project",
    ),
    (["--scores", "one.npy", "--pairs", "owner.npy", "--data", "x"], "runs and --data have pairs of their own"),
    (["--scores", "one.npy", "one=two.npy", "--pairs", "owner.npy"], "would be called one, as one.npy is"),
    (
        ["--scores", "one.npy", "--pairs", "owner.npy", "--correction", "nnn"],
        "--correction nnn: corrects none of these",
    ),
    (["--scores", "none.npy", "--pairs", "owner.npy"], "none.npy: no such file; check the path of the scores"),
    (["--scores", "nan.npy", "--pairs", "owner.npy"], "nan.npy: row 2, column 3 is nan; scores must be finite"),
    (["--scores", "turned.npy", "--pairs", "owner.npy"], "images and captions have changed sides"),
    (["--scores", "turned.npy", "--pairs", "flickr8k.csv"], "images and captions have changed sides"),
    (["--scores", "few.npy", "--pairs", "flickr8k.csv"], "names 12 images where 11 have rows"),
    (["--scores", "one.npy", "few.npy", "--pairs", "owner.npy"], "few.npy: has 11 images where 12 images and"),
    (["--scores", "cube.npy", "--pairs", "owner.npy"], "cube.npy: holds scores (2, 2, 2); scores are one matrix"),
    (["--scores", "objects.npz", "--pairs", "owner.npy"], "not an .npz archive of plain arrays"),
    (["--scores", "objects.npy", "--pairs", "owner.npy"], "objects.npy: not a .npy array"),
    (["--scores", "text.h5", "--pairs", "owner.npy"], "text.h5: not an HDF5 file, or cut short"),
    (["--scores", "text.safetensors", "--pairs", "owner.npy"], "not a safetensors file, or cut short"),
    (
        ["--scores", "several.npz", "--pairs", "owner.npy"],
        "several.npz: holds a (2, 2), b (2, 2); scores are one matrix",
    ),
    (["--scores", "ids.npz", "--pairs", "owner.npy"], "ids.npz: has 1 ids for 12 images; save one for each"),
    (["--scores", "text.pkl", "--pairs", "owner.npy"], "line 1 is not 'topic Q0 document rank score tag'"),
    (["--scores", "one.npy", "--pairs", "empty.csv"], "empty.csv: says of no image and caption that they belong"),
    (["--scores", "one.npy", "--pairs", "other.csv"], "line 1 is 'a,b'; pairs need a header with the columns"),
    (["--scores", "one.npy", "--pairs", "short.csv"], "short.csv: line 2 lacks its image or its caption"),
    (["--scores", "one.npy", "--pairs", "bad.jsonl"], "bad.jsonl: line 1 is not {"),
    (
        ["--scores", "one.npy", "--pairs", "one.npy"],
        "one.npy: is float32 of the shape (12, 24); pairs are whole numbers",
    ),
    (["--scores", "one.npy", "--pairs", "owner.npy", "flickr8k.csv"], "two files are qrels of both directions"),
    (["--scores", "one.npy", "--pairs", "owner.npy", "--folds", "5"], "--folds 5: the 12 images of owner's test split"),
    (["--embeddings", "one_images.npy", "wide.npy", "--pairs", "owner.npy"], "are compared in one space"),
    (
        ["--embeddings", "zero.npy", "one_captions.npy", "--pairs", "owner.npy"],
        "zero.npy: row 4 is zero, and has no cosine",
    ),
    (["--embeddings", "one_captions.npy", "one_images.npy", "--pairs", "owner.npy"], "have changed sides"),
    (
        ["--embeddings", "huge.npy", "one_captions.npy", "--pairs", "owner.npy", "--similarity", "dot"],
        "huge.npy: holds values up to 1e+60, beyond float32",
    ),
    (
        ["--embeddings", "large.npy", "large_captions.npy", "--pairs", "owner.npy", "--similarity", "dot"],
        "large.npy: has dot products with large_captions.npy of up to",
    ),
    (
        ["--embeddings", "i=complex.safetensors", "one_captions.npy", "--pairs", "owner.npy"],
        "complex.safetensors: holds images (12, 6) of C64; images are one matrix of numbers",
    ),
    (["--embeddings", "i=eight.safetensors", "one_captions.npy", "--pairs", "owner.npy"], "images (12, 6) of F8_E4M3;"),
    (["--embeddings", "complex.npy", "one_captions.npy", "--pairs", "owner.npy"], "images (12, 6) of complex64;"),
    (["--scores", "one.npy", "--pairs", "object.jsonl"], "object.jsonl: line 1 is not {"),
    (["--scores", "one.npy", "--pairs", "digits.csv"], "digits.csv: names 1 images where 12 have rows"),
    (["--scores", "one.npy", "--pairs", "long.csv"], "long.csv: line 3 is not proper CSV (field larger than"),
    (
        ["--scores", "single.npy", "--pairs", "first.npy", "--correction", "nnn", "--bank", "test"],
        "single.npy: scores one image with one caption, which has no hubs to correct",
    ),
    (
        ["--scores", "one.npy", "two.npy", "--pairs", "owner.npy", "--ensemble", "seed"],
        "--ensemble seed: none of these rows has seeds; take all together with --ensemble all",
    ),
    (
        ["--scores", "one.npy", "clip.i2t.run", "clip.t2i.run", "--pairs", "owner.npy", "--ensemble", "all"],
        "--ensemble all: clip is a TREC run, which has no score of what it leaves out",
    ),
    (
        [*EMBEDDINGS, "--bank-embeddings", "one_images.npy", "one_captions.npy"],
        "--bank-embeddings: are what inductive corrections take; name one with --correction and --bank train",
    ),
    (
        [*EMBEDDINGS, "--bank-embeddings", "i.npy", "c.npy", "--correction", "nnn", "--bank", "test"],
        "--bank-embeddings: are what inductive corrections take",
    ),
]


@pytest.mark.parametrize(("args", "sentence"), BAD, ids=[" ".join(args)[:60] for args, _ in BAD])
def test_bad_input_is_one_sentence(folder, monkeypatch, capsys, args, sentence):
    scores = np.load("one.npy")
    np.save("turned.npy", scores.T)
    np.save("few.npy", scores[:11])
    np.save("cube.npy", np.zeros((2, 2, 2)))
    np.save("wide.npy", np.ones((len(OWNER), 9)))
    np.save("objects.npy", np.array([[None]]), allow_pickle=True)
    np.savez("objects.npz", scores=scores, ids=np.array([None], object))
    np.savez("several.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    np.savez("ids.npz", scores=scores, image_ids=["a"])
    scores[2, 3] = np.nan
    np.save("nan.npy", scores)
    images = embeddings()[0]
    images[4] = 0
    np.save("zero.npy", images)
    for name, side, factor in (("huge", 0, 1e60), ("large", 0, 1e25), ("large_captions", 1, 1e25)):
        np.save(f"{name}.npy", embeddings()[side].astype(np.float64) / np.abs(embeddings()[side]).max() * factor)
    np.save("complex.npy", images.astype(np.complex64))
    for name, dtype in (("complex", torch.complex64), ("eight", torch.float8_e4m3fn)):
        safetensors.torch.save_file({"images": torch.from_numpy(images).to(dtype)}, f"{name}.safetensors")
    np.save("single.npy", np.ones((1, 1), np.float32))
    np.save("first.npy", np.array([0]))
    texts = {"empty.csv": "image,caption\n", "other.csv": "a,b\n1,2\n", "short.csv": "image,caption\n1,\n"}
    texts |= {"digits.csv": f"image,caption\n{'1' * 5000},0\n", "long.csv": f"image,caption\n0,0\n1,{'1' * 2**18}\n"}
    texts |= {"object.jsonl": '{"image": 0, "captions": {"a": 1}}\n'}
    texts |= {"clip.i2t.run": "0 Q0 1 1 0.5 clip\n", "clip.t2i.run": "1 Q0 0 1 0.5 clip\n"}
    for name, text in {
        **texts,
        "bad.jsonl": '{"image": 1.5}\n',
        "text.h5": "x",
        "text.safetensors": "x",
        "text.pkl": "x",
    }.items():
        (folder / name).write_text(text)
    assert call(monkeypatch, evaluation, *args) == 2
    said = capsys.readouterr()
    assert sentence in said.err.splitlines()[-1]
    assert said.out == ""


def test_what_corrects_nothing_is_said_once(folder, monkeypatch, capsys):
    assert call(monkeypatch, evaluation, "--scores", "one.npy", "--pairs", "owner.npy", "--correction", "nnn") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("has no training data to correct by") == 1


def test_files_without_a_common_name_are_the_name(folder, rows):
    """And not whatever folder they lie in."""
    for name, array in zip(("im", "cap"), embeddings(), strict=True):
        np.save(f"{name}.npy", array)
    (row,) = rows("--embeddings", "im.npy", "cap.npy", "--pairs", "owner.npy")
    assert row["row"] == "im.npy, cap.npy"


def test_the_transposed_square_is_what_pairs_say(folder, rows):
    """A square matrix tells no sides: it is read as it is documented, rows are images."""
    scores = np.array([[1.0, 0.9], [0.0, 0.8]], np.float32)
    np.save("square.npy", scores)
    np.save("two_pairs.npy", np.array([0, 1]))
    (row,) = rows("--scores", "square.npy", "--pairs", "two_pairs.npy")
    assert row["image_to_text"]["R@1"] == 100
    assert row["text_to_image"]["R@1"] == 50
