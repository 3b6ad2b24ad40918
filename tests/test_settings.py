"""Recipes, overrides, and what is said about a key or a value that is not known."""

import dataclasses
import time

import pytest
import tomli_w

from settings import (
    Settings,
    flat_table,
    from_table,
    known_recipes,
    override,
    read_recipe,
    to_table,
)
from utils import BadInput


@pytest.mark.parametrize("name", known_recipes())
def test_every_recipe_reads_and_cites_its_source(name):
    settings = read_recipe(name)
    assert settings.source
    assert from_table(to_table(settings), "round trip") == settings


def test_the_recipes_of_the_papers_are_what_the_papers_say():
    two_branch, order, vse0, vsepp = map(read_recipe, ("two_branch", "order_embedding", "vse0", "vsepp"))
    assert (two_branch.embed_dim, two_branch.loss.margin, two_branch.training.batch_size) == (128, 0.5, 64)
    assert (two_branch.text.branch, two_branch.text.stem, two_branch.text.min_count) == ("onehot", True, 1)
    assert two_branch.loss.negatives == "random"
    assert (order.similarity, order.embed_dim, order.loss.margin, order.training.lr) == ("order", 1024, 0.05, 1e-3)
    assert (order.text.branch, order.text.word_dim, order.loss.negatives) == ("gru", 300, "sum")
    assert (vse0.embed_dim, vse0.loss.margin, vse0.training.lr, vse0.training.grad_clip) == (1024, 0.2, 2e-4, 2.0)
    assert vsepp == dataclasses.replace(
        vse0, source=vsepp.source, loss=dataclasses.replace(vse0.loss, negatives="hardest", warmup_epochs=1)
    )


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(BadInput, match=r"loss\.margn.*did you mean loss\.margin"):
        from_table({"loss": {"margn": 0.1}}, "mine.toml")
    with pytest.raises(BadInput, match=r"`trainign\.epochs`: unknown setting; did you mean training\.epochs"):
        override(Settings(), {"trainign.epochs": 3})


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("loss.margin", "wide", "takes a number"),
        ("loss.margin", -1, "from 0 up"),
        ("loss.margin", float("inf"), "from 0 up"),
        ("loss.margin", float("nan"), "from 0 up"),
        ("embed_dim", 10**12, "from 1 up"),
        ("embed_dim", 10**400, "from 1 up"),
        ("loss.margin", 10**400, "from 0 up"),
        ("image.dropout", -(10**400), "from 0 to 0.99"),
        ("embed_dim", 1.5, "a whole number"),
        ("embed_dim", True, "a whole number"),
        ("text.stem", 1, "true or false"),
        ("similarity", "cosin", "did you mean cosine"),
        ("image.dropout", 1.0, "from 0 to 0.99"),
        ("features", "inception_v3", "name features with `features`"),
    ],
)
def test_a_wrong_value_says_what_is_taken(key, value, sentence):
    with pytest.raises(BadInput, match=sentence):
        override(Settings(), {key: value})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text.branch": "encoder", "text.encoder": "e", "text.word_dropout": 0.1}, "text.word_dropout drops words"),
        ({"training.mixup": 1.0}, "there is no sentence between two"),
        ({"loss.positives": "image"}, "loss.name = 'hinge' has no form for"),
        ({"loss.name": "infonce", "loss.reduction": "pairs"}, "loss.name = 'infonce' does not"),
        ({"text.head": "glu"}, "text.head is 'glu', which stands behind a transformer"),
        ({"image.position_dropout": 0.2}, "image.position_dropout leaves out positions of a map"),
        ({"text.bigrams": 3}, "text.bigrams are words of a bag, which text.branch = 'gru' is not"),
    ],
)
def test_settings_that_make_no_sense_together(changes, sentence):
    with pytest.raises(BadInput, match=sentence):
        override(Settings(), changes)


def test_features_of_a_recipe_are_a_list():
    with pytest.raises(BadInput, match="a list of names"):
        from_table({"features": "inception_v3"}, "mine.toml")


def test_a_group_must_be_a_table():
    with pytest.raises(BadInput, match=r"write it as a table \[loss\]"):
        from_table({"loss": 3}, "mine.toml")


def test_unknown_recipe_and_broken_file(tmp_path):
    with pytest.raises(BadInput, match="did you mean strong"):
        read_recipe("stronk")
    with pytest.raises(BadInput, match="no such recipe file"):
        read_recipe(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("embed_dim = [1")
    with pytest.raises(BadInput, match=r"broken\.toml: not a TOML file"):
        read_recipe(str(broken))


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    table = {**to_table(override(Settings(), {"loss.margin": 0.3})), "features": ["a", "b"], "run": {"seed": 3}}
    path.write_text(tomli_w.dumps(table))  # [run] stands in the recipe of a run folder: it is one's own to repeat
    settings = read_recipe(str(path))
    assert settings.loss.margin == 0.3
    assert settings.features == ("a", "b")


def test_every_setting_changes_the_digest_but_source_and_features_do_not():
    plain = override(Settings(), {"text.encoder": "a-transformer"})
    assert plain.digest() != Settings().digest()
    assert dataclasses.replace(plain, source="elsewhere", features=("vgg19",)).digest() == plain.digest()
    for key, value in flat_table(plain).items():
        other: bool | float
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, int | float):
            shares = "dropout" in key or key in ("training.lr_gamma", "training.weight_average")
            other = 0.5 if shares or value == 2 else 2
        else:
            continue
        group, _, name = key.rpartition(".")  # not by `override`: several settings want another beside them
        changed = {group: dataclasses.replace(getattr(plain, group), **{name: other})} if group else {name: other}
        assert dataclasses.replace(plain, **changed).digest() != plain.digest(), key


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a." * 30_000 + "a = 1", "# " + "x" * 10**6, "a = 1\0", "a = \xff"],
    ids=["deep", "digits", "dots", "long", "zero", "unicode"],
)
def test_a_recipe_that_does_harm_is_refused_at_once(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1"))
    began = time.process_time()
    with pytest.raises(BadInput, match=r"mine\.toml: (not|is too large)"):
        read_recipe(str(path))
    assert time.process_time() - began < 1
