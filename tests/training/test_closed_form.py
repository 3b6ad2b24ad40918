"""Closed forms against their definitions, other libraries and plain loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import linalg
from sklearn.linear_model import Ridge

from features.text.vocabulary import Sentences
from model import InputDims, RelativeBranch, TwoBranch
from settings import CLOSED_FORMS, Settings, override, read_recipe
from tests.helpers import plan_small
from training import sweep
from training.closed_form import check_settings, fit_asif, fit_linear, principal_axes, top_singular
from training.moments import bag_of_words, cross_product, moments, text_parts
from training.run import MODEL, RESULT, RunPlan
from training.trainer import TrainingData, chance_rsum
from utils import BadInput

rng = np.random.default_rng(0)
FITTED = [name for name in CLOSED_FORMS if name != "none"]  # tests/test_dual_pipeline.py has that
WORDS = 9
LISTS = [rng.integers(0, WORDS, rng.integers(1, 6)).tolist() for _ in range(400)]
SENTENCES = Sentences.of(LISTS)
IMAGE_OF_CAPTION = np.sort(rng.integers(0, 100, 400))
IMAGE_OF_CAPTION[:100] = np.arange(100)
MIXING = rng.normal(size=(WORDS, 6))
FEATURES = np.stack(
    [
        bag_of_words(SENTENCES, WORDS, "count")[[np.flatnonzero(i == IMAGE_OF_CAPTION)[0]]].toarray()[0]
        for i in range(100)
    ]
)
FEATURES = (FEATURES @ MIXING + 0.3 * rng.normal(size=(100, 6))).astype(np.float32)


def test_bags_equal_plain_counting():
    for weighting in ("count", "binary", "mean"):
        bags = bag_of_words(SENTENCES, WORDS, weighting).toarray()
        for bag, words in zip(bags, LISTS, strict=True):
            plain = np.zeros(WORDS)
            for word in words:
                plain[word] += word != 0
            if weighting == "binary":
                plain = (plain > 0).astype(float)
            if weighting == "mean":
                plain = plain / max(1, plain.sum())
            np.testing.assert_allclose(bag, plain)


def fit(embed_dim, regularization, power):
    changes = {"text.weighting": "count", "embed_dim": embed_dim}
    changes |= {"loss.regularization": regularization, "loss.power": power}
    return fit_linear(FEATURES, SENTENCES, IMAGE_OF_CAPTION, WORDS, override(read_recipe("cca"), changes))


def project(weights):
    bags = bag_of_words(SENTENCES, WORDS, "count").toarray()
    images = FEATURES[IMAGE_OF_CAPTION] @ weights["image.1.weight"].numpy().T + weights["image.1.bias"].numpy()
    return images, bags @ weights["text.bag.weight"].numpy() + weights["text.bias"].numpy()


def test_projections_are_centered_whitened_and_correlated_as_eigenvalues_say():
    weights = fit(4, 1e-9, power=0.0)
    images, captions = project(weights)
    np.testing.assert_allclose(images.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(captions.mean(0), 0, atol=1e-4)
    n = len(images)
    np.testing.assert_allclose(images.T @ images / n, np.eye(4), atol=1e-3)
    np.testing.assert_allclose(captions.T @ captions / n, np.eye(4), atol=1e-3)
    cross = images.T @ captions / n
    np.testing.assert_allclose(cross, np.diag(np.diag(cross)), atol=1e-3)
    # the definition: eigenvalues of Cxx⁻¹ Cxy Cyy⁻¹ Cyx are the squared correlations
    x, y = (
        FEATURES[IMAGE_OF_CAPTION] - FEATURES[IMAGE_OF_CAPTION].mean(0),
        bag_of_words(SENTENCES, WORDS, "count").toarray()[:, 1:],
    )
    y = y - y.mean(0)
    squared = linalg.eigvals(linalg.solve(x.T @ x, x.T @ y) @ linalg.solve(y.T @ y, y.T @ x)).real
    np.testing.assert_allclose(np.diag(cross), np.sqrt(np.sort(squared)[::-1][:4]), atol=1e-3)


def test_power_scales_by_the_correlations():
    plain, scaled = (fit(3, 1e-6, power=p) for p in (0.0, 2.0))
    ratio = scaled["image.1.weight"] / plain["image.1.weight"]
    images, captions = project(plain)
    correlations = (images * captions).mean(0)
    np.testing.assert_allclose(ratio.numpy().mean(1), correlations**2, rtol=1e-2)


def test_more_dimensions_than_there_are_stay_zero():
    weights = fit(20, 1e-3, power=1.0)
    assert weights["image.1.weight"].shape == (20, 6)
    assert weights["text.bag.weight"].shape == (WORDS, 20)
    assert torch.isfinite(weights["text.bag.weight"]).all()
    assert weights["image.1.weight"][6:].abs().max() == 0


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_top_singular_equals_svd(shape):
    matrix = np.random.default_rng(1).normal(size=shape)
    left, values, right = top_singular(matrix, 3)
    u, s, v = linalg.svd(matrix)
    np.testing.assert_allclose(values, s[:3])
    np.testing.assert_allclose(left * values @ right.T, (u[:, :3] * s[:3]) @ v[:3], atol=1e-9)


# On sentence features, and on both

ENCODED = rng.normal(size=(400, 5)) + bag_of_words(SENTENCES, WORDS, "count").toarray() @ rng.normal(size=(WORDS, 5))
BOTH = SENTENCES.with_features(ENCODED.astype(np.float32))
UNIT = ENCODED / np.linalg.norm(ENCODED, axis=1, keepdims=True)
BAGS = bag_of_words(SENTENCES, WORDS, "mean").toarray()
PER_PAIR = FEATURES[IMAGE_OF_CAPTION].astype(np.float64)


def settings_for(name, branch="encoder", **changes):
    text = {"text.branch": branch, "text.encoder": "./somewhere", "text.bias": branch == "onehot"}
    return override(Settings(), {"loss.name": name, "embed_dim": 4, **text, **changes})


def embed(settings, weights):
    """Embed all images and captions with a model that holds the weights."""
    model = TwoBranch(settings, InputDims(FEATURES.shape[1], WORDS, encoder_dim=5)).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.embed_images(torch.from_numpy(FEATURES)).numpy(), model.embed_sentences(BOTH).numpy()


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("branch", ["onehot", "encoder"])
def test_moments_equal_those_of_all_pairs(branch):
    parts = text_parts(BOTH, WORDS, settings_for("cca", branch).text)
    y = np.concatenate([BAGS, UNIT], axis=1) if branch == "onehot" else UNIT
    m = moments(FEATURES, parts, IMAGE_OF_CAPTION)
    both = np.cov(PER_PAIR.T, y.T, bias=True)
    np.testing.assert_allclose(m.x_mean, PER_PAIR.mean(axis=0))
    np.testing.assert_allclose(m.y_mean, y.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(np.block([[m.cxx, m.cxy], [m.cxy.T, m.cyy]]), both, atol=1e-6)
    assert m.sizes == ((WORDS, 5) if branch == "onehot" else (5,))


def test_moments_do_not_depend_on_the_blocks(monkeypatch):
    parts = text_parts(BOTH, WORDS, settings_for("cca", "onehot").text)
    whole = moments(FEATURES, parts, IMAGE_OF_CAPTION)
    monkeypatch.setattr("training.moments.ROWS_PER_BLOCK", 7)
    blocks = moments(FEATURES, parts, IMAGE_OF_CAPTION)
    for name in ("x_mean", "y_mean", "cxx", "cyy", "cxy"):
        np.testing.assert_allclose(getattr(blocks, name), getattr(whole, name), atol=1e-12)
    np.testing.assert_allclose(cross_product(parts[1], parts[0]), UNIT.T @ BAGS, atol=1e-5)


@pytest.mark.parametrize("branch", ["onehot", "encoder"])
def test_cca_of_the_text_side_solves_the_eigenproblem(branch):
    """(0 Cxy; Cyx 0) w = r (Cxx 0; 0 Cyy) w, with a share of each part's mean variance on its diagonal."""
    settings = settings_for("cca", branch, **{"loss.regularization": 0.2, "loss.power": 0.5})
    y = np.concatenate([BAGS, UNIT], axis=1) if branch == "onehot" else UNIT
    x, y = PER_PAIR - PER_PAIR.mean(axis=0), y - y.mean(axis=0)
    cxx, cyy, cxy = x.T @ x / 400, y.T @ y / 400, x.T @ y / 400
    cxx += 0.2 * np.diag(cxx).mean() * np.eye(len(cxx))
    parts = [slice(0, WORDS), slice(WORDS, None)] if branch == "onehot" else [slice(None)]
    for part in parts:
        cyy[part, part] += 0.2 * np.diag(cyy[part, part]).mean() * np.eye(len(cyy[part, part]))
    left = np.block([[np.zeros_like(cxx), cxy], [cxy.T, np.zeros_like(cyy)]])
    values, vectors = linalg.eigh(left, linalg.block_diag(cxx, cyy))
    values, vectors = values[::-1][:4], vectors[:, ::-1][:, :4] * 2**0.5  # each side's vectors have length 1
    images = unit((FEATURES - PER_PAIR.mean(axis=0)) @ vectors[: len(cxx)] * values**0.5)
    captions = unit(y @ vectors[len(cxx) :] * values**0.5)
    embedded = embed(settings, fit_linear(FEATURES, BOTH, IMAGE_OF_CAPTION, WORDS, settings))
    np.testing.assert_allclose(embedded[0] @ embedded[1].T, images @ captions.T, atol=1e-4)


@pytest.mark.parametrize("target", ["text", "image"])
def test_ridge_equals_scikit_learn(target):
    settings = settings_for("ridge", **{"loss.regularization": 0.3, "loss.target": target, "embed_dim": 8})
    embedded = embed(settings, fit_linear(FEATURES, BOTH, IMAGE_OF_CAPTION, 0, settings))
    x, y = (PER_PAIR, UNIT) if target == "text" else (UNIT, PER_PAIR)
    regression = Ridge(alpha=400 * 0.3 * np.var(x, axis=0).mean()).fit(x, y)
    if target == "text":
        images, captions = regression.predict(FEATURES), UNIT
    else:
        images, captions = FEATURES, regression.predict(UNIT)
    mean = y.mean(axis=0)
    np.testing.assert_allclose(embedded[0] @ embedded[1].T, unit(images - mean) @ unit(captions - mean).T, atol=1e-4)


def test_ridge_to_fewer_dimensions_keeps_the_principal_ones():
    settings = settings_for("ridge", embed_dim=2)
    weights = fit_linear(FEATURES, BOTH, IMAGE_OF_CAPTION, 0, settings)
    axes = np.linalg.svd(UNIT - UNIT.mean(axis=0))[2][:2]
    np.testing.assert_allclose(np.abs(weights["text.linear.weight"].numpy() @ axes.T), np.eye(2), atol=1e-4)


@pytest.mark.parametrize("embed_dim", [3, 20])
def test_procrustes_equals_scipy(embed_dim):
    settings = settings_for("procrustes", embed_dim=embed_dim)
    embedded = embed(settings, fit_linear(FEATURES, BOTH, IMAGE_OF_CAPTION, 0, settings))
    x, y, images = PER_PAIR - PER_PAIR.mean(axis=0), UNIT - UNIT.mean(axis=0), FEATURES - PER_PAIR.mean(axis=0)
    k = min(embed_dim, 5)  # sentence features have five dimensions, image features six
    x_axes, y_axes = np.linalg.svd(x)[2][:k].T, np.linalg.svd(y)[2][:k].T
    rotation, _ = linalg.orthogonal_procrustes(x @ x_axes, y @ y_axes)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(k), atol=1e-9)
    expected = unit(images @ x_axes @ rotation) @ unit(y @ y_axes).T
    np.testing.assert_allclose(embedded[0] @ embedded[1].T, expected, atol=1e-4)


def test_principal_axes_are_those_of_svd():
    x = FEATURES - FEATURES.mean(axis=0)
    axes = principal_axes(x.T @ x, 3)
    np.testing.assert_allclose(np.abs(axes.T @ np.linalg.svd(x)[2][:3].T), np.eye(3), atol=1e-4)


def plain_relative(row, anchors, top_k, power):
    """Norelli et al. (2023), one feature at a time: cosines, all but the k largest at zero, to a power."""
    row = row / sum(row**2) ** 0.5
    cosines = [sum(a * b for a, b in zip(row, anchor, strict=True)) for anchor in anchors]
    kept = sorted(range(len(anchors)), key=lambda i: -cosines[i])[:top_k]
    return [max(0.0, cosines[i]) ** power if i in kept else 0.0 for i in range(len(anchors))]


@pytest.mark.parametrize(("anchors", "top_k", "power"), [(100, 12, 1.0), (30, 5, 3.0), (120, 200, 2.0)])
def test_asif_equals_plain_loops(anchors, top_k, power):
    settings = settings_for("asif", **{"embed_dim": anchors, "loss.top_k": top_k, "loss.power": power})
    weights = fit_asif(FEATURES, BOTH, IMAGE_OF_CAPTION, 0, settings)
    images, captions = embed(settings, weights)
    kept = sorted({round(i * 99 / (min(anchors, 100) - 1)) for i in range(min(anchors, 100))})
    image_anchors = [FEATURES[i] / sum(FEATURES[i] ** 2) ** 0.5 for i in kept]
    text_anchors = [np.mean([UNIT[m] for m in np.flatnonzero(i == IMAGE_OF_CAPTION)], axis=0) for i in kept]
    for rows, sides, result in [(FEATURES, image_anchors, images), (ENCODED, text_anchors, captions)]:
        plain = np.array([plain_relative(row, sides, top_k, power) for row in rows[:40]])
        np.testing.assert_allclose(result[:40, : len(kept)], unit(plain), atol=1e-4)
        assert not result[:, len(kept) :].any(), "more anchors than training images: nothing is similar to them"


def test_asif_keeps_its_anchors_as_they_are():
    branch = RelativeBranch(4, 3, top_k=9)
    assert [p.requires_grad for p in branch.parameters()] == [False]
    assert not branch(torch.randn(2, 4)).any()


# As runs


def train_encoded(folder, seed, name, branch):
    """Train a run on made-up data, whose sentence features say which words a caption holds."""
    changes = {"embed_dim": 60, "loss.top_k": 8, "loss.power": 4.0} if name == "asif" else {"embed_dim": 8}
    plan, data = plan_small(folder, seed=seed, text__branch="onehot", text__bias=True)
    settings = override(
        plan.settings, {**changes, "loss.name": name, "text.branch": branch, "text.encoder": "./somewhere"}
    )
    mixing = np.random.default_rng(0).normal(size=(11, 20))
    sentences = {
        split: s.with_features((bag_of_words(s, 11, "count") @ mixing).astype(np.float32))
        for split, s in data.sentences.items()
    }
    info = replace(plan.info, encoder_size=20, encoder_digest="e")
    data = TrainingData(data.vocabulary, data.splits, sentences)
    return sweep.train(RunPlan(folder, settings, info), data, progress=False)


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("branch", ["encoder", "onehot"])
def test_every_seed_and_every_repetition_gives_the_same_run(tmp_path, name, branch):
    if (name, branch) == ("asif", "onehot"):
        with pytest.raises(BadInput, match=r"'asif', which needs .*text.branch = 'encoder'"):
            train_encoded(tmp_path / "run", 0, name, branch)
        return
    results = [train_encoded(tmp_path / str(seed), seed, name, branch) for seed in (0, 5)]
    assert results[0]["rsum"] > 2.5 * chance_rsum(20)
    assert results[0]["rsum"] == results[1]["rsum"]
    weights = (tmp_path / "0" / MODEL).read_bytes()
    assert weights == (tmp_path / "5" / MODEL).read_bytes()
    (tmp_path / "0" / RESULT).unlink()  # killed between the checkpoint and the last file: nothing is fitted again
    again = train_encoded(tmp_path / "0", 0, name, branch)
    assert again == results[0]
    assert weights == (tmp_path / "0" / MODEL).read_bytes()


def test_each_has_a_recipe_of_its_name():
    assert [read_recipe(name).loss.name for name in FITTED] == FITTED
    assert read_recipe("zero_shot").loss.name == "none"
    csa, joined = read_recipe("csa"), read_recipe("cca_joined")
    assert (csa.loss.name, csa.loss.power, csa.text.branch) == ("cca", 0.5, "encoder")
    assert (joined.loss.name, joined.text.branch, bool(joined.text.encoder)) == ("cca", "onehot", True)


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize(
    "changes",
    [
        {"text.branch": "gru"},
        {"similarity": "order"},
        {"image.branch": "mlp"},
        {"text.finetune": True},
        {"text.layer_norm": True},
        {"text.branch": "onehot", "text.num_layers": 2},
        {"text.branch": "onehot", "text.bias": False},
    ],
)
def test_a_closed_form_wants_linear_branches_and_a_frozen_encoder(name, changes):
    with pytest.raises(BadInput, match=f"loss.name is '{name}', which needs .*start from recipes/{name}.toml"):
        check_settings(settings_for(name, **changes))
