"""What answers where no run is named: the best of the models that ship which can answer here."""

import doctest
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import search
from retrieval import commands, models
from retrieval.build import build_index
from retrieval.searcher import Searcher
from tests.helpers import ROOT, call, paint, train_drawn
from training.bank import BANK, read_bank
from training.calibration import NEIGHBORS
from training.run import RECIPE, RESULT, Run
from utils import BadInput


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A folder of two models, "good" and "better", both trained on drawn images."""
    folder = train_drawn(tmp_path_factory.mktemp("models"), ["strong", "--seeds", 0, 1])
    for number, name in enumerate(("good", "better")):
        run = next((folder / "runs").glob(f"strong-*-{number}-*"))
        shutil.copytree(run, folder / "models" / name)
        result = json.loads((run / RESULT).read_text())
        (folder / "models" / name / RESULT).write_text(json.dumps({**result, "rsum": 100.0 + number}))
    return folder


def test_docstrings():
    assert doctest.testmod(commands).failed == 0


def test_the_best_that_can_answer_here(shipped, tmp_path, capsys):
    assert models.shipped_run(shipped / "models").folder.name == "better"
    assert "asks the model that ships as better; `run` names another" in capsys.readouterr().err
    shutil.copytree(shipped / "models", tmp_path / "models")
    recipe = tmp_path / "models/better" / RECIPE
    recipe.write_text(recipe.read_text().replace('encoder = ""', 'encoder = "package:not_installed"'))
    assert models.shipped_run(tmp_path / "models").folder.name == "good"
    shutil.rmtree(tmp_path / "models/good")
    with pytest.raises(BadInput, match=r"no model that can answer here .*not_installed: no such package is installed"):
        models.shipped_run(tmp_path / "models")
    with pytest.raises(BadInput, match="no model that can answer here; name a run of yours"):
        models.shipped_run(tmp_path / "nothing")


def test_every_command_asks_it(shipped, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(commands, "shipped_run", lambda: models.shipped_run(shipped / "models"))
    photos = shutil.copytree(shipped / "images", tmp_path / "photos")
    assert call(monkeypatch, search, "index", photos) == 0
    assert "--run names another" in capsys.readouterr().err
    assert call(monkeypatch, search, "find", tmp_path / "photos.index", "a circle", "-k", 2) == 0
    assert call(monkeypatch, search, "embed", photos / "3.png", "--out", tmp_path / "rows.npy") == 0
    assert call(monkeypatch, search, "index", photos / "3.png", photos / "2.png") == 2
    assert "has no name of its own; name it with --out" in capsys.readouterr().err


def test_short_ways_to_ask(shipped, monkeypatch, capsys, tmp_path):
    """Without quotes, without the name of the index, without the word find."""
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, search, "a", "red", "circle") == 2
    assert "holds no index; build one with search.py index" in capsys.readouterr().err
    run = next((shipped / "runs").glob("strong-*-0-*"))
    for name in ("older", "newer"):
        shutil.copytree(shipped / "images", tmp_path / name)
        assert call(monkeypatch, search, "index", name, "--run", run) == 0
    os.utime("older.index/meta.json", (0, 0))
    capsys.readouterr()
    answers = []
    for words in (["find", "newer.index", "a red circle"], ["find", "newer.index", "a", "red", "circle"],
                  ["find", "a", "red circle"], ["a", "red", "circle"], ["a red circle"],
                  ["a", "--exact", "red", "circle"]):  # fmt: skip
        assert call(monkeypatch, search, *words, "-k", 3) == 0
        said = capsys.readouterr()
        answers.append(said.out)
        newest = "asks newer.index, the newest of 2 indexes here; another, by its name before the sentence"
        assert (newest in said.err) == ("newer.index" not in words)
        assert said.err.count(f"answers by {run.name}, trained on folder\n") == 1
        assert "unlike" not in said.err, "images of the training set"
    assert len(set(answers)) == 1
    for sentence in ("a red/blue circle", "a red circle " * 40):  # neither is the path of an index
        assert call(monkeypatch, search, sentence, "-k", 3) == 0
    assert call(monkeypatch, search, "a red circle", "--sheeet", "x.png") == 2
    assert "unrecognized arguments: --sheeet x.png" in capsys.readouterr().err
    assert call(monkeypatch, search, "index", "nowhere") == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    shutil.rmtree("older.index")
    assert call(monkeypatch, search, "a red circle", "-k", 3) == 0
    assert "asks newer.index, the index here\n" in capsys.readouterr().err
    assert call(monkeypatch, search, "--image", "newer/3.png") == 2, "an option alone is no sentence"


def test_probabilities_say_when_nothing_matches(shipped, monkeypatch, capsys, tmp_path):
    run, photos = next((shipped / "runs").glob("strong-*-0-*")), shipped / "images"
    for correction in ("none", "nnn"):
        out = tmp_path / f"{correction}.index"
        assert call(monkeypatch, search, "index", photos, "--run", run, "--out", out, "--correction", correction) == 0
    plain, corrected = (Searcher.open(tmp_path / f"{name}.index") for name in ("none", "nnn"))
    bank = read_bank(run)
    assert bank is not None
    c: Any = bank.calibration
    sentence = "a red circle"
    query = plain.embed_sentence(sentence)[0]
    near = np.sort(bank.captions @ query)[::-1][:NEIGHBORS].mean()
    answer = plain.ask(sentence, 5)
    for hit in answer.hits:
        logit = (
            c.intercept + c.score * float(plain.index.embedding(plain.row_of(hit.image))[0] @ query) + c.nearness * near
        )
        assert hit.probability == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert answer.likeliest == max(hit.probability or 0 for hit in answer.hits)
    known: dict[str, Any] = {hit.image: hit.probability for hit in plain.ask(sentence, 24).hits}
    for hit in corrected.ask(sentence, 24).hits:
        assert hit.probability == pytest.approx(known[hit.image], abs=1e-5), "of scores as they are"
    middle = sorted(known.values())[12]
    kept = plain.ask(sentence, 24, at_least=middle).hits
    assert [hit.image for hit in kept] == [image for image, p in known.items() if p >= middle]
    assert [hit.rank for hit in kept] == [rank for rank, p in enumerate(known.values(), 1) if p >= middle]
    find = ["find", tmp_path / "none.index", sentence, "-k", 3]
    capsys.readouterr()
    assert call(monkeypatch, search, *find, "--format", "jsonl", "--at-least", 0) == 0
    assert "probability" in json.loads(capsys.readouterr().out.splitlines()[0])
    assert call(monkeypatch, search, *find, "--at-least", 1) == 0
    assert "Nothing here matches: the likeliest image has a probability of 0." in capsys.readouterr().out
    assert call(monkeypatch, search, *find, "--at-least", 1.5) == 2
    assert "--at-least 1.5: a probability is a number from 0 to 1" in capsys.readouterr().err
    assert call(monkeypatch, search, "find", tmp_path / "none.index", "a giraffe with a labradoodel", "-k", 3) == 0
    out = capsys.readouterr().out
    assert "Nothing here can match: of the words of the query, the run knows none that describes an image." in out
    assert "likely" not in out, "no number where nothing is known"
    empty = plain.ask("a giraffe with a labradoodel", 3, at_least=0.1)
    assert (empty.hits, empty.likeliest) == ([], None)
    assert plain.ask("a giraffe with a red labradoodel", 3).likeliest is not None
    bare = shutil.copytree(run, tmp_path / "bare")
    (bare / BANK).unlink()
    assert call(monkeypatch, search, *find, "--run", bare, "--at-least", 0.5) == 2
    assert "keeps nothing that makes probabilities" in capsys.readouterr().err
    assert call(monkeypatch, search, *find, "--run", bare) == 0
    assert "likely" not in capsys.readouterr().out


def test_a_bag_of_words_answers_from_the_shell_without_torch(tmp_path):
    """What is loaded is what every search waits for: importing torch takes longer than all else together."""
    paint(tmp_path / "photos/a.png", 0)
    build_index(Run.open(ROOT / "models/stems"), [tmp_path / "photos"], tmp_path / "photos.index")
    heavy = {"torch", "nltk", "h5py", "scipy", "sklearn", "faiss", "tqdm", "transformers"}
    for sentence, loaded in (("a dog runs", set()), ("two dogs' beach", {"nltk"})):
        code = f"import sys; sys.argv = ['search.py', 'find', '{tmp_path}/photos.index', {sentence!r}]; import search\n"
        code += f"search.main(); print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "a.png" in done.stdout
        assert done.stdout.splitlines()[-1] == str(sorted(loaded))


@pytest.mark.parametrize("folder", sorted((ROOT / "models").glob("*/")), ids=lambda folder: folder.name)
def test_what_ships_says_nothing_of_a_machine_and_is_small(folder):
    assert sum(path.stat().st_size for path in (ROOT / "models").rglob("*")) <= 15e6
    for name in (RECIPE, RESULT, "README.md"):
        assert "/home" not in (folder / name).read_text()
        assert "/tmp" not in (folder / name).read_text()
