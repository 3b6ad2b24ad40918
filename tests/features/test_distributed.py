"""Two processes make the stores of one, bit for bit, whatever was there before, and say everything once."""

import os
import subprocess
import sys
from dataclasses import replace

import h5py
import pytest

import prep
from features.distributed import deal, from_all, joined, rank
from features.engines import TorchEngine, is_installed
from features.images import backbones, extract
from features.text import store
from features.text.encoders import SentenceEncoder
from tests.helpers import ROOT, call, draw_images, make_tiny_encoder, prep_args, run_together, tiny_backbone
from utils import BadInput, log, warn

SCRIPT = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import prep
from features.blocks import Blocks
from features.images import backbones, extract
from tests.helpers import tiny_backbone
from script import run_script

write = Blocks.write

def write_and_end(*args, **arrays):
    write(*args, **arrays)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

Blocks.write = write_and_end
extract.ROWS_PER_BLOCK = 3
backbones.load = lambda name, **options: tiny_backbone(dawdle=0.1)
run_script(prep.main)
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(extract, "ROWS_PER_BLOCK", 3)
    monkeypatch.setattr(store, "ROWS_PER_BLOCK", 3)
    monkeypatch.setattr(backbones, "load", lambda name, **options: tiny_backbone())


def test_processes_fill_the_same_blocks_and_others_continue_them(tmp_path, monkeypatch, small):
    draw_images(tmp_path)
    options = prep_args(tmp_path, "--text-encoder", make_tiny_encoder(tmp_path / "tiny"))
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, tmp_path / "script.py", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("script.py: ")]
    assert sentence.endswith("and it continues")
    assert done.stderr.count("Traceback") == 1, "torchrun's"
    part = tmp_path / "data/folder/tiny.h5.part"
    blocks = list(part.glob("block-*.npz"))
    assert len(blocks) < 8
    assert {path.stem[-2:] for path in blocks} == {"-0", "-1"}, "both have written"

    assert run_together(tmp_path, prep.main, *options) == ([0, 0], [])
    assert not part.exists()
    assert (tmp_path / "said.txt").read_text().count("24 images, features: tiny.h5") == 1
    one, two = tmp_path / "one/folder", tmp_path / "data/folder"
    assert call(monkeypatch, prep, *options, "--data", one.parent) == 0
    names = {"captions.jsonl", "dataset.json", "tiny.h5", "tiny.text.h5", "vocabulary.json"}
    for folder in (one, two):
        assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_images_that_cannot_be_read_are_named_whoever_met_them(tmp_path, small):
    draw_images(tmp_path)
    for number in (1, 10, 20):
        (tmp_path / f"images/{number}.png").write_text("no image")
    statuses, (sentence,) = run_together(tmp_path, prep.main, *prep_args(tmp_path))
    assert statuses == [2, 2]
    assert sentence.startswith("script.py: 3 images cannot be read; all others are kept")
    said = (tmp_path / "said.txt").read_text()
    assert [said.count(f"cannot be read: {number}.png") for number in (1, 10, 20)] == [1, 1, 1]
    assert run_together(tmp_path, prep.main, *prep_args(tmp_path, "--skip-unreadable")) == ([0, 0], [])


@pytest.mark.parametrize("option", ["--nothing", "--images=nowhere"])
def test_what_all_processes_meet_is_said_once(option, tmp_path):
    draw_images(tmp_path)
    statuses, said = run_together(tmp_path, prep.main, *prep_args(tmp_path, option))
    assert statuses == [2, 2]
    assert len(said) == 1
    assert option.removeprefix("--images=") in said[0]


def test_another_backbone_in_one_process_ends_all(tmp_path, monkeypatch, small):
    draw_images(tmp_path)
    monkeypatch.setattr(backbones, "load", lambda name, **options: tiny_backbone(seed=int(os.environ["RANK"])))
    statuses, (sentence,) = run_together(tmp_path, prep.main, *prep_args(tmp_path))
    assert statuses == [2, 2]
    assert "with other weights (digest 0, not digest 1); give all processes the same weights" in sentence


def engines_of(path):
    with h5py.File(path) as file:
        return file.attrs["engine"], file.attrs["precision"]


@pytest.mark.skipif(not is_installed(), reason="pip install openvino")
def test_processes_with_openvino_make_the_stores_of_one(tmp_path, monkeypatch):
    draw_images(tmp_path)
    options = [*prep_args(tmp_path), "--backbone", "timm:test_resnet", "--weights", "random", "--engine", "openvino"]
    options += ["--workers", 1, "--text-encoder", make_tiny_encoder(tmp_path / "tiny")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command, environment = [*torchrun, ROOT / "prep.py", *options], {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command)], env=environment, capture_output=True, check=True, timeout=200)
    assert call(monkeypatch, prep, *options, "--data", tmp_path / "one") == 0
    for path in (tmp_path / "one/folder").glob("*.h5"):
        assert path.read_bytes() == (tmp_path / "data/folder" / path.name).read_bytes()
        assert engines_of(path) == ("openvino", "float32")


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """The first process finds openvino the quicker; what the others ask for is in asked.txt."""
    choose, encode = extract.image_engine, SentenceEncoder.with_engine

    def quicker(running):
        running.name = "openvino"
        return running

    def ask(engine):
        with (tmp_path / "asked.txt").open("a") as file:
            file.write(f"{engine}\n")

    def image_engine(backbone, count, *, engine, **options):
        if rank() == 0 and engine == "auto":
            return quicker(TorchEngine(backbone.module))
        ask(engine)
        return choose(backbone, count, engine=engine, **options)

    def with_engine(encoder, engine, precision, count):
        if rank() == 0 and engine == "auto":
            return replace(encoder, engine=quicker(TorchEngine(encoder.states)))
        ask(engine)
        return encode(encoder, engine, precision, count)

    monkeypatch.setattr(extract, "image_engine", image_engine)
    monkeypatch.setattr(SentenceEncoder, "with_engine", with_engine)


@pytest.mark.parametrize("side", ["images", "sentences"])
def test_a_process_without_the_engine_that_the_first_one_has_chosen_ends_all(
    side, tmp_path, monkeypatch, small, chosen
):
    draw_images(tmp_path)
    options = prep_args(tmp_path)
    if side == "sentences":
        assert call(monkeypatch, prep, *options, "--engine", "torch") == 0
        (tmp_path / "asked.txt").unlink()
        options = ["folder", "--data", tmp_path / "data", "--text-encoder", make_tiny_encoder(tmp_path / "tiny")]
    monkeypatch.setitem(sys.modules, "openvino", None)
    statuses, (sentence,) = run_together(tmp_path, prep.main, *options)
    assert statuses == [2, 2]
    assert sentence == "script.py: --engine openvino: needs the package openvino; pip install openvino, or take torch"
    assert (tmp_path / "asked.txt").read_text() == "openvino\n", "it does not measure by itself"


def test_groups_are_dealt_to_whoever_is_free_and_the_first_speaks(tmp_path):
    groups = [[number] * (number + 1) for number in range(5)]

    def main():
        with joined():
            others: list[int] = []
            taken = deal(groups, "groups", others.append)
            mine = [] if rank() else [next(taken), next(taken)]
            from_all(None)
            mine += [next(taken)] if rank() else []
            from_all(None)
            mine += [] if rank() else [next(taken), next(taken), *taken]
            from_all(None)
            mine += list(taken)
            log("heard")
            warn(f"{[len(group) for group in mine]} {others}")
            from_all(None)
            if rank():
                raise BadInput(f"{[len(group) for group in mine]} {others}")

    statuses, said = run_together(tmp_path, main)
    assert statuses == [0, 2]
    assert said == ["script.py: [3] [3, 9]"]
    assert (tmp_path / "said.txt").read_text().splitlines()[:2] == ["heard", "[1, 2, 4, 5] [0, 0, 3, 0, 0]"]
