"""Many runs on one reading of the data: one after the other, or several side by side; a stopped one continues."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, cast

import torch

from features.blocks import clear, refuse_link
from features.distributed import from_first, joined, rank, size
from features.prepared import Prepared, Split, newest_prepared
from features.progress import duration, progress_bar
from features.text.sentences import TextProcessor
from features.text.vocabulary import Sentences, Vocabulary
from reading import read_jsonl
from settings import CLOSED_FORMS, override, read_recipe
from training import closed_form
from training.distributed import check_together, resume
from training.events import EventWriter, check_tensorboard
from training.plan import parse_changes, plan_run
from training.run import (
    AGAIN,
    LAST,
    LOG,
    RECIPE,
    RESULT,
    RunPlan,
    check_same,
    create_run,
    encoding_settings,
    read_result,
)
from training.schedule import epochs_of, using_threads
from training.start import joint_vocabulary, open_start
from training.trainer import OnEpoch, Trainer, TrainingData
from utils import BadInput, lock_folder, log, make_folder, refused, warn

MAX_THREADS = 1024  # of a run: what is more is a slip, and far more is no number that torch takes


def train_recipes(  # noqa: PLR0913 (a command's options, keyword-only)
    recipes: Sequence[str],
    *,
    data: Path | None = None,
    features: Sequence[Sequence[str]] = (),
    from_run: str | None = None,
    runs: Path = Path("runs"),
    seeds: Sequence[int] = (0,),
    changes: Sequence[str] = (),
    jobs: int = 1,
    threads: int | None = None,
    tensorboard: Path | None = None,
    fresh: bool = False,
) -> list[Path]:
    """Train every recipe with every seed, set of features and combination of "key=value,value" `changes`.

    data: a prepared folder, the newest under data/ by default. features: names, those of a set joined; by default what
    the recipe names, or else the newest. from_run: a run, a folder or its name under `runs`, whose weights and words
    they begin with; its features are then the default, and its recipe where none is named. jobs: runs side by side.
    threads, tensorboard: of each run, see `train`. Return the folders, below `runs`. Raises BadInput.

    Several processes (torchrun) share the batches of each run.

    >>> train_recipes(["vse0", "vsepp"], seeds=[0, 1, 2], changes=["loss.margin=0.1,0.2"])  # doctest: +SKIP
    """
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise BadInput(f"`seeds` {seed}: a seed is a whole number from 0 to {2**32 - 1}")
    if jobs < 1:
        raise BadInput(f"`jobs` {jobs}: one run at a time at least")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise BadInput(f"`threads` {threads}: takes a number from 1 to {MAX_THREADS:,}")
    if tensorboard:
        check_tensorboard()
    if jobs > 1:
        torch.set_num_threads(1)  # threads of torch do not survive the fork of a process
    read = {name: read_recipe(name) for name in recipes}  # before anything slow
    combinations = parse_changes(list(changes))
    start = open_start(from_run, runs) if from_run else None
    if start and not read:
        read = {start.info.recipe: start.settings}
    variants = [(Path(name).stem, override(recipe, change)) for name, recipe in read.items() for change in combinations]
    prepared = Prepared(data or newest_prepared(Path("data")))
    make_folder(runs, "runs")
    captions = prepared.digest()
    plans = [
        plan_run(prepared, settings, recipe=name, features=names, seed=seed, root=runs, captions=captions, start=start)
        for names in features or [[]]
        for name, settings in variants
        for seed in seeds
    ]
    unique = {plan.folder: plan for plan in plans}  # two ways of saying the same settings are one run
    with joined():
        check_together(list(unique.values()), jobs)
        sweep(list(unique.values()), prepared, fresh, jobs, threads=threads, tensorboard=tensorboard)
    return list(unique)


def results_of(folders: Sequence[Path]) -> list[str]:
    """Return a line for each finished run: its name, and its rsum on val."""
    results = [(folder.name, read_result(folder)) for folder in folders]
    return [f"{name}: val rsum {r['rsum']:.1f} (epoch {r['best_epoch']} of {r['epochs']})" for name, r in results]


@dataclass
class SplitCache:
    """Features and encoded captions, read once for all the runs that want the same; features of one kind are held."""

    data: Prepared
    splits: dict[tuple, dict[str, Split]] = field(default_factory=dict)
    sentences: dict[tuple, dict[str, Sentences]] = field(default_factory=dict)
    vocabularies: dict[tuple, Vocabulary] = field(default_factory=dict)  # with the bigrams of `sentences`, if any

    @staticmethod
    def key(plan: RunPlan) -> tuple:
        """Return what two runs must share to read the same features."""
        return plan.info.features, plan.settings.image.normalize

    def read(self, plan: RunPlan) -> TrainingData:
        """Read what a run trains on, or return what was read before."""
        key = self.key(plan)
        if key not in self.splits:
            self.splits.clear()  # before others are read: two kinds might not fit
            self.splits[key] = {name: self.data.split(name, *key) for name in ("train", "val")}
        encoding, text = encoding_settings(plan.settings.text), plan.settings.text
        text_key = (*encoding.values(), text.bigrams, plan.info.from_digest)
        if text_key not in self.sentences:
            captions = self.splits[key]["train"].captions
            vocabulary = self.data.vocabulary.with_bigrams(captions, text.stem, text.bigrams)
            vocabulary = joint_vocabulary(plan.info, vocabulary)
            processor = TextProcessor(vocabulary, **encoding)
            self.vocabularies[text_key] = vocabulary
            self.sentences[text_key] = {name: self._encode(processor, s) for name, s in self.splits[key].items()}
        return TrainingData(self.vocabularies[text_key], self.splits[key], self.sentences[text_key])

    def _encode(self, processor: TextProcessor, split: Split) -> Sentences:
        features = None
        if processor.encoder and not processor.finetune:
            features = self.data.sentence_features(split.name, processor.encoder, processor.encoder_pooling)
        return processor.encode(split.captions, features, progress=True)


def sweep(
    plans: Sequence[RunPlan],
    data: Prepared,
    fresh: bool = False,
    jobs: int = 1,
    **how: Any,
) -> None:
    """Train every run that is not finished, `jobs` at a time, each in a process of its own if more than one.

    Processes share the memory of what was read and the processor's cores. A run that cannot be trained does not keep
    the others from it, unless several processes train it. how: more for `train`. Raises BadInput that names those that
    could not be.
    """

    def unfinished_ones() -> list[int]:
        numbers = []
        for number, plan in enumerate(plans):
            if fresh or not (plan.folder / RESULT).is_file():
                numbers.append(number)
            else:
                check_same(plan)
                write_finished(plan, how.get("tensorboard"))
        return numbers

    unfinished = [plans[number] for number in from_first(unfinished_ones)]
    if len(plans) > len(unfinished):
        log(f"{len(plans) - len(unfinished)} of {len(plans)} runs finished")
    keys = list(dict.fromkeys(map(SplitCache.key, unfinished)))
    unfinished.sort(key=lambda plan: keys.index(SplitCache.key(plan)))  # those that read the same come together
    failed: dict[Path, BadInput] = {}
    with closing(Sweep(unfinished, SplitCache(data), partial(train, fresh=fresh, **how), jobs)) as runs:
        for plan, error in runs.in_turn() if jobs == 1 else runs.in_processes():
            failed[plan.folder] = error
            if len(plans) > 1:
                warn(f"{plan.folder.name}: {error}")
    if len(failed) == len(plans) and len(set(map(str, failed.values()))) == 1:
        raise next(iter(failed.values()))
    if failed:
        reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in failed.items())
        others = ", all others are finished" if len(failed) < len(plans) else ""
        raise BadInput(f"{len(failed)} of {len(plans)} runs could not be trained{others}: {reasons}")


def train(
    plan: RunPlan,
    data: TrainingData,
    fresh: bool = False,
    on_epoch: OnEpoch = lambda *said: None,
    progress: bool = True,
    threads: int | None = None,
    tensorboard: Path | None = None,
) -> dict[str, Any]:
    """Train one run into its folder, from its last checkpoint if there is one; a finished run is left as it is.

    fresh: start over. progress: show a bar over the batches of an epoch. threads: of the processor; by default those
    that it was trained with until now, or else torch's. Sums come out alike to the bit for like threads alone, so that
    log.jsonl says of every epoch how many there were. tensorboard: a folder for the event files of runs. Return the
    content of result.json. Raises BadInput if the folder holds a run of other features.
    """
    folder = plan.folder
    lock = nullcontext() if rank() else lock_folder(make_folder(folder, "runs"))
    with lock, using_threads(threads):
        begun = from_first(lambda: take_up(plan, fresh))
        if begun == RESULT:
            return read_result(folder)
        with EventWriter(None if rank() else tensorboard, plan) as events:

            def hear(epochs: int, line: str, *warning: bool) -> None:
                events.update(trainer.log)
                on_epoch(epochs, line, *warning)

            trainer = Trainer(plan, data, hear, progress)
            if not begun and rank() == 0:  # only now: with what does not fit no run begins
                create_run(plan, data.vocabulary)
            if trainer.log:
                hear(len(trainer.log), f"{folder.name}: continues after {resume(trainer.log, threads)}")
            if plan.settings.loss.name in CLOSED_FORMS:
                closed_form.fit(trainer)
            else:
                trainer.fit()
            result = from_first(lambda: read_result(folder))
            events.finish(result)
            return result


def take_up(plan: RunPlan, fresh: bool) -> str:
    """Return RESULT for a finished run, RECIPE for one that was begun, else ""; fresh: throw away either first.

    Raises BadInput if the folder holds a run of other features.
    """
    if fresh:
        refuse_link(plan.folder)
        for name in (RESULT, LAST):  # first, so that what a kill leaves is neither finished nor continued
            (plan.folder / name).unlink(missing_ok=True)
        clear(plan.folder)
    if not (plan.folder / RECIPE).is_file():
        return ""
    check_same(plan)
    return RESULT if (plan.folder / RESULT).is_file() else RECIPE


def write_finished(plan: RunPlan, tensorboard: Path | None) -> None:
    """Write the event file of a finished run, where one is wanted."""
    if tensorboard:
        with EventWriter(tensorboard, plan) as events:
            events.update(read_jsonl(plan.folder / LOG, AGAIN))
            events.finish(read_result(plan.folder))


class Sweep:
    """Runs in training, `jobs` at a time, what they read, and a bar over the epochs of all of them if they are several.

    left: epochs of the runs that are not over, by folder. trained: epochs trained since `began`, monotonic seconds.
    """

    def __init__(self, plans: Sequence[RunPlan], cache: SplitCache, train: Callable[..., Any], jobs: int = 1):
        self.plans, self.cache, self.train, self.jobs = plans, cache, train, jobs
        self.left = {plan.folder: epochs_of(plan.settings) for plan in plans}
        self.heard: set[Path] = set()
        self.trained, self.began = 0, time.monotonic()
        name, total = f"all {len(plans)} runs", sum(self.left.values())
        self.bar = progress_bar(name=name, line=False, total=total, unit=" epochs", disable=len(plans) < 2, position=0)

    def close(self) -> None:
        self.bar.close()

    def on_epoch(self, plan: RunPlan, epochs: int, line: str, warning: bool = False, /) -> None:
        """Show that a run has `epochs` epochs behind it."""
        (warn if warning else log)(line)
        left = max(0, epochs_of(plan.settings) - epochs)  # a run that began anew has more
        done = self.left[plan.folder] - left
        self.bar.update(done)
        # what a run that continues says first are epochs of earlier
        self.trained += done if plan.folder in self.heard else min(done, 1)
        self.heard.add(plan.folder)
        self.left[plan.folder] = left

    def on_end(self, plan: RunPlan) -> None:
        """Show that a run is over, the epochs that patience saved included, and what is left."""
        self.bar.update(self.left.pop(plan.folder))
        if self.left:
            log(f"{len(self.left)} of {len(self.plans)} runs left{self.time_left(time.monotonic() - self.began)}")

    def time_left(self, seconds: float) -> str:
        """Return about how long the runs that are left take, where so many seconds went by; "" before the first epoch.

        An epoch of them takes as long as one did until now, `jobs` of them at a time, and those of a run in turn.
        """
        if not self.trained:
            return ""
        jobs = min(self.jobs, len(self.plans))
        in_turn = max(sum(self.left.values()) / jobs, *self.left.values())
        return f", about {duration(in_turn * seconds * jobs / self.trained)}"

    def in_turn(self) -> Iterator[tuple[RunPlan, BadInput]]:
        """Train one after the other in this process; yield the runs that could not be trained, and why."""
        for plan in self.plans:
            try:
                self.train(plan, self.cache.read(plan), on_epoch=partial(self.on_epoch, plan))
            except BadInput as error:
                if size() > 1:  # the others may not have met it
                    raise
                yield plan, error
            self.on_end(plan)

    def in_processes(self) -> Iterator[tuple[RunPlan, BadInput]]:
        """As `in_turn`, but up to `jobs` at a time. The processes are forked: they share what was read.

        A process keeps what it was forked with: up to `jobs` sets of features are in memory where one follows another.
        """
        jobs = self.jobs
        if not hasattr(os, "fork"):
            raise BadInput(f"`jobs` {jobs}: this system cannot fork a process; leave `jobs` out")
        waiting = list(reversed(self.plans))
        running: dict[Connection, tuple[RunPlan, ForkProcess]] = {}  # by the pipe that each process speaks through
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    plan = waiting.pop()
                    try:
                        data = self.cache.read(plan)  # before the fork, so that the processes share it
                    except BadInput as error:
                        yield plan, error
                        self.on_end(plan)
                    else:
                        pipe, process = fork(plan, data, self.train, jobs)
                        running[pipe] = plan, process
                for pipe in cast(list[Connection], wait(list(running)) if running else []):
                    yield from self.hear(pipe, running)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join()

    def hear(
        self, pipe: Connection, running: dict[Connection, tuple[RunPlan, ForkProcess]]
    ) -> Iterator[tuple[RunPlan, BadInput]]:
        """Take in what a process says; yield its run if it could not be trained, and why."""
        plan, process = running[pipe]
        try:
            epochs, line, *warning = pipe.recv()
        except EOFError:
            process.join()
            del running[pipe]
            if process.exitcode:
                yield plan, BadInput(reason_of(process.exitcode))
            self.on_end(plan)
        else:
            if epochs is None:
                yield plan, BadInput(line)
            else:
                self.on_epoch(plan, epochs, line, *warning)


def fork(plan: RunPlan, data: TrainingData, train: Callable[..., Any], jobs: int) -> tuple[Connection, ForkProcess]:
    """Train a run in a process of its own; return it, and the pipe on which it says what OnEpoch hears, or (None,
    reason)."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_train_forked, args=(plan, data, train, theirs, jobs))
    process.start()
    theirs.close()
    return ours, process


def _train_forked(plan: RunPlan, data: TrainingData, train: Callable[..., Any], parent: Connection, jobs: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    try:
        train(plan, data, on_epoch=lambda *said: parent.send(said), progress=False)
    except (BadInput, OSError) as error:
        parent.send((None, refused(error) if isinstance(error, OSError) else str(error)))


def _end_with(parent: int) -> None:
    """A process whose parent was killed must not go on writing into a folder that a repeated command continues."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def reason_of(status: int) -> str:
    """Return why a process ended with this status."""
    if status == -signal.SIGKILL:
        return "the run's process was killed, probably for want of memory; repeat the command with fewer `jobs`"
    return f"the run's process ended with status {status}; the lines above say why; repeat the command without `jobs`"
