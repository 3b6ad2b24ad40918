"""The prepared folder and prep.py's memory: what was told once need not be told again, sentence features included."""

import doctest
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nltk.stem.snowball import SnowballStemmer
from PIL import Image as PILImage

import prep
from features import options, prepare, prepared
from features.datasets import dataset, line_files, precomputed, readers
from features.images import store
from features.images.store import FeatureStore, store_name, write_store
from features.images.views import FeatureViews
from features.options import PrepOptions, resolve_options
from features.prepared import Prepared, options_of_store
from tests.helpers import ROOT, make_tiny_encoder
from tests.helpers import call as run_as_script
from utils import BadInput, NotPrepared, command_line


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """Run prep.py as the command line would; returns the exit status."""
    return run_as_script(monkeypatch, prep, *args)


def as_told(monkeypatch: pytest.MonkeyPatch, command: str, *more: object) -> int:
    """Run the very command that a message told."""
    python, name, *args = shlex.split(command)
    assert (python, name) == ("python", "prep.py")
    return call(monkeypatch, *args, *more)


def command_of(data: Prepared, **more: Any) -> str:
    return command_line("prep.py", data.prep_options(**more))


SPLITS = ("train", "train", "val", "test")
RANDOM = ("--weights", "random", "--workers", 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: eight images, their captions without splits' names, and a list of each split."""
    (tmp_path / "images").mkdir()
    lines = ["image,caption"]
    for number in range(8):
        PILImage.new("RGB", (40, 40), (30 * number, 200, 90)).save(tmp_path / f"images/{number}.png")
        lines += [f"{number}.png,a dog runs {number}", f"{number}.png,the red car"]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "lists").mkdir()
    for split in set(SPLITS):
        ids = [f"{number}.png" for number in range(8) if SPLITS[number % 4] == split]
        (tmp_path / f"lists/{split}.txt").write_text("\n".join(ids) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TOLD = ("folder", "--images", "images", "--captions", "captions.csv", "--splits", "lists")


def head_of(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "dataset.json").read_text())


@pytest.mark.parametrize("room", [options, prepare, prepared, dataset, line_files, precomputed, readers])
def test_docstrings(room: Any) -> None:
    assert doctest.testmod(room).failed == 0


def test_lists_of_the_help_are_those_of_the_library() -> None:
    assert ("none", *SnowballStemmer.languages) == options.LANGUAGES
    assert options.DTYPES == store.DTYPES
    assert ("scenes", *readers.FILES, *readers.CONTAINERS) == options.DATASETS
    assert tuple(readers.CONTAINERS) == options.CONTAINERS


def test_help_waits_for_nothing_heavy() -> None:
    code = "import sys, prep; print({'numpy', 'h5py', 'nltk', 'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("vgg19", {}),
        ("efficientnet_lite0", {"map": True}),
        ("vgg19", {"crops": 10}),
        ("timm:resnet10t.a1_in1k", {"map": True}),
        ("vgg16", {"layer": "classifier.3", "crops": 10}),
        ("resnet50", {"layer": "layer3", "map": True}),
        ("vgg19", {"views": 6}),
        ("efficientnet_lite0", {"size": 288}),
        ("timm:resnet10t.a1_in1k", {"size": 320, "views": 10}),
        ("resnet50", {"layer": "layer3", "size": 96, "map": True}),
        ("resnet50", {"layer": "layer3", "size": 96, "crops": 10}),
    ],
)
def test_the_options_that_make_a_store(backbone: str, options: dict[str, Any]) -> None:
    wanted = PrepOptions(backbone=(backbone,), **options)
    usual: dict[str, Any] = {"layer": None, "map": False, "crops": 1}
    assert resolve_options(options_of_store(store_name(backbone, **{**usual, **options}))) == wanted


@pytest.mark.parametrize("normalize", [True, False])
def test_views_of_different_number_are_joined(here: Path, monkeypatch: pytest.MonkeyPatch, normalize: bool) -> None:
    tiny = ["--backbone", "timm:test_resnet", *RANDOM]
    for more in ([], ["--views", "3"], ["--views", "2", "--size", "64", "--dtype", "float32"]):
        assert call(monkeypatch, *TOLD, *tiny, *more) == 0
    data = Prepared("data/folder")
    name = "timm-test_resnet"
    names = [f"{name}.views3", name, f"{name}.size64.views2"]
    assert set(data.stores()) == set(names)
    assert [data.store(store).shape for store in names] == [(3, 96), (96,), (2, 96)]
    assert [data.store(store).dtype for store in names] == ["float16", "float32", "float32"]
    split = data.split("train", names, normalize)
    assert isinstance(split.features, FeatureViews)
    assert [part.dtype for part in split.features.parts] == [np.float16, np.float32, np.float32]
    stored = [data.store(store).read(data.store(store).rows(split.images)) for store in names]
    expected = np.zeros((len(split.images), 3 * 96))
    for row in range(len(split.images)):
        for column, part in enumerate(stored):
            vectors = part[row].reshape(-1, 96).astype(np.float64)
            mean = sum(vector / np.linalg.norm(vector) for vector in vectors) / len(vectors)
            expected[row, 96 * column : 96 * (column + 1)] = mean / np.linalg.norm(mean)
    np.testing.assert_allclose(split.features[:], expected, atol=1e-6)
    np.testing.assert_array_equal(split.features.parts[0][:, 0], stored[1].astype(np.float16))


def test_views_and_sizes_stand_side_by_side(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--backbone", "timm:test_resnet", *RANDOM]
    assert call(monkeypatch, *TOLD, *tiny, "--views", "2") == 0
    path = Path("data/folder/timm-test_resnet.views2.h5")
    stamp = path.stat().st_mtime_ns
    assert call(monkeypatch, *TOLD, *tiny, "--views", "2") == 0
    assert call(monkeypatch, *TOLD, *tiny, "--views", "3") == 0
    assert call(monkeypatch, *TOLD, *tiny, "--size", "64") == 0
    assert path.stat().st_mtime_ns == stamp, "what is done is not done again, nor replaced by another number of views"
    data = Prepared("data/folder")
    with pytest.raises(NotPrepared) as caught:
        data.store("timm-test_resnet.size96.views4")
    command = command_line("prep.py", caught.value.options)
    assert command == "python prep.py folder --backbone timm:test_resnet --size 96 --views 4"
    assert as_told(monkeypatch, command, *RANDOM) == 0
    assert set(data.stores()) == {f"timm-test_resnet.{end}" for end in ("views2", "views3", "size64", "size96.views4")}
    capsys.readouterr()
    np.save("mine.npy", np.zeros((8, 5), np.float32))
    for more, sentence in (
        (["--views", "11"], "--views 11: an image has 10 views; choose a number from 1 to 10"),
        (["--views", "2", "--map"], "--views 2 with --map"),
        (["--size", "9"], "--size 9: at least 32 pixels"),
        (["--precomputed", "mine.npy", "--views", "2"], "--views goes with a backbone"),
        (["--precomputed", "mine.npy", "--size", "64"], "--size goes with a backbone"),
    ):
        backbone = [] if "--precomputed" in more else tiny
        assert call(monkeypatch, *TOLD, *backbone, *more) == 2
        assert sentence in capsys.readouterr().err


def test_views_and_size_ask_for_features_of_images() -> None:
    asked = [PrepOptions(), PrepOptions(views=2), PrepOptions(size=64), PrepOptions(crops=10)]
    assert [options.asks_for_features for options in asked] == [False, True, True, True]


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
    with pytest.raises(NotPrepared, match="no such features") as caught:
        data.store("resnet18.map")
    command = command_line("prep.py", caught.value.options)
    assert command == "python prep.py folder --backbone resnet18 --map"
    assert as_told(monkeypatch, command, *RANDOM) == 0
    said = capsys.readouterr().err
    assert f"remembered: --images {here}/images --captions {here}/captions.csv --splits {here}/lists" in said
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


def test_a_damaged_memory_is_none(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *TOLD, "--backbone", "resnet18", *RANDOM) == 0
    head = head_of("data/folder")
    damages: tuple[object, ...] = ({"captions": 5, "language": "english"}, [], "x", None)
    for damage in damages:
        (here / "data/folder/dataset.json").write_text(json.dumps({**head, "source": damage}))
        assert call(monkeypatch, "folder", "--backbone", "resnet18") == 2
        assert "--captions is missing" in capsys.readouterr().err
    assert call(monkeypatch, *TOLD, "--backbone", "resnet18", *RANDOM) == 0
    assert head_of("data/folder") == head


def test_from_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a notebook: options as a mapping, what is missing as data, lines that name parameters."""
    given = {"dataset": "folder", "images": "images", "captions": "captions.csv", "splits": "lists"}
    small = {"backbone": "resnet18", "weights": "random", "workers": 0}
    data = prepare.prepare(resolve_options({**given, **small}))
    assert data.stores() == ["resnet18"]
    assert "8 training captions, 10 words, stems: english" in capsys.readouterr().err
    with pytest.raises(NotPrepared) as caught:
        data.store("resnet18.map")
    assert prepare.prepare(resolve_options({**caught.value.options, **small})).stores()
    assert f"remembered: `images` {here}/images `captions` " in capsys.readouterr().err
    assert set(data.stores()) == {"resnet18", "resnet18.map"}
    with pytest.raises(BadInput, match="did you mean backbone"):
        resolve_options({"backbones": "resnet18"})
    with pytest.raises(BadInput, match="`images` is missing"):
        prepare.prepare(PrepOptions("folder", captions=Path("captions.csv")))


def test_the_command_names_root_and_folder_where_they_are_others(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--data", "my root", "--name", "mine"]
    assert call(monkeypatch, *TOLD, *there, "--backbone", "resnet18", *RANDOM) == 0
    data = Prepared("my root/mine")
    command = command_of(data, backbone="resnet18", crops=10)
    assert command == "python prep.py folder --backbone resnet18 --crops 10 --data 'my root' --name mine"
    assert as_told(monkeypatch, command, *RANDOM) == 0
    assert "resnet18.crops10" in data.stores()
    monkeypatch.chdir(here / "my root/mine")
    assert command_of(Prepared(".")) == f"python prep.py folder --data '{here}/my root' --name mine"
    monkeypatch.chdir(here)
    assert call(monkeypatch, *TOLD, "--backbone", "resnet18", *RANDOM) == 0
    assert command_of(Prepared(here / "data/folder")) == "python prep.py folder"


def test_precomputed_features_are_remembered_under_their_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("mine.npy", np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32))
    Path("ids.txt").write_text("\n".join(f"{number}.png" for number in range(8)))
    ready = ["--precomputed", "mine.npy", "--ids", "ids.txt", "--backbone", "vgg19"]
    assert call(monkeypatch, "folder", "--captions", "captions.csv", "--splits", "lists", *ready) == 0
    data = Prepared("data/folder")
    assert data.stores() == ["vgg19"]
    assert "--images DIR" in command_of(data, backbone="resnet18")
    stamp = Path("data/folder/vgg19.h5").stat().st_mtime_ns
    assert call(monkeypatch, "folder") == 0
    assert data.stores() == ["vgg19"]
    assert Path("data/folder/vgg19.h5").stat().st_mtime_ns == stamp
    assert call(monkeypatch, "folder", "--images", "images", "--backbone", "resnet18", *RANDOM) == 0
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
    with pytest.raises(NotPrepared, match="no sentence features of") as caught:
        data.sentence_features("test", "encoders/tiny", "mean")
    command = command_line("prep.py", caught.value.options)
    assert command == "python prep.py folder --text-encoder encoders/tiny"
    before = Path("data/folder/resnet18.h5").stat().st_mtime_ns, Path("data/folder/captions.jsonl").read_bytes()
    shutil.move("images", "elsewhere")  # sentence features need neither images nor caption files
    assert as_told(monkeypatch, command) == 0
    assert "tiny.text.h5: 16 captions, 9 of them computed" in capsys.readouterr().err
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
    assert "16 captions, 0 of them computed" in capsys.readouterr().err
    # a caption that has changed since is told, with the command that mends it
    shutil.move("elsewhere", "images")
    Path("captions.csv").write_text(Path("captions.csv").read_text().replace("a dog runs 3", "a blue dog"))
    assert call(monkeypatch, "folder", "--backbone", "resnet18", *RANDOM) == 0
    changed = Prepared("data/folder")
    changed.sentence_features("val", "tiny", "mean")
    with pytest.raises(BadInput, match=r"1 of 4 captions .* image 3\.png .*its caption 1") as outdated:
        changed.sentence_features("test", "encoders/tiny", "mean")
    capsys.readouterr()
    assert as_told(monkeypatch, str(outdated.value).split("with: ")[1]) == 0
    assert "16 captions, 1 of them computed" in capsys.readouterr().err
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
    assert "14 captions, 8 of them computed" in said


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
    """As prep.py leaves it, on a few images of the tests."""
    assert call(monkeypatch, *TOLD, "--name", "scenes", "--backbone", "resnet18", *RANDOM) == 0
    head = head_of("data/scenes")
    (here / "data/scenes/dataset.json").write_text(json.dumps({**head, "dataset": "scenes", "source": {}}))
    data = Prepared("data/scenes")
    assert command_of(data, backbone="vgg19") == "python prep.py scenes --backbone vgg19"
    assert call(monkeypatch, "--text-encoder", "encoders/tiny") == 0
    assert (data.stores(), data.text_stores()) == (["resnet18"], ["tiny"])
    assert len(FeatureStore.open(data.folder / "resnet18.h5")) == 8
