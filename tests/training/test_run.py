"""A run on views and on another size, from image files: images from outside are seen as those of its store were."""

import io
import json
import os
import shutil
import tomllib

import numpy as np
import pytest
import tomli_w
from PIL import Image

import eval as evaluation
import prep
import train
from features.datasets.dataset import Dataset
from features.datasets.dataset import Image as DatasetImage
from features.images.views import FeatureViews
from features.prepared import Prepared
from metrics.ranks import metrics_of, ranks_by_block
from metrics.similarity import RANKING
from retrieval.sources import CachedFeatures
from settings import override
from tests.helpers import QUICK, call, draw_images, prep_args, train_small
from training.bank import read_bank
from training.embed import embed_features, embed_sentences, new_model
from training.run import Run, find_runs
from utils import BadInput

NAME = "timm-test_resnet"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run on views of one size joined with a plain feature of another, and its folder."""
    folder = tmp_path_factory.mktemp("views")
    draw_images(folder, 16)
    features = [f"{NAME}.views3", f"{NAME}.size64"]
    with pytest.MonkeyPatch.context() as patch:
        for more in (["--views", 3], ["--size", 64]):
            tiny = ["--backbone", "timm:test_resnet", "--weights", "random"]
            assert call(patch, prep, *prep_args(folder, *tiny, *more)) == 0
        where = ["--data", folder / "data/folder", "--runs", folder / "runs"]
        assert call(patch, train, "strong", *where, "--features", *features, *QUICK) == 0
    (run,) = folder.glob("runs/*")
    return Run.open(run), folder


def test_images_from_outside_are_seen_as_those_of_the_store(opened):
    run, folder = opened
    assert [backbone.views for backbone in run.backbones] == [3, 1]
    assert [backbone.size for backbone in run.backbones] == [0, 64]
    data = Prepared(run.info.data)
    split = data.split("test", run.info.features)
    assert isinstance(split.features, FeatureViews)
    embedded = run.embed_images([folder / "images" / image for image in split.images])
    assert embedded.shape == (4, 32)
    np.testing.assert_allclose(embedded, run.embed_features(split.features), atol=2e-3)  # float16 in the store
    cached = CachedFeatures.fitting(data, run)
    assert cached is not None
    np.testing.assert_array_equal(cached.read(split.images), split.features[:])


def test_evaluation_takes_the_mean_that_validation_took(opened, monkeypatch, capsys):
    run, _ = opened
    assert call(monkeypatch, evaluation, run.folder, "--split", "val", "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    result = run.result()
    for way in ("image_to_text", "text_to_image"):
        assert {key: row[way][key] for key in result[way]} == pytest.approx(result[way])
    split = Prepared(run.info.data).split("val", run.info.features)
    images = embed_features(run.model, split.features[:])
    captions = embed_sentences(run.model, run.processor.encode(split.captions))
    metrics = metrics_of(ranks_by_block(RANKING["cosine"], images, captions, split.image_of_caption))
    assert metrics["text_to_image"] == pytest.approx(result["text_to_image"])


def test_one_alone_is_taken_as_a_list_of_one(opened):
    run, folder = opened
    path = folder / "images/3.png"
    sentence = "a red circle"
    np.testing.assert_array_equal(run.embed_sentences(sentence), run.embed_sentences([sentence]))
    assert run.embed_sentences(sentence).shape == (1, 32)
    assert run.embed_sentences(text for text in (sentence, "a square")).shape == (2, 32)
    image = Image.open(path)
    rows = run.embed_images([path, str(path), image, image.convert("RGBA")])
    assert rows.shape == (4, 32)
    for one in (path, str(path), Image.open(path), io.BytesIO(path.read_bytes())):
        np.testing.assert_allclose(run.embed_images(one), rows[:1], atol=1e-5)
    np.testing.assert_array_equal(rows, rows[[0, 0, 0, 0]])
    assert image.mode == Image.open(path).mode, "an image that is given stays as it is"
    assert run.embed_images([]).shape == run.embed_sentences([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("embed", "given", "said"),
    [
        ("embed_sentences", "xyzzy plugh", r"'xyzzy plugh': the run knows none of its words \(xyzzy, plugh\); use"),
        ("embed_sentences", ["a circle", "xyzzy"], "'xyzzy': the run knows none of its words"),
        ("embed_sentences", "  ", "'  ': an empty sentence; use"),
        ("embed_sentences", "?!", r"knows none of its words \(it holds none\)"),
        ("embed_sentences", ["a circle", 3], "'3': is int, no sentence; give text"),
        ("embed_sentences", None, "'None': is NoneType, no sentence"),
        ("embed_images", np.zeros((9, 9, 3)), "ndarray: is no image; give a path"),
        ("embed_images", [None], "NoneType: is no image"),
        ("embed_images", "no/such.png", "no/such.png: cannot be read"),
        ("embed_images", [Image.new("RGB", (9, 9)), Image.new("RGB", (1, 99))], "image 2 of 2: cannot be read .* thin"),
    ],
)
def test_what_is_no_sentence_and_no_image(opened, embed, given, said):
    with pytest.raises(BadInput, match=said):
        getattr(opened[0], embed)(given)


def test_what_a_notebook_shows(opened):
    run, folder = opened
    features = f"{NAME}.views3 + {NAME}.size64"
    about = f"strong, trained on folder, {features} and {len(run.processor.words) - 1} stems → 32 dimensions, cosine"
    assert repr(run) == f"Run('{run.folder}': {about})"
    data = Prepared(folder / "data/folder")
    assert repr(data).startswith(f"Prepared('{data.folder}': folder, 8 train, 4 val, 4 test images, 32 captions; feat")
    assert f"{NAME}.views3" in repr(data)
    assert repr(data.split("test", [f"{NAME}.size64"])).startswith("Split('test': 4 images, 8 captions, features (4, ")
    assert repr(data.vocabulary).startswith("Vocabulary(")
    dataset = Dataset("pairs", (DatasetImage("a.jpg", None, "val", ("a dog",)),))
    assert repr(dataset) == "Dataset('pairs': 0 train, 1 val, 0 test images)"
    assert len(repr(read_bank(run.folder))) < 200


def test_runs_are_found_by_their_recipe(tmp_path):
    for name in ("strong-flickr8k-x-0-aa", "strong-flickr8k-x-1-aa", "stems-scenes-x-0-bb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").touch()
    found = [path.name for path in find_runs(["strong", "strong-flickr8k-x-0", "stems"], tmp_path)]
    assert found == ["strong-flickr8k-x-0-aa", "strong-flickr8k-x-1-aa", "stems-scenes-x-0-bb"]
    with pytest.raises(BadInput, match="stem: no such run folder"):
        list(find_runs(["stem"], tmp_path))


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--epochs", "that is a setting: --set training.epochs="),
        ("--lr=1e-3", "--set training.lr=1e-3"),
        ("--loss.margin", "--set loss.margin="),
        ("--dropout=0.1", "--set image.dropout=0.1 or text.dropout=0.1"),
        ("--nonsense", "train.py: unrecognized arguments: --nonsense; train.py --help says what it takes\n"),
    ],
)
def test_a_flag_that_is_a_setting_is_helped(flag, said, monkeypatch, capsys):
    assert call(monkeypatch, train, flag, "strong") == 2
    assert said in capsys.readouterr().err


def test_a_store_given_as_precomputed_features_keeps_its_backbone(opened, monkeypatch):
    _, folder = opened
    store = folder / f"data/folder/{NAME}.size64.h5"
    more = ["--captions", folder / "captions.csv", "--precomputed", store, "--data", folder / "again"]
    assert call(monkeypatch, prep, "folder", *more) == 0
    assert call(monkeypatch, prep, "folder", *more) == 0, "the same store again"
    where = ["--data", folder / "again/folder", "--runs", folder / "again/runs"]
    assert call(monkeypatch, train, "strong", *where, *QUICK) == 0
    (run,) = map(Run.open, (folder / "again/runs").iterdir())
    split = Prepared(run.info.data).split("test", run.info.features)
    embedded = run.embed_images([folder / "images" / image for image in split.images])
    np.testing.assert_allclose(embedded, run.embed_features(split.features), atol=1e-5)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a small run."""
    folder = tmp_path_factory.mktemp("small") / "run"
    train_small(folder, training__epochs=1)
    return folder


def changed(small, to, **facts):
    shutil.copytree(small, to)
    table = tomllib.loads((to / "recipe.toml").read_text())
    table["run"].update(facts)
    (to / "recipe.toml").write_text(tomli_w.dumps(table))
    return to


@pytest.mark.parametrize(
    "facts",
    [
        {"sizes": "abc"},
        {"sizes": [12, 12]},
        {"sizes": [-12]},
        {"sizes": [10**9]},
        {"features": ["one\x1b[2J"]},
        {"recipe": "a\nb"},
        {"seed": -1},
        {"seed": 1.5},
        {"grid": [7]},
        {"backbones": ["one"]},
        {"backbones": [{"backbone": "one"}]},
        {"encoder_size": -2},
        {"captions": 5},
    ],
    ids=str,
)
def test_a_recipe_that_says_what_no_run_does(small, tmp_path, facts):
    with pytest.raises(BadInput, match=r"recipe\.toml: not the recipe of a run of this version; train the run again"):
        Run.open(changed(small, tmp_path / "run", **facts))


def test_a_model_larger_than_its_weights_is_refused_before_it_takes_memory(small, tmp_path):
    """Two million million parameters by the recipe, a few thousand in the file."""
    shutil.copytree(small, tmp_path / "run")
    text = (tmp_path / "run/recipe.toml").read_text().replace("embed_dim = 16", "embed_dim = 1000000")
    (tmp_path / "run/recipe.toml").write_text(text.replace("word_dim = 8", "word_dim = 1000000"))
    with pytest.raises(BadInput, match=r"not the weights of this recipe \(6,\d{3},\d{3},\d{3},\d{3} parameters\)"):
        Run.open(tmp_path / "run")


def test_a_model_that_no_memory_holds_is_not_begun(small):
    run = Run.open(small)
    huge = override(run.settings, {"embed_dim": 10**6, "text.word_dim": 10**6})
    with pytest.raises(BadInput, match=r"where there may be 2,147,483,648; make its branches narrower"):
        new_model(huge, run.info, run.vocabulary)


@pytest.mark.parametrize("result", [[], {}, {"rsum": "1", "best_epoch": 1, "epochs": 1}, {"rsum": None}], ids=str)
def test_a_result_that_is_none(small, tmp_path, result):
    shutil.copytree(small, tmp_path / "run")
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    with pytest.raises(BadInput, match=r"result\.json: not the result of a training"):
        Run.open(tmp_path / "run").result()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "recipe.toml", "vocabulary.json", "result.json", "bank.safetensors"]
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(small, tmp_path, name):
    shutil.copytree(small, tmp_path / "run")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "run" / name)
    if name == "bank.safetensors":
        assert read_bank(tmp_path / "run") is None
        return
    with pytest.raises(BadInput):
        Run.open(tmp_path / "run")
