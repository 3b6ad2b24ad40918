"""The bank of a run: drawn by the seed, embedded with the best weights, and the parameters that val chose."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from features.prepared import Split
from metrics.correction import CORRECTIONS, SINKHORN, Retrieval, biases, sinkhorn, with_bias
from metrics.ranks import CUTOFFS, DIRECTIONS, one_way, ranks_by_block
from metrics.similarity import RANKING
from tests.helpers import SMALL, plan_small, train_small
from training import fill_bank
from training.bank import caption_keys, keys, read_bank
from training.checkpoint import load_model
from training.embed import embed_features, embed_sentences
from training.fill_bank import drawn_rows
from training.trainer import Trainer
from utils import BadInput


def small(folder, **changes):
    plan, data = plan_small(folder, **changes)
    train_small(folder, **changes)
    trainer = Trainer(plan, data)
    load_model(folder / "model.safetensors", trainer.model)
    return trainer, read_bank(folder)


def test_a_bank_holds_the_best_weights_embeddings_of_drawn_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(fill_bank, "BANK_ROWS", 30)
    trainer, held = small(tmp_path, seed=3)
    trainer.model.eval()
    train = trainer.data.splits["train"]
    rows = drawn_rows(len(train.images), 3, 1)
    assert len(set(rows.tolist())) == len(rows) == 30
    assert rows.tolist() != drawn_rows(len(train.images), 4, 1).tolist()
    images = embed_features(trainer.model, train.features)[rows]
    np.testing.assert_allclose(held.images, images.half().float().numpy(), rtol=1e-6)
    assert held.image_keys.tolist() == keys([train.images[row] for row in rows]).tolist()
    rows = drawn_rows(len(train.captions), 3, 2)
    captions = embed_sentences(trainer.model, trainer.data.sentences["train"])[rows]
    np.testing.assert_allclose(held.captions, captions.half().float().numpy(), atol=1e-3)
    assert held.caption_keys.tolist() == caption_keys(train)[rows].tolist()


@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_what_val_chose_gives_the_recalls_that_stand_beside_it(tmp_path, similarity):
    trainer, held = small(tmp_path, similarity=similarity, loss__margin=0.05)
    trainer.model.eval()
    val = trainer.data.splits["val"]
    images, captions = (
        embed_features(trainer.model, val.features),
        embed_sentences(trainer.model, trainer.data.sentences["val"]),
    )
    with safetensors.safe_open(tmp_path / "bank.safetensors", "pt") as file:
        table = json.loads(file.metadata()["about"])["chosen"]
    assert set(table) == {"train", "test"}
    for direction in DIRECTIONS:
        assert set(table["train"][direction]) == set(CORRECTIONS)
        assert set(table["test"][direction]) == {*CORRECTIONS, SINKHORN}
        retrieval = Retrieval(similarity, direction)
        items, queries = (images, captions) if direction == "text_to_image" else (captions, images)
        for name in ("inverted_softmax", "nnn", "db_norm", SINKHORN):
            parameters = held.chosen["test" if name == SINKHORN else "train"][direction][name]
            if name == SINKHORN:
                bias = sinkhorn(RANKING[similarity](images, captions), parameters.beta)[direction != "text_to_image"]
            else:
                bias = biases(name, parameters, retrieval, items, held.side(direction))
            pair = with_bias(retrieval, items, queries, bias)
            pair = pair if direction == "text_to_image" else pair[::-1]
            ranks = getattr(ranks_by_block(RANKING[similarity], *pair, val.image_of_caption), direction)
            figures = one_way(ranks)
            expected = table["test" if name == SINKHORN else "train"][direction][name]["val"]
            assert sum(figures[f"R@{k}"] for k in CUTOFFS) == pytest.approx(expected, abs=6), "but for rounding"


def test_val_has_the_last_word():
    """Of two images one is near to everything; only a strong correction finds the captions of the other."""
    images = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    captions = torch.tensor([[1.0, 0.0], [0.96, 0.28]])
    table = fill_bank.choose("cosine", images, captions, np.array([0, 1]), images, captions)
    for direction in DIRECTIONS:
        for rows in (table["train"][direction], table["test"][direction]):
            assert all(row["val"] >= 200 for row in rows.values())
            assert rows["inverted_softmax"]["beta"] in fill_bank.BETAS


def test_what_of_a_split_a_bank_holds(tmp_path):
    trainer, held = small(tmp_path)
    train, val = trainer.data.splits["train"], trainer.data.splits["val"]
    assert held.held(train) == train.images
    assert held.held(val) == []
    moved = Split("test", [train.images[5], "new"], ["a", "b"], np.array([0, 1]), train.features[:2])
    assert held.held(moved) == [train.images[5]]


def test_a_caption_of_two_images_is_two_captions(tmp_path):
    trainer, _ = small(tmp_path)
    split = trainer.data.splits["val"]
    same = Split("val", ["a", "b"], ["a dog", "a dog"], np.array([0, 1]), split.features[:2])
    one, other = caption_keys(same).tolist()
    assert one != other


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: data[:-5]])
def test_a_damaged_bank_is_refused(tmp_path, damage):
    path = tmp_path / "bank.safetensors"
    path.write_bytes(damage(safetensors.torch.save({"images": torch.zeros(2, 2)}, {"about": "{}"})))
    with pytest.raises(BadInput, match="train the run again with `fresh`"):
        read_bank(tmp_path)
    path.unlink()
    assert read_bank(tmp_path) is None


def test_a_run_of_few_rows_keeps_them_all():
    assert drawn_rows(7, 0, 1).tolist() == list(range(7))
    assert SMALL  # the rows of made-up runs are fewer than BANK_ROWS
