"""A shared run: what it holds and what it no longer holds, and that it scores as its card says."""

import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

import eval as evaluation
from evaluation import share
from tests.helpers import call, train_drawn
from training.bank import BANK
from training.run import MODEL, RESULT, Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    drawn = train_drawn(tmp_path_factory.mktemp("share"), ["strong", "--seeds", 0, 1])
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, evaluation, one(drawn), "--share", drawn / "models/small", "--correction", "nnn") == 0
    return drawn


def one(folder):
    return next((folder / "runs").glob("strong-*-0-*"))


def test_it_holds_what_embeds_and_nothing_of_this_machine(folder):
    shared = folder / "models/small"
    assert sorted(path.name for path in shared.iterdir()) == sorted(share.FILES)
    for path in shared.iterdir():
        assert str(folder).encode() not in path.read_bytes(), path
    weights = safetensors.torch.load_file(shared / MODEL)
    assert {t.dtype for t in weights.values() if t.dim() > 1} == {torch.float16}
    assert (shared / MODEL).stat().st_size < 0.7 * (one(folder) / MODEL).stat().st_size
    before, after = Run.open(one(folder)), Run.open(shared)
    for embed, asked in (("embed_sentences", ["A red circle ."]), ("embed_images", [folder / "images/3.png"])):
        np.testing.assert_allclose(getattr(after, embed)(asked), getattr(before, embed)(asked), atol=2e-3)


def test_the_card_has_the_table_of_what_is_shared(folder, monkeypatch, capsys):
    shared = folder / "models/small"
    options = ["--data", folder / "data/folder", "--correction", "nnn", "--format", "markdown"]
    assert call(monkeypatch, evaluation, shared, *options) == 0
    card = (shared / share.CARD).read_text()
    assert capsys.readouterr().out.strip() in card
    assert "nnn (inductive)" in card
    assert "a bag of" in card
    assert "{{" not in card


def test_it_says_where_it_was_written_and_its_card_no_path(folder, monkeypatch, capsys, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert call(monkeypatch, evaluation, one(folder), "--share", "../shared/mine") == 0
    assert "wrote ../shared/mine: the run, and its card\n" in capsys.readouterr().err
    assert "--run mine\n" in (tmp_path / "shared/mine" / share.CARD).read_text()
    assert call(monkeypatch, evaluation, one(folder), "--share", "models/mine") == 0
    assert "--run models/mine\n" in (tmp_path / "here/models/mine" / share.CARD).read_text(), "as it ships"


def test_it_is_shared_again_but_not_over_other_files(folder, monkeypatch, capsys, tmp_path):
    again = tmp_path / "small"
    shutil.copytree(folder / "models/small", again)
    assert call(monkeypatch, evaluation, one(folder), "--share", again) == 0
    (again / "notes.txt").touch()
    assert call(monkeypatch, evaluation, one(folder), "--share", again) == 2
    assert "holds other files, such as notes.txt; name a folder for the model alone with --share" in (
        capsys.readouterr().err
    )
    assert call(monkeypatch, evaluation, f"{folder}/runs/*", "--share", tmp_path / "two") == 2
    assert "takes one run, and 2 are named" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("option", ["--share", "--onnx"])
@pytest.mark.parametrize("linked", [False, True])
def test_nothing_is_written_over_the_run_itself(folder, monkeypatch, capsys, tmp_path, option, linked):
    """A shared run holds no file that sharing would not write."""
    run = shutil.copytree(folder / "models/small", tmp_path / "small")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    out = tmp_path / "link" if linked else run
    if linked:
        out.symlink_to(run)
    assert call(monkeypatch, evaluation, run, option, out) == 2
    assert option in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_without_a_bank_is_not_shared(folder, monkeypatch, capsys, tmp_path):
    run = shutil.copytree(one(folder), tmp_path / "run")
    (run / BANK).unlink()
    assert call(monkeypatch, evaluation, run, "--share", tmp_path / "out") == 2
    assert f"has no {BANK}, which a shared run needs" in capsys.readouterr().err
    assert not (tmp_path / "out" / RESULT).exists()
