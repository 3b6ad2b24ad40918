"""Whether images are of the world that a run was trained on: against plain loops, and where a person reads it."""

import doctest

import numpy as np
import pytest

import search
from retrieval import world
from retrieval.world import share_far
from tests.helpers import call, train_drawn


def test_docstrings():
    assert doctest.testmod(world).failed == 0


def test_the_share_is_that_of_plain_loops():
    rng = np.random.default_rng(0)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 40, 6))]
    training, images = (rows.astype(np.float32) for rows in unit)

    def near(row, others):
        return np.mean(sorted((float(row @ other) for other in others), reverse=True)[: world.NEIGHBORS])

    among = [near(row, [other for j, other in enumerate(training) if j != i]) for i, row in enumerate(training)]
    edge = np.percentile(among, world.FAR) - 1e-6
    assert share_far(images, training) == np.mean([near(row, training) < edge for row in images])


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_index_and_find_warn_of_another_world(share, tmp_path, monkeypatch, capsys):
    """Either way it is said once what the run was trained on."""
    monkeypatch.setattr(world, "share_far", lambda embeddings, training: share)
    folder = train_drawn(tmp_path, ["strong"])
    run = next((folder / "runs").iterdir())
    capsys.readouterr()
    assert call(monkeypatch, search, "index", folder / "images", "--run", run, "--out", folder / "x.index") == 0
    built = capsys.readouterr().err
    assert call(monkeypatch, search, "find", folder / "x.index", "a red circle") == 0
    found = capsys.readouterr().err
    assert f"made by {run.name}, trained on folder\n" in built
    assert found.count(f"answers by {run.name}, trained on folder\n") == 1
    for said in (built, found):
        assert said.count("unlike those that the model was trained on (folder)") == (share > world.MANY)
