"""The prepared folder and prep.py's memory: what was told once need not be told again, sentence features included."""

import doctest
import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prep
from features import prepared as room
from features.images.store import FeatureStore, store_name
from features.prepared import Prepared, flags_of_store
from tests.helpers import make_tiny_encoder
from utils import BadInput, run_script


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """Run prep.py as the command line would; returns the exit status."""
    monkeypatch.setattr(sys, "argv", ["prep.py", *map(str, args)])
    try:
        run_script(prep.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def as_told(monkeypatch: pytest.MonkeyPatch, command: str, *more: object) -> int:
    """Run the very command that a message told."""
    python, name, *args = shlex.split(command)
    assert (python, name) == ("python", "prep.py")
    return call(monkeypatch, *args, *more)


SPLITS = ("train", "train", "val", "test")
RANDOM = ("--weights", "random", "--workers", 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: eight pictures, their captions without splits' names, and a list of each split."""
    (tmp_path / "pictures").mkdir()
    lines = ["image,caption"]
    for number in range(8):
        Image.new("RGB", (40, 40), (30 * number, 200, 90)).save(tmp_path / f"pictures/{number}.png")
        lines += [f"{number}.png,a dog runs {number}", f"{number}.png,the red car"]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "lists").mkdir()
    for split in set(SPLITS):
        ids = [f"{number}.png" for number in range(8) if SPLITS[number % 4] == split]
        (tmp_path / f"lists/{split}.txt").write_text("\n".join(ids) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TOLD = ("folder", "--images", "pictures", "--captions", "captions.csv", "--splits", "lists")


def head_of(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "dataset.json").read_text())


def test_docstrings() -> None:
    assert doctest.testmod(room).failed == 0


@pytest.mark.parametrize(
    ("backbone", "layer", "map", "crops"),
    [
        ("vgg19", None, False, 1),
        ("efficientnet_lite0", None, True, 1),
        ("vgg19", None, False, 10),
        ("timm:resnet10t.a1_in1k", None, True, 1),
        ("vgg16", "classifier.3", False, 10),
        ("resnet50", "layer3", True, 1),
    ],
)
def test_the_flags_that_make_a_store(backbone: str, layer: str | None, map: bool, crops: int) -> None:
    args = ["--backbone", backbone, *(["--layer", layer] if layer else []), *(["--map"] if map else [])]
    args += ["--crops", str(crops)] if crops != 1 else []
    assert flags_of_store(store_name(backbone, layer, map, crops)) == args


def test_a_second_call_names_only_what_it_adds(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *TOLD, "--language", "german", "--backbone", "resnet18", *RANDOM) == 0
    source = head_of("data/folder")["source"]
    assert source == {
        "captions": str(here / "captions.csv"),
        "splits": str(here / "lists"),
        "split_ratio": [80, 10, 10],
        "restval": True,
        "language": "german",
    }
    captions = (here / "data/folder/captions.jsonl").read_bytes()
    vocabulary = (here / "data/folder/vocabulary.json").read_bytes()
    capsys.readouterr()
    data = Prepared("data/folder")
    with pytest.raises(BadInput, match="no such features") as caught:
        data.store("resnet18.map")
    command = str(caught.value).split("with: ")[1]
    assert command == "python prep.py folder --backbone resnet18 --map"
    assert as_told(monkeypatch, command, *RANDOM) == 0
    said = capsys.readouterr().err
    assert f"remembered: --images {here}/pictures --captions {here}/captions.csv --splits {here}/lists" in said
    assert set(data.stores()) == {"resnet18", "resnet18.map"}
    assert head_of("data/folder")["source"] == source
    assert (here / "data/folder/captions.jsonl").read_bytes() == captions
    assert (here / "data/folder/vocabulary.json").read_bytes() == vocabulary
    # what is given goes before what is remembered; other captions are read without the splits of the first
    shutil.copy("captions.csv", "others.csv")
    assert call(monkeypatch, "folder", "--captions", "others.csv", "--backbone", "resnet18", *RANDOM) == 2
    assert "split drawn for its 8 images" in capsys.readouterr().err
    # what is remembered is of this dataset alone
    assert call(monkeypatch, "flickr8k", "--name", "folder", "--backbone", "resnet18") == 2
    assert "--captions is missing" in capsys.readouterr().err


def test_a_folder_of_an_earlier_version_is_told_as_before(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *TOLD, "--backbone", "resnet18", *RANDOM) == 0
    head = head_of("data/folder")
    source = head.pop("source")
    (here / "data/folder/dataset.json").write_text(json.dumps(head))
    data = Prepared("data/folder")
    assert data.prep_command("--map") == f"python prep.py folder --images {here}/pictures --captions FILE --map"
    assert call(monkeypatch, "folder", "--backbone", "resnet18", *RANDOM) == 2
    assert "--captions is missing" in capsys.readouterr().err
    assert call(monkeypatch, *TOLD, "--backbone", "resnet18", *RANDOM) == 0
    assert head_of("data/folder")["source"] == source
    damages: tuple[object, ...] = ({"captions": 5, "language": "english"}, [], "x")
    for damage in damages:
        (here / "data/folder/dataset.json").write_text(json.dumps({**head, "source": damage}))
        assert call(monkeypatch, "folder", "--backbone", "resnet18") == 2
        assert "--captions is missing" in capsys.readouterr().err


def test_the_command_names_root_and_folder_where_they_are_others(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--data", "my root", "--name", "mine"]
    assert call(monkeypatch, *TOLD, *there, "--backbone", "resnet18", *RANDOM) == 0
    data = Prepared("my root/mine")
    command = data.prep_command("--backbone", "resnet18", "--crops", "10")
    assert command == "python prep.py folder --backbone resnet18 --crops 10 --data 'my root' --name mine"
    assert as_told(monkeypatch, command, *RANDOM) == 0
    assert "resnet18.crops10" in data.stores()
    monkeypatch.chdir(here / "my root/mine")
    assert Prepared(".").prep_command() == f"python prep.py folder --data '{here}/my root' --name mine"
    monkeypatch.chdir(here)
    assert call(monkeypatch, *TOLD, "--backbone", "resnet18", *RANDOM) == 0
    assert Prepared(here / "data/folder").prep_command() == "python prep.py folder"


def test_precomputed_features_are_remembered_under_their_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("mine.npy", np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32))
    Path("ids.txt").write_text("\n".join(f"{number}.png" for number in range(8)))
    ready = ["--precomputed", "mine.npy", "--ids", "ids.txt", "--backbone", "vgg19"]
    assert call(monkeypatch, "folder", "--captions", "captions.csv", "--splits", "lists", *ready) == 0
    data = Prepared("data/folder")
    assert data.stores() == ["vgg19"]
    assert "--images DIR" in data.prep_command("--backbone", "resnet18")
    stamp = Path("data/folder/vgg19.h5").stat().st_mtime_ns
    assert call(monkeypatch, "folder") == 0
    assert data.stores() == ["vgg19"]
    assert Path("data/folder/vgg19.h5").stat().st_mtime_ns == stamp
    assert call(monkeypatch, "folder", "--images", "pictures", "--backbone", "resnet18", *RANDOM) == 0
    assert set(data.stores()) == {"vgg19", "resnet18"}
    source = head_of("data/folder")["source"]
    assert (source["precomputed"], source["backbone"]) == (str(here / "mine.npy"), ["vgg19"])
    assert call(monkeypatch, "folder") == 0, "both are known: the precomputed ones are those that were asked for first"
    assert set(data.stores()) == {"vgg19", "resnet18"}


def test_restval_can_be_taken_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, *TOLD, "--no-restval", "--backbone", "resnet18", *RANDOM) == 0
    assert head_of("data/folder")["source"]["restval"] is False
    assert call(monkeypatch, "folder", "--backbone", "resnet18", *RANDOM) == 0
    assert head_of("data/folder")["source"]["restval"] is False
    assert call(monkeypatch, "folder", "--restval", "--backbone", "resnet18", *RANDOM) == 0
    assert head_of("data/folder")["source"]["restval"] is True


@pytest.fixture
def tiny(here: Path) -> str:
    pytest.importorskip("transformers")

    return make_tiny_encoder(here / "encoders/tiny")


def test_sentence_features_are_added_to_what_is_there(
    here: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from features.text.encoders import load_sentence_encoder

    assert call(monkeypatch, *TOLD, "--backbone", "resnet18", *RANDOM) == 0
    data = Prepared("data/folder")
    with pytest.raises(BadInput, match="no sentence features of") as caught:
        data.sentence_features("test", "encoders/tiny", "mean")
    command = str(caught.value).split("with: ")[1]
    assert command == "python prep.py folder --text-encoder encoders/tiny"
    before = Path("data/folder/resnet18.h5").stat().st_mtime_ns, Path("data/folder/captions.jsonl").read_bytes()
    shutil.move("pictures", "elsewhere")  # sentence features need neither photographs nor caption files
    assert as_told(monkeypatch, command) == 0
    assert "tiny.text.h5: 16 captions, 16 of them new" in capsys.readouterr().err
    assert before == (
        Path("data/folder/resnet18.h5").stat().st_mtime_ns,
        Path("data/folder/captions.jsonl").read_bytes(),
    )
    assert (data.stores(), data.text_stores()) == (["resnet18"], ["tiny"])
    encoder = load_sentence_encoder(tiny)
    for split in ("train", "val", "test"):
        captions = data.split(split, ["resnet18"]).captions
        for name in ("encoders/tiny", tiny, "tiny"):
            rows = data.sentence_features(split, name, "mean")
            np.testing.assert_allclose(rows, encoder.features(captions)["mean"], atol=4e-3)
    assert as_told(monkeypatch, command) == 0
    assert "16 captions, 0 of them new" in capsys.readouterr().err
    # a caption that has changed since is told, with the command that mends it
    shutil.move("elsewhere", "pictures")
    Path("captions.csv").write_text(Path("captions.csv").read_text().replace("a dog runs 3", "a blue dog"))
    assert call(monkeypatch, "folder", "--backbone", "resnet18", *RANDOM) == 0
    changed = Prepared("data/folder")
    changed.sentence_features("val", "tiny", "mean")
    with pytest.raises(BadInput, match=r"1 of 4 captions .* image 3\.png .*its caption 1") as caught:
        changed.sentence_features("test", "encoders/tiny", "mean")
    capsys.readouterr()
    assert as_told(monkeypatch, str(caught.value).split("with: ")[1]) == 0
    assert "16 captions, 1 of them new" in capsys.readouterr().err
    changed.sentence_features("test", "encoders/tiny", "mean")


def test_sentence_features_along_with_the_rest(
    here: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--text-encoder", "encoders/tiny", "--backbone", "resnet18", *RANDOM]
    assert call(monkeypatch, *TOLD, *both) == 0
    data = Prepared("data/folder")
    assert (data.stores(), data.text_stores()) == (["resnet18"], ["tiny"])
    # told again with all flags: captions are read again, images without features stay out, none is computed
    Path("data/folder/resnet18.h5").unlink()
    ids = [f"{number}.png" for number in range(7)]
    from features.images.store import write_store

    write_store(Path("data/folder/mine.h5"), ids, (2,), "float32", {"digest": ""}, [np.ones((7, 2), np.float32)])
    capsys.readouterr()
    assert call(monkeypatch, *TOLD, "--text-encoder", "encoders/tiny") == 0
    assert "1 images without features left out, the first 7.png" in capsys.readouterr().err
    assert Prepared("data/folder").stores() == ["mine"]
    assert [row["image"] for row in Prepared("data/folder").rows].count("7.png") == 0
    # a folder without features of images gets those of its sentences all the same
    Path("data/folder/mine.h5").unlink()
    assert call(monkeypatch, "folder", "--text-encoder", "encoders/tiny", "--fresh") == 0
    said = capsys.readouterr().err
    assert "no features of images yet; make them with: python prep.py folder --backbone efficientnet_lite0" in said
    assert "14 captions, 14 of them new" in said


def test_other_weights_under_the_same_name(
    here: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *TOLD, "--text-encoder", "encoders/tiny", "--backbone", "resnet18", *RANDOM) == 0
    stamp = Path("data/folder/resnet18.h5").stat().st_mtime_ns
    make_tiny_encoder(here / "others/tiny", seed=1)
    assert call(monkeypatch, "folder", "--text-encoder", "others/tiny") == 2
    assert "other weights" in capsys.readouterr().err
    assert call(monkeypatch, "folder", "--text-encoder", "others/tiny", "--fresh") == 0
    assert Path("data/folder/resnet18.h5").stat().st_mtime_ns == stamp, "features of images are left alone"
    capsys.readouterr()
    for args, sentence in (
        (["others/tiny", "encoders/tiny"], "another one would be kept as tiny.text.h5, too"),
        (["nowhere/at/all"], "nowhere/at/all: no such folder"),
    ):
        assert call(monkeypatch, "folder", "--text-encoder", *args) == 2
        assert sentence in capsys.readouterr().err


def test_the_drawn_sample_needs_no_flag(here: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As prep.py leaves it, on a few pictures of the tests."""
    assert call(monkeypatch, *TOLD, "--name", "scenes", "--backbone", "resnet18", *RANDOM) == 0
    head = head_of("data/scenes")
    (here / "data/scenes/dataset.json").write_text(json.dumps({**head, "dataset": "scenes", "source": {}}))
    data = Prepared("data/scenes")
    assert data.prep_command("--backbone", "vgg19") == "python prep.py scenes --backbone vgg19"
    assert call(monkeypatch, "--text-encoder", "encoders/tiny") == 0
    assert (data.stores(), data.text_stores()) == (["resnet18"], ["tiny"])
    assert len(FeatureStore.open(data.folder / "resnet18.h5")) == 8
