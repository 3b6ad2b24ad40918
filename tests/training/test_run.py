"""A run on views and on another size, from image files: images from outside are seen as those of its store were."""

import json

import numpy as np
import pytest

import eval as evaluation
import prep
import train
from features.images.views import FeatureViews
from features.prepared import Prepared
from metrics.ranks import metrics_of, ranks_by_block
from metrics.similarity import RANKING
from retrieval.sources import CachedFeatures
from tests.helpers import QUICK, call, draw_images, prep_args
from training.run import Run, embed_features, embed_sentences, find_runs
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
        ("--nonsense", "unrecognized arguments: --nonsense\n"),
    ],
)
def test_a_flag_that_is_a_setting_is_helped(flag, said, monkeypatch, capsys):
    assert call(monkeypatch, train, flag, "strong") == 2
    assert said in capsys.readouterr().err
