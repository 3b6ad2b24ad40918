"""Many runs on one reading of the data: one after the other, or several side by side; a stopped one continues."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from features.prepared import Prepared, Split
from features.text.sentences import TextProcessor
from features.text.vocabulary import Sentences
from settings import Settings, TextSettings
from training.run import RESULT, RunInfo
from training.trainer import check_same, epochs_of, train
from utils import BadInput


@dataclass(frozen=True)
class Job:
    """A run to be trained."""

    folder: Path
    settings: Settings
    info: RunInfo


class Inputs:
    """Features and encoded captions, read once for all the runs that want the same; features of one kind are held."""

    def __init__(self, data: Prepared):
        self.data = data
        self.splits: dict[tuple, dict[str, Split]] = {}
        self.sentences: dict[TextSettings, dict[str, Sentences]] = {}

    @staticmethod
    def key(job: Job) -> tuple:
        """What two runs must share to read the same features."""
        return job.info.features, job.settings.image.normalize

    def of(self, job: Job) -> tuple[dict[str, Split], dict[str, Sentences]]:
        key = self.key(job)
        if key not in self.splits:
            self.splits.clear()  # before others are read: two kinds might not fit
            self.splits[key] = {s: self.data.split(s, *key) for s in ("train", "val")}
        splits = self.splits[key]
        text = encoding_settings(job.settings.text)
        if text not in self.sentences:
            reader = TextProcessor(self.data.vocabulary, text)
            self.sentences[text] = {name: self._read(reader, split) for name, split in splits.items()}
        return splits, self.sentences[text]

    def _read(self, reader: TextProcessor, split: Split) -> Sentences:
        text, features = reader.text, None
        if text.encoder and not text.finetune:
            features = self.data.sentence_features(split.name, text.encoder, text.encoder_pooling)
        return reader.read(split.captions, features, progress=True)


def encoding_settings(text: TextSettings) -> TextSettings:
    """The settings of a text branch that decide what it takes, the others as they are by default."""
    names = ("stem", "min_count", "encoder", "encoder_pooling", "finetune")
    return TextSettings(**{name: getattr(text, name) for name in names})


def sweep(jobs: Sequence[Job], data: Prepared, fresh: bool = False, side_by_side: int = 1) -> None:
    """Train every job that is not finished, `side_by_side` at a time, each in a process of its own if more than one.

    Processes share the memory of what was read and the processor's cores. A run that cannot be trained does not keep
    the others from it. Raises BadInput that names those that could not be.
    """
    todo = []
    for job in jobs:
        if (job.folder / RESULT).is_file() and not fresh:
            check_same(job.folder, job.settings, job.info)
        else:
            todo.append(job)
    if len(jobs) > len(todo):
        tqdm.write(f"{len(jobs) - len(todo)} of {len(jobs)} runs finished", file=sys.stderr)
    failed: dict[Path, str] = {}
    inputs = Inputs(data)
    train_all = one_after_the_other if side_by_side == 1 else each_in_a_process(side_by_side)
    with Progress(todo) as progress:
        for job, reason in train_all(in_order(todo), inputs, fresh, progress):
            failed[job.folder] = reason
            tqdm.write(f"{job.folder.name}: {reason}", file=sys.stderr)
    if len(failed) == len(jobs) and len(set(failed.values())) == 1:
        raise BadInput(next(iter(failed.values())))
    if failed:
        reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in failed.items())
        others = ", all others are finished" if len(failed) < len(jobs) else ""
        raise BadInput(f"{len(failed)} of {len(jobs)} runs could not be trained{others}: {reasons}")


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that read the same features come together; otherwise the order in which they were asked for stays."""
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        groups.setdefault(Inputs.key(job), []).append(job)
    return [job for group in groups.values() for job in group]


class Progress:
    """A bar over the epochs of all runs, where there are several, and what runs have to say above it."""

    def __init__(self, jobs: Sequence[Job]):
        self.left = {job.folder: epochs_of(job.settings) for job in jobs}
        self.runs = len(jobs)

    def __enter__(self) -> "Progress":
        name, total = f"all {self.runs} runs", sum(self.left.values())
        self.bar = tqdm(total=total, desc=name, unit=" epochs", disable=self.runs < 2, position=0)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def told(self, job: Job, epochs: int, line: str) -> None:
        """`job` has `epochs` epochs behind it."""
        tqdm.write(line, file=sys.stderr)
        left = epochs_of(job.settings) - epochs
        self.bar.update(self.left[job.folder] - left)
        self.left[job.folder] = left

    def over(self, job: Job) -> None:
        self.bar.update(self.left.pop(job.folder))  # the epochs that patience saved


def one_after_the_other(
    jobs: Sequence[Job], inputs: Inputs, fresh: bool, progress: Progress
) -> Iterator[tuple[Job, str]]:
    """Train them in this process; yields the jobs that could not be trained, and why."""
    for job in jobs:

        def told(epochs: int, line: str, job: Job = job) -> None:
            progress.told(job, epochs, line)

        try:
            splits, sentences = inputs.of(job)
            train(job.folder, job.settings, job.info, inputs.data.vocabulary, splits, sentences, fresh, told)
        except BadInput as error:
            yield job, str(error)
        progress.over(job)


def each_in_a_process(most: int) -> Callable[..., Iterator[tuple[Job, str]]]:
    """As one_after_the_other, but up to `most` at a time. The processes are forked: they share what was read.

    A process keeps what it was forked with: up to `most` sets of features are in memory where one follows another.
    """
    if not hasattr(os, "fork"):
        raise BadInput(f"--jobs {most}: this system cannot fork a process; leave --jobs out")
    context = multiprocessing.get_context("fork")

    def train_all(jobs: Sequence[Job], inputs: Inputs, fresh: bool, progress: Progress) -> Iterator[tuple[Job, str]]:
        waiting = list(reversed(jobs))
        running: dict[Any, tuple[Job, Any]] = {}  # by the connection that each process speaks through
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    job = waiting.pop()
                    try:
                        inputs.of(job)  # read here, so that the processes share it
                    except BadInput as error:
                        yield job, str(error)
                        progress.over(job)
                        continue
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=_child, args=(job, inputs, fresh, theirs, most))
                    process.start()
                    theirs.close()
                    running[ours] = (job, process)
                for connection in cast(list[Connection], wait(list(running)) if running else []):
                    job, process = running[connection]
                    try:
                        kind, *message = connection.recv()
                    except EOFError:
                        process.join()
                        del running[connection]
                        if process.exitcode:
                            yield job, _end_of(process.exitcode)
                        progress.over(job)
                    else:
                        if kind == "failed":
                            yield job, *message
                        else:
                            progress.told(job, *message)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join()

    return train_all


def _child(job: Job, inputs: Inputs, fresh: bool, parent: Connection, processes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    splits, sentences = inputs.of(job)

    def told(epochs: int, line: str) -> None:
        parent.send(("told", epochs, line))

    try:
        train(
            job.folder, job.settings, job.info, inputs.data.vocabulary, splits, sentences, fresh, told, progress=False
        )
    except BadInput as error:
        parent.send(("failed", str(error)))


def _end_with(parent: int) -> None:
    """A process whose parent was killed must not go on writing into a folder that a repeated command continues."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _end_of(status: int) -> str:
    if status == -signal.SIGKILL:
        return "the run's process was killed, probably for want of memory; repeat the command with fewer --jobs"
    return f"the run's process ended with status {status}; the lines above say why; repeat the command without --jobs"


def unique(jobs: Iterable[Job]) -> list[Job]:
    """Two ways of saying the same settings are one run."""
    return list({job.folder: job for job in jobs}.values())
