"""Scripts in forked processes in which something goes wrong: what the tests of kills, signals and full disks share.

A fork has imported all, so that an attempt takes no longer than its work on tiny data.
"""

import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

import eval as eval_script
import prep
import search
import train
from features.images import backbones, extract
from features.text import store
from features.text.encoders import SentenceEncoder
from retrieval import build
from retrieval.index import META, Index
from script import run_script
from tests.helpers import Network, call, draw_images, make_tiny_encoder, tiny_backbone
from training import fill_bank
from training.trainer import Trainer

RESUMED, ANEW = ["prep", "train", "index"], ["embed", "export", "sheet", "share", "eval"]
ROWS = 3  # of a finished block: what a kill may cost
EPOCHS = 3
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Task:
    """A command, and what it leaves below a folder. interval: how much of its work a kill may cost."""

    script: ModuleType
    args: Callable[[Path], list[Any]]
    outcome: Callable[[Path], dict[str, Any]]
    interval: int = 0


class Tasks(dict[str, Task]):
    """What every script writes, on tiny data: RESUMED begin where they were stopped, the others begin anew."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, made: bool = False):
        """made: whether `home` holds already what they read."""
        self.home = home
        for room in (extract, store, build):
            patch.setattr(room, "ROWS_PER_BLOCK", ROWS)
        patch.setattr(fill_bank, "MIN_IMAGES", 1)
        patch.setattr(os, "fsync", lambda descriptor: None)  # programs are killed, not the machine
        patch.setattr(backbones, "load", lambda name, **options: tiny_backbone())
        sources = ["--images", home / "images", "--captions", home / "captions.csv", "--workers", 0]
        encoder = home / "tiny"
        prepared, more = home / "data/folder", ["training.batch_size=8", "training.min_steps=0", "embed_dim=32"]
        trained = ["strong", "--data", prepared, "--seeds", 0, 1, "--set", f"training.epochs={EPOCHS}", *more]
        run = ["--run", "strong-*-0-*", "--runs", home / "runs"]
        super().__init__(
            prep=Task(prep, lambda to: ["folder", *sources, "--data", to, "--text-encoder", encoder], files_of, ROWS),
            train=Task(train, lambda to: [*trained, "--runs", to], files_of, 1),
            index=Task(
                search,
                lambda to: ["index", home / "images", "--out", to / "index", "--batch-size", ROWS, *run],
                index_of,
                ROWS,
            ),
        )
        if not made:
            draw_images(home)
            make_tiny_encoder(encoder)
            for task, to in (("prep", "data"), ("train", "runs"), ("index", "indexes")):  # each needs the one before
                assert call(patch, self[task].script, *self[task].args(home / to)) == 0
        (finished,), indexed = (home / "runs").glob("strong-*-0-*"), home / "indexes/index"
        files = {"--plots": "plots", "--report": "report.html", "--logs": "logs.csv", "--trec": "trec"}.items()
        asked = [home / "images/0.png", "--run", finished]
        self["eval"] = Task(
            eval_script, lambda to: [finished, *(x for flag, name in files for x in (flag, to / name))], files_of
        )
        self["share"] = Task(eval_script, lambda to: [finished, "--share", to / "shared"], files_of)
        self["embed"] = Task(search, lambda to: ["embed", *asked, "--out", to / "rows.npy"], files_of)
        self["sheet"] = Task(
            search, lambda to: ["find", indexed, "a red circle", "--sheet", to / "sheet.png"], files_of
        )
        self["export"] = Task(search, lambda to: ["export", indexed, "--out", to / "folder"], files_of)


@dataclass
class Attempt:
    """A script in a process of its own. said: the file of what it says; began: monotonic seconds."""

    process: BaseProcess
    said: Path
    began: float

    def end(self, number: int = signal.SIGKILL, after: float = 60.0) -> int:
        """Send it a signal when it is `after` seconds old; return its exit status, negative for a signal."""
        self.process.join(max(0.0, self.began + after - time.monotonic()))
        if self.process.is_alive():
            os.kill(self.process.pid or 0, number)
            self.process.join(30)
        assert self.process.exitcode is not None, "it does not end"
        return self.process.exitcode

    def sentence(self) -> str:
        """Return the last line that it said, which is one of ours."""
        text = self.said.read_text()
        assert "Traceback" not in text, text
        assert "Exception ignored" not in text, text
        return text.splitlines()[-1] if text else ""


def start(task: Task, to: Path, said: Path, before: Callable[[], Any] = lambda: None) -> Attempt:
    """Start a task that writes below `to`, and wait until its main begins; before: what its process does first."""
    began = FORK.Event()

    def main() -> None:
        began.set()
        task.script.main()

    def run() -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        sys.argv = [f"{task.script.__name__}.py", *map(str, task.args(to))]
        before()
        run_script(main)

    to.mkdir(exist_ok=True)
    process = FORK.Process(target=run)
    process.start()
    assert began.wait(60), said.read_text()
    return Attempt(process, said, time.monotonic())


# Faults

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}  # of Python's audit events


def at_change(folder: Path, number: int, happen: Callable[[str], Any]) -> None:
    """Let something happen before each change of the file system below `folder`, from that of `number` (0) on.

    happen: takes what is to happen, such as "os.rename PATH".
    """
    numbers = itertools.count()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        path, flags = (args[0], args[2]) if event == "open" else (args[0] if event in CHANGES else "", 0)
        if event not in CHANGES and not (event == "open" and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)
        if Path(name).is_relative_to(folder) and next(numbers) >= number:
            happen(f"{event} {name}")

    sys.addaudithook(hook)


def kill_at_change(folder: Path, number: int) -> None:
    """Let the process be killed before its change of this number."""
    at_change(folder, number, lambda what: os.kill(os.getpid(), signal.SIGKILL))


def changes_of(task: Task, to: Path, said: Path) -> tuple[list[str], dict[str, Any]]:
    """Run a task that nothing disturbs; return what `at_change` hears of it, and its outcome."""
    whole = start(task, to, said, lambda: at_change(to, 0, lambda what: print(f"change: {what}", file=sys.stderr)))
    assert whole.end() == 0, whole.sentence()
    return re.findall(r"^change: (.*)", said.read_text(), re.MULTILINE), task.outcome(to)


def chosen(changes: list[str], name: str, torture: bool) -> Sequence[int]:
    """Return the numbers of all changes, or of a few."""
    numbers = range(len(changes))
    return numbers if torture else random.Random(name).sample(numbers, 1 if name in ANEW else 2)


def record_work(file: Path) -> None:
    """Write a line into a file for each image, caption and epoch that is computed from now on."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    forward, features, train_epoch = Network.forward, SentenceEncoder.features, Trainer.train_epoch

    def note(lines: Iterable[str]) -> None:
        os.write(descriptor, "".join(f"{line}\n" for line in lines).encode())

    def see(network: Network, pixels: torch.Tensor) -> torch.Tensor:
        note(f"image {hash(image.numpy().tobytes())}" for image in pixels if image.any())  # others fill the batch
        return forward(network, pixels)

    def read(encoder: SentenceEncoder, texts: Sequence[str]) -> Any:
        note(f"caption {text}" for text in texts)
        return features(encoder, texts)

    def fit(trainer: Trainer) -> float:
        note([f"epoch {trainer.folder.name} {len(trainer.log)}"])
        return train_epoch(trainer)

    Network.forward, SentenceEncoder.features, Trainer.train_epoch = see, read, fit  # type: ignore[method-assign,assignment]


# What is on disk


def check_whole(folder: Path) -> None:
    """Make sure that each file under a name of its own can be read to its end, and so can an index."""
    for path in folder.rglob("[!.]*"):
        if path.is_file() and path.parent.name[0] != ".":
            read_whole(path)
    for path in folder.rglob(META):
        if ".part" not in str(path):
            Index.open(path.parent)


def read_whole(path: Path) -> Any:
    """Return what a file holds: arrays as bytes, a log without times."""
    match path.suffix:
        case ".h5":
            with h5py.File(path) as file:
                return {**{name: file[name][()].tobytes() for name in file}, **file.attrs}
        case ".npz":
            with np.load(path) as block:
                return {name: block[name].tobytes() for name in block}
        case ".npy":
            return np.load(path).tobytes()
        case ".json":
            return without_times(json.loads(path.read_text()))
        case ".jsonl":
            return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        case ".toml":
            return tomllib.loads(path.read_text())
        case ".safetensors":
            safetensors.torch.load_file(path)
            return path.read_bytes()
        case ".pt":
            state = torch.load(path, weights_only=True)
            moments = [{**each} for each in state["optimizer"]["state"].values()]
            return [
                [name, tensor.numpy().tobytes()] for each in (state["model"], *moments) for name, tensor in each.items()
            ]
    return path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: content for key, content in value.items() if not key.startswith("seconds")}
    return value


def files_of(folder: Path) -> dict[str, Any]:
    """Return what every file below a folder holds, hidden ones included; of a store, its bytes."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.suffix == ".h5" else read_whole(path) for path in paths
    }


def index_of(folder: Path) -> dict[str, Any]:
    """Return what an index holds, and the names of its files but for their generation, which counts attempts."""
    index = Index.open(folder / "index")
    names = sorted(path.name.replace(f"{index.meta.generation:06}", "N") for path in index.folder.iterdir())
    rows = [(index.ids[i], index.paths[i], index.thumbnail(i)) for i in range(len(index))]
    columns = [index.embeddings.tobytes(), index.caption_embeddings.tobytes(), list(index.captions)]
    return {"names": names, "rows": rows, "columns": columns, "digests": index.rows["digest"].tobytes()}
