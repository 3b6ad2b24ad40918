"""Dual encoders through the scripts: their own projections as a row, heads on them, an index, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
import prep
import search
import train
from features.prepared import Prepared
from features.text.store import PROJECTED
from metrics.ranks import metrics_of, ranks_by_block
from metrics.similarity import RANKING
from tests.dual_helpers import make_tiny_dual, make_tiny_open_clip
from tests.helpers import QUICK, call, draw_images, prep_args
from training.run import Run
from training.trainer import Trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Drawn images prepared with both sides of a small CLIP, and its zero-shot run."""
    folder = tmp_path_factory.mktemp("world")
    draw_images(folder)
    name = f"clip:{make_tiny_dual(folder / 'tiny')}"
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, prep, *prep_args(folder, "--backbone", name, "--text-encoder", name)) == 0
        zero_shot = ["zero_shot", "--features", "clip-tiny", "--set", f"text.encoder={name}"]
        assert call(patch, train, *zero_shot, *at(folder)) == 0
    return folder, name


def at(folder):
    return ["--data", folder / "data/folder", "--runs", folder / "runs"]


def zero_shot(folder):
    (run,) = (folder / "runs").glob("zero_shot-folder-clip-tiny-0-*")
    return run


def library_cosines(folder, data):
    """What `transformers` itself computes of the test split: images x captions."""
    import transformers

    module = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [row for row in data.rows if row["split"] == "test"]
    opened = [Image.open(data.path_of(row)).convert("RGB") for row in rows]
    captions = [caption for row in rows for caption in row["captions"]]
    with torch.inference_mode():
        out = module(
            **processor(images=opened, return_tensors="pt"),
            **tokenizer(captions, padding=True, truncation=True, max_length=12, return_tensors="pt"),
        )
    return (out.image_embeds @ out.text_embeds.T).numpy()


def test_scores_are_the_dual_encoders_cosines(world, capsys, monkeypatch):
    folder, _ = world
    data, run = Prepared(folder / "data/folder"), Run.open(zero_shot(folder))
    split = data.split("test", run.info.features)
    cosines = library_cosines(folder / "tiny", data)
    images, captions = run.embed_features(split.features), run.embed_captions(data, "test")
    assert images.shape[1] == captions.shape[1] == run.settings.embed_dim == 20
    np.testing.assert_allclose(images @ captions.T, cosines, atol=1e-5)
    paths = [path for row in data.rows if row["split"] == "test" and (path := data.path_of(row))]
    np.testing.assert_allclose(run.embed_images(paths) @ run.embed_sentences(split.captions).T, cosines, atol=1e-5)
    scores = RANKING["cosine"]
    metrics = metrics_of(
        ranks_by_block(scores, torch.from_numpy(images), torch.from_numpy(captions), split.image_of_caption)
    )
    assert call(monkeypatch, evaluation, run.folder, "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["image_to_text"]["R@1"] == pytest.approx(metrics["image_to_text"]["R@1"])
    assert not list(run.model.parameters())


def test_stores_say_where_they_come_from(world):
    folder, name = world
    data = Prepared(folder / "data/folder")
    image, text = data.store("clip-tiny").attributes, data.text_store(name).attributes
    assert (image["backbone"], image["layer"], image["file"]) == ("clip:tiny", PROJECTED, str(folder / "tiny"))
    assert str(image["transform"]).startswith("resize shortest edge 32 bicubic, crop height 32 width 32, mean 0.481455")
    assert image["digest"] == text["digest"]
    assert (text["encoder"], text["longest"], text["size"]) == (name, 12, 20)


def test_a_zero_shot_run_is_searched(world, tmp_path, monkeypatch, capsys):
    folder, _ = world
    run = zero_shot(folder)
    assert call(monkeypatch, search, "index", folder / "images", "--run", run, "--out", tmp_path / "index") == 0
    capsys.readouterr()
    assert call(monkeypatch, search, "find", tmp_path / "index", "a red circle", "-k", 3, "--format", "jsonl") == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    opened = Run.open(run)
    paths = sorted((folder / "images").iterdir())
    scores = opened.embed_images(paths) @ opened.embed_sentences(["a red circle"])[0]
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-5)
    assert call(monkeypatch, search, "find", tmp_path / "index", "--image", paths[0]) == 0


@pytest.mark.parametrize("recipe", ["linear", "cca_joined", "sail"])
def test_heads_are_trained_on_a_dual_encoder(world, recipe, monkeypatch):
    folder, name = world
    more = ["--features", "clip-tiny", *QUICK, f"text.encoder={name}"]
    assert call(monkeypatch, train, recipe, *at(folder), *more) == 0
    (run,) = (folder / "runs").glob(f"{recipe}-folder-clip-tiny-0-*")
    assert call(monkeypatch, evaluation, run, zero_shot(folder), "--against", "zero_shot") == 0


def test_a_zero_shot_run_continues_after_its_checkpoint(world, monkeypatch, tmp_path):
    folder, name = world
    again = ["zero_shot", "--features", "clip-tiny", "--data", folder / "data/folder", "--runs", tmp_path / "runs"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "finish", lambda self: None)  # stopped before its last step
        assert call(patch, train, *again, "--set", f"text.encoder={name}") == 2
    assert call(monkeypatch, train, *again, "--set", f"text.encoder={name}") == 0


def test_towers_of_two_models_are_refused(world, monkeypatch, capsys):
    folder, _ = world
    other = f"clip:{make_tiny_dual(folder / 'other', 'clip', seed=1)}"
    assert call(monkeypatch, prep, *prep_args(folder, "--text-encoder", other)) == 0
    assert (
        call(monkeypatch, train, "zero_shot", *at(folder), "--features", "clip-tiny", "--set", f"text.encoder={other}")
        == 2
    )
    assert "these --features are not of the same weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", ["image.standardize=true", "similarity=order", "text.layer_norm=true", "text.branch=gru"]
)
def test_what_trains_something_is_refused(world, change, monkeypatch, capsys):
    folder, name = world
    more = ["--features", "clip-tiny", "--set", f"text.encoder={name}", change]
    assert call(monkeypatch, train, "zero_shot", *at(folder), *more) == 2
    assert "loss.name is 'none', which needs similarity = 'cosine'" in capsys.readouterr().err


def test_missing_stores_are_told_with_their_command(world, monkeypatch, capsys):
    folder, _ = world
    assert call(monkeypatch, train, "zero_shot", *at(folder)) == 2
    assert "prep.py folder --backbone clip:openai/clip-vit-base-patch32" in capsys.readouterr().err


def test_open_clip_through_the_scripts(world, monkeypatch, capsys, tmp_path):
    pytest.importorskip("open_clip")
    folder, _ = world
    file = make_tiny_open_clip(tmp_path)
    both = ["--backbone", "open_clip:tiny-open-clip", "--text-encoder", "open_clip:tiny-open-clip", "--weights", file]
    assert call(monkeypatch, prep, *prep_args(folder, *both)) == 0
    encoder = f"text.encoder=open_clip:tiny-open-clip@{file}"
    features = ["--features", "open_clip-tiny-open-clip@weights"]
    assert call(monkeypatch, train, "zero_shot", *at(folder), *features, "--set", encoder) == 0
    (run,) = (folder / "runs").glob("zero_shot-folder-open_clip-*")
    assert call(monkeypatch, search, "index", folder / "images", "--run", run, "--out", tmp_path / "index") == 0
    assert call(monkeypatch, search, "find", tmp_path / "index", "a blue square") == 0
    assert call(monkeypatch, train, "--probe", "--data", folder / "data/folder") == 2  # too few images
