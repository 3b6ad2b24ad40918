"""What frozen features go through first: zero mean and a unit mean square over the training split."""

import doctest
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from layers import inputs
from layers.inputs import Standardize
from model import InputDims, TwoBranch
from settings import Settings, override
from tests.helpers import plan_small, train_small
from training.run import Run
from utils import BadInput


def test_the_example_is_true():
    assert doctest.testmod(inputs).failed == 0


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("shape", [(7, 5), (7, 2, 3, 5)])
def test_mean_and_scale_by_a_plain_loop(shape, power):
    features = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    layer = Standardize((2, 3), power)
    layer.fit(features[start : start + 3] for start in range(0, 7, 3))
    rows = [np.sign(row) * np.abs(row) ** power for row in features.reshape(-1, 5).astype(np.float64)]
    mean = sum(rows) / len(rows)
    lengths = [
        np.sqrt(sum(((row - mean)[part] ** 2).sum() for row in rows) / len(rows)) for part in (slice(2), slice(2, 5))
    ]
    expected = [(row - mean) / np.repeat(lengths, (2, 3)) for row in rows]
    np.testing.assert_allclose(layer(torch.from_numpy(features)).numpy().reshape(-1, 5), expected, atol=1e-5)


def test_features_that_are_all_alike_stay_finite():
    layer = Standardize((3,))
    layer.fit([np.ones((4, 3), np.float32)])
    assert torch.equal(layer(torch.ones(2, 3)), torch.zeros(2, 3))


def test_a_power_keeps_signs_and_zero():
    layer = Standardize((3,), 0.5)
    assert layer(torch.tensor([[-4.0, 0.0, 9.0]])).tolist() == [[-2.0, 0.0, 3.0]]


def test_a_model_standardizes_images(tmp_path):
    settings = override(Settings(), {"embed_dim": 4, "image.standardize": True, "image.power": 0.5})
    model: Any = TwoBranch(settings, InputDims(5, 3, sizes=(2, 3)))
    images = np.random.default_rng(0).random((1500, 5), np.float32)
    model.fit_inputs(images)
    by_hand = Standardize((2, 3), 0.5)
    by_hand.fit([images])
    torch.testing.assert_close(model.inputs.mean, by_hand.mean)
    torch.testing.assert_close(model.inputs.scale, by_hand.scale)
    unit = F.normalize(model.image(by_hand(torch.from_numpy(images[:3]))), dim=1)
    torch.testing.assert_close(model.eval().embed_images(torch.from_numpy(images[:3])), unit)


def test_a_run_keeps_what_standardizes(tmp_path):
    changes = {"text__branch": "onehot", "image__standardize": True, "image__power": 0.5}
    train_small(tmp_path / "run", **changes)
    _, data = plan_small(tmp_path / "run", **changes)
    expected = Standardize((12,), 0.5)
    expected.fit([data.splits["train"].features])
    model: Any = Run.open(tmp_path / "run").model
    torch.testing.assert_close(model.inputs.mean, expected.mean)
    torch.testing.assert_close(model.inputs.scale, expected.scale)


def test_a_power_wants_standardized_features():
    with pytest.raises(BadInput, match=r"image\.power comes before image\.standardize"):
        override(Settings(), {"image.power": 0.5})
