"""Fine-tuning: what a run takes over from the run that it begins with.

Its weights, and its words: the vocabulary is that of both datasets. A word that the first run knew keeps its row, one
that only the new dataset holds gets a row as in any new model.
"""

from pathlib import Path

import safetensors.torch
import torch

from features.text.vocabulary import Vocabulary, WordIndex
from model import WORD_ROWS, TwoBranch
from settings import CLOSED_FORMS, Settings
from training.embed import new_model
from training.run import MODEL, VOCABULARY, Run, RunInfo, encoding_settings, find_runs
from utils import BadInput

UNTRAINABLE = ("asif", "none")  # values of loss.name whose branches no gradient goes through
SCALARS = {"log_scale", "score_bias"}  # of contrastive losses, which another loss need not have


def open_start(name: str, runs: Path) -> Run:
    """Open the run that others begin with: a folder, a name under `runs`, or a pattern. Raises BadInput for several."""
    folders = list(find_runs([name], runs))
    if len(folders) > 1:
        raise BadInput(f"`from` {name}: stands for {len(folders)} runs, such as {folders[0]}; name one of them")
    return Run.open(folders[0])


def check_start(start: Run, settings: Settings, info: RunInfo) -> None:
    """Raise BadInput unless a run of these settings, features and text encoder can begin with `start`."""
    if settings.loss.name in CLOSED_FORMS:
        raise BadInput(
            f"`from` {start.folder}: {settings.loss.name} is fitted in closed form and begins with nothing; choose a "
            f"loss with `loss.name`"
        )
    if start.settings.loss.name in UNTRAINABLE:
        raise BadInput(
            f"`from` {start.folder}: {start.settings.loss.name} has no weights to go on from; name a run of another "
            f"loss"
        )
    if (info.features, info.digests) != (start.info.features, start.info.digests):
        raise BadInput(
            f"`from` {start.folder}: knows features of the weights of its backbones ({' '.join(start.info.features)}); "
            f"prepare and name these with `features`, in this order"
        )
    if info.encoder_digest != start.info.encoder_digest:
        raise BadInput(
            f"`from` {start.folder}: has another text encoder ({start.settings.text.encoder or 'none'}) than "
            f"text.encoder = {settings.text.encoder!r}; name the same one, of the same weights, with `text.encoder`"
        )
    theirs, ours = (encoding_settings(s.text) for s in (start.settings, settings))
    for name in ("stem", "encoder_pooling", "finetune"):
        if theirs[name] != ours[name]:
            raise BadInput(
                f"`from` {start.folder}: has text.{name} = {theirs[name]!r} and not {ours[name]!r}; take that, or "
                f"leave the recipe out, for all settings of the run"
            )
    check_weights(start, settings, info)


def check_weights(start: Run, settings: Settings, info: RunInfo) -> None:
    """Raise BadInput unless the weights of `start` have the shapes of those of a run of these settings."""
    state = new_model(settings, info, start.vocabulary).state_dict()
    weights = start.model.state_dict()
    for name in sorted((state.keys() | weights.keys()) - SCALARS):
        shapes = [tuple(each[name].shape) if name in each else None for each in (state, weights)]
        ours, theirs = (shape[1:] if shape and of_words(name) else shape for shape in shapes)
        if ours != theirs:
            raise BadInput(
                f"`from` {start.folder}: its weights do not fit these settings ({name} is {shapes[1] or 'not there'} "
                f"and not {shapes[0] or 'there'}); leave the recipe out, for all settings of the run, or change them"
            )


def of_words(name: str) -> bool:
    """Return whether a weight has a row for each word."""
    return name.split(".")[-2:] in WORD_ROWS


def joint_vocabulary(info: RunInfo, vocabulary: Vocabulary) -> Vocabulary:
    """Return the words of the run that `info` says to begin with, and those of `vocabulary`; that alone for no such."""
    if not info.from_run:
        return vocabulary
    start = Vocabulary.load(Path(info.from_run) / VOCABULARY)
    if start.language != vocabulary.language:
        raise BadInput(
            f"`from` {info.from_run}: its stems are {start.language}, and those of {info.data} {vocabulary.language}; "
            f"prepare that with the same `language`"
        )
    return start.union(vocabulary)


def carry_weights(info: RunInfo, settings: Settings, vocabulary: Vocabulary, model: TwoBranch) -> None:
    """Put the weights of the run that `info` says to begin with into a new model of `vocabulary`.

    The plan has seen to it that they fit (`check_start`). Raises BadInput if that run has changed since.
    """
    start = Run.open(Path(info.from_run))
    if start.digest() != info.from_digest:
        raise BadInput(f"`from` {start.folder}: has changed since this run was begun; start over with `fresh`")
    weights = safetensors.torch.load_file(start.folder / MODEL)
    index, known = (
        WordIndex(v, s.text.stem, s.text.min_count)
        for v, s in ((vocabulary, settings), (Vocabulary.load(start.folder / VOCABULARY), start.settings))
    )
    old = {word: row for row, word in enumerate(known.words)}
    rows = torch.tensor([(row, old[word]) for row, word in enumerate(index.words) if word in old])
    state = model.state_dict()
    for name in state.keys() - SCALARS:
        if of_words(name):
            state[name][rows[:, 0]] = weights[name][rows[:, 1]].to(state[name])
        else:
            state[name].copy_(weights[name])
    for name in SCALARS & state.keys() & weights.keys():
        state[name].copy_(weights[name])
