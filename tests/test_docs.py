"""Every command of README.md, CONTRIBUTING.md and docs/ is run, in order, on a small dataset of their file names.

What would take hours is made small and nothing else: twelve drawn images, scenes of forty, networks without the weights
that would have to be downloaded, one epoch of few dimensions, benchmarks of few vectors. The Python example is run too.
"""

import doctest
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eval as evaluation
import losses
import model
import prep
import search
import settings
import train
from features import dual_encoders
from features.datasets import line_files, scenes
from features.images import backbones
from features.text.hub import is_dual
from features.text.vocabulary import Sentences
from metrics import ranks
from tests.dual_helpers import make_tiny_dual
from tests.helpers import ROOT, call, draw_flickr8k, hugging_face, run_together, write_clip_folder, write_tars
from training import fill_bank, probe
from utils import BadInput

CARDS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "models").glob("*/README.md"))
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    *CARDS,
]
RESULTS = [
    "docs/RESULTS.md",
    "docs/MODERN.md",
    "docs/NOT_HELPED.md",
    "docs/EMOJI.md",
    "docs/SEARCH.md",
    "docs/DUAL_ENCODERS.md",
    "docs/SHARING.md",
    "docs/PERFORMANCE.md",
]  # these go on from a prepared folder
SCRIPTS = {"prep.py": prep, "train.py": train, "eval.py": evaluation, "search.py": search}
SMALL = {"training.epochs": 1, "training.batch_size": 8, "embed_dim": 8, "text.word_dim": 8}
BENCHMARKS = {"million_vectors.py": ["--vectors", "300", "--queries", "20"], "search_latency.py": ["--queries", "5"]}
BENCHMARKS |= {
    "training_steps.py": ["--images", "60", "--steps", "1", "--pairs", "1"],
    "start.py": ["--images", "2", "--pairs", "1"],
    "ranks.py": ["--images", "20", "--queries", "5", "--pairs", "1"],
}
BENCHMARKS |= {
    "default_recipe.py": ["--seeds", "0", "--set", "training.min_steps=0", "embed_dim=8"],
    "tried.py": ["--ideas", "queue", "whitening", "margin rises", "--set", "embed_dim=8", "training.epochs=2"],
    "random_splits.py": ["--splits", "2", "--set", "training.min_steps=0", "embed_dim=8"],
}
BENCHMARKS |= {
    "extraction.py": ["--count", "2", "--pairs", "1", "--weights", "random", "--engine", "torch"],
    "sentence_features.py": ["--count", "8", "--pairs", "1", "--engine", "torch"],
}
BENCHMARKS |= {
    "bench.py": ["--only", "ranks", "--scale", "0.01", "--pairs", "1"],
    "growth.py": ["--captions", "1000", "--pairs", "1", "--steps", "1", "--images", "40", "--vectors", "500"],
}
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def commands_of(page: str) -> list[str]:
    """The command lines in the ```sh blocks of a page, with what stands in variables put in."""
    commands: list[str] = []
    variables: dict[str, str] = {}
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if assignment := re.fullmatch(r"\s*([A-Z]+)=(\S+)", line):
                variables[assignment[1]] = assignment[2]
            else:
                text = re.sub(r"\$([A-Z]+)", lambda name: variables[name[1]], line.strip())
                commands += [part.strip() for part in text.split("&&")]
    return commands


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A folder that holds what the pages name, and a project in which the slow things are small."""
    draw_flickr8k(tmp_path)
    shutil.copytree(tmp_path / "drawn/images", tmp_path / "my_images")
    for name in "ab":
        shutil.copy(tmp_path / "Flicker8k_Dataset/1.jpg", tmp_path / f"{name}.jpg")
    (tmp_path / "models").symlink_to(ROOT / "models")
    write_other_models(tmp_path)
    draw, load, find = scenes.scenes, backbones.load, dual_encoders.find_dual
    tiny = make_tiny_dual(tmp_path / "tiny-clip")

    def few_scenes(folder, *args):
        dataset = draw(folder, 0, 24, 8, 8)
        shutil.copy(tmp_path / "a.jpg", folder / "scene-1400.png")
        return dataset

    def without_download(name, **options):
        local = name == "efficientnet_lite0" or is_dual(name)
        return load(name, **{**options, "weights": options.get("weights") if local else "random"})

    def tiny_clip(name, option="text_encoder"):
        return find(f"clip:{tiny}", option)._replace(name=name.removeprefix("clip:"), kind="hub")

    monkeypatch.setattr(dual_encoders, "find_dual", tiny_clip)
    monkeypatch.setattr(scenes, "scenes", few_scenes)
    monkeypatch.setattr("features.prepare.scenes", few_scenes)  # it may be imported already
    monkeypatch.setattr(backbones, "load", without_download)
    monkeypatch.setattr(probe, "NEIGHBORS", 2)
    monkeypatch.setattr(fill_bank, "MIN_IMAGES", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return tmp_path


def write_other_models(folder: Path) -> None:
    """What docs/EVALUATION.md evaluates: rows of the eight test images of few scenes and their captions, and pairs."""
    random, images = np.random.default_rng(0), np.repeat(np.arange(8), 5)
    sides = {"clip_images": random.normal(size=(8, 16)), "clip_captions": random.normal(size=(40, 16))}
    for name, array in {**sides, "clip": random.normal(size=(8, 40)), "other": random.normal(size=(8, 40))}.items():
        np.save(folder / f"{name}.npy", array)
    lines = [f"{image}.jpg,{image}.jpg#{row}\n" for row, image in enumerate(images)]
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(lines))


def make_small(words: list[str]) -> list[str]:
    """A train.py command whose runs are small in what it does not set itself."""
    given = {word.partition("=")[0] for word in words}
    return [*words, "--set", *(f"{key}={value}" for key, value in SMALL.items() if key not in given)]


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[:3] == ["pip", "install", "-r"]:
        assert (ROOT / words[3]).is_file()
    elif words[:2] == ["pip", "install"]:
        assert all(importlib.util.find_spec(name) for name in words[2:])
    elif words[0] == "git":
        assert subprocess.run(line, shell=True, cwd=ROOT, check=True, capture_output=True).stdout
    elif words[1:3] == ["-m", "tests.mutate"]:
        subprocess.run([sys.executable, *words[1:], "--list"], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "torchrun":
        script = next(number for number, word in enumerate(words) if word in SCRIPTS)
        args = make_small(words[script + 1 :]) if words[script] == "train.py" else words[script + 1 :]
        assert run_together(Path.cwd(), SCRIPTS[words[script]].main, *args) == ([0, 0], []), line
    elif words[1] == "app.py":
        serve(words[2:])
    elif words[1].startswith("benchmarks/"):
        more = BENCHMARKS.get(Path(words[1]).name, [])
        subprocess.run([sys.executable, ROOT / words[1], *words[2:], *more], check=True, capture_output=True)
    else:
        args = make_small(words[2:]) if words[1] == "train.py" else words[2:]
        assert call(monkeypatch, SCRIPTS[words[1]], *args) == 0, line


def serve(args: list[str]) -> None:
    """The page starts, says where it is, answers, and ends with Ctrl-C."""
    command: list[Any] = [sys.executable, ROOT / "app.py", *args, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = ""
        while not (address := re.search(r"images on (http://127.0.0.1:\d+/)", said)):
            line = server.stderr.readline()
            assert line, said
            said += line
        with urllib.request.urlopen(address[1], timeout=60) as page:
            assert page.status == 200
        server.send_signal(signal.SIGINT)  # heard from the first answer on
        server.communicate(timeout=60)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_works(page, sandbox, monkeypatch):
    if page == "docs/EMOJI.md" and not EMOJI_FONT.is_file():
        pytest.skip("the font of the emoji is not installed")
    pytest.importorskip("faiss")
    if page == "docs/SHARING.md":
        pytest.importorskip("onnxscript")
    if page == "docs/SCALE.md":
        pytest.importorskip("milvus_lite")
    lines = commands_of(page)
    if page == "docs/FORMATS.md":
        write_tars(sandbox / "shards")
        write_clip_folder(sandbox / "clip_folder")
        hugging_face(sandbox, range(12), split=["train", "train", "val", "test"] * 3).save_to_disk(sandbox / "saved")
    if page in RESULTS:
        for more in ([], ["--backbone", "inception_v3"]):
            prepare = ["flickr8k", "--images", "Flicker8k_Dataset", "--captions", "Flickr8k_text", *more]
            assert call(monkeypatch, prep, *prepare, "--workers", "0") == 0
    for line in lines:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_command(line, monkeypatch)


def added(name: str, module: Any) -> Any:
    """What a Python block of CONTRIBUTING.md defines as `name`, as if it stood in `module`; its example is run."""
    blocks = re.findall(r"^ *```python\n(.*?)^ *```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if re.match(rf" *(def|class) {name}\(", block))
    there = dict(vars(module))
    exec(compile(textwrap.dedent(block), "CONTRIBUTING.md", "exec"), there)
    for example in doctest.DocTestFinder().find(there[name], name, module=False, globs=there):
        assert doctest.DocTestRunner().run(example).failed == 0
    return there[name]


def test_what_contributing_adds_works(tmp_path, monkeypatch):
    added("contrastive", losses)
    added("mean_reciprocal_rank", ranks)
    (tmp_path / "pairs.txt").write_text("a.jpg no tab\n")
    with pytest.raises(BadInput, match="line 1 has no tab"):
        added("read_pairs", line_files)(tmp_path / "pairs.txt", "a.jpg no tab\n")
    monkeypatch.setitem(model.WORD_BRANCHES, "conv", added("ConvBranch", model))
    conv: dict[str, Any] = {"branch": "conv", "word_dim": 4, "word_dropout": 0.5}
    small = settings.Settings(embed_dim=8, text=settings.TextSettings(**conv))
    two = model.TwoBranch(small, model.InputDims(6, 9))
    lists = [[1, 2, 3], [4], [5, 6, 7, 8, 1, 2]]
    whole = two.eval().embed_sentences(Sentences.of(lists))
    for row, numbers in zip(whole, lists, strict=True):
        torch.testing.assert_close(row, two.embed_sentences(Sentences.of([numbers]))[0])
    assert not torch.equal(two.train().embed_sentences(Sentences.of(lists)), whole)


def test_the_python_of_the_pages_works(sandbox, monkeypatch, capsys):
    assert call(monkeypatch, prep, "--workers", "0") == 0
    assert call(monkeypatch, train, "--set", "training.epochs=1") == 0
    assert os.path.isdir("runs")
    torch.manual_seed(0)
    said = []
    for page in ("README.md", "docs/PYTHON.md"):
        blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
        capsys.readouterr()
        exec(compile("".join(blocks), page, "exec"), {})
        said.append(capsys.readouterr().out)
    assert said[0].splitlines()[-1].startswith("scene-")
    for part in (
        "Run('runs/strong-scenes-",
        "Prepared('data/scenes': scenes",
        "none of its words (xyzzy)",
        "Answer: 3 im",
    ):
        assert part in said[1]
