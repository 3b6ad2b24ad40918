"""Models of somebody else, as far as a table needs them: their scores, their embeddings, or their TREC runs."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.arrays import LARGEST, ArrayFile, looked_up, numbered, open_array, read_embeddings
from evaluation.gallery import Gallery
from evaluation.groups import Group
from evaluation.pairs import Pairs, Side, gallery_of
from evaluation.ranking import Ranked
from evaluation.trec import Judged, direction_of, read_run, rows_by_id, run_scores, without_direction
from metrics.correction import fixed_parameters
from metrics.ranks import DIRECTIONS, TITLES
from training.bank import BANKS, RunBank
from utils import BadInput

ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".safetensors")
SPREAD_ROWS = 1000  # images and captions whose scores tell the spread of all


@dataclass(frozen=True)
class External:
    """A model whose files are open. arrays: its scores, or its embeddings of images and of captions; bank: embeddings
    of training data, the same way; runs: of TREC, in place of arrays; similarity: of embeddings.
    """

    name: str
    files: tuple[Path, ...]
    arrays: tuple[ArrayFile, ...] = ()
    bank: tuple[ArrayFile, ...] = ()
    runs: tuple[Judged, ...] = ()
    similarity: str = "cosine"

    @property
    def group(self) -> Group:
        """Return its row. A TREC run lacks the scores that would tell how to correct it, scores lack those of images
        with images.
        """
        banks = ("train", "test") if self.bank else ("test",) if self.arrays else ()
        excluded = ("db_norm",) if len(self.arrays) == 1 else ()
        return Group(self.name, None, None, (Path(self.name),), (), files=self.files, banks=banks, excluded=excluded)

    def side(self, kind: str) -> Side:
        """Return which images or captions it has rows of."""
        if not self.arrays:
            return Side(kind, None)
        first, *others = self.arrays
        if not others:
            return Side(kind, first.shape[kind == "captions"], first.ids.get(kind))
        file = first if kind == "images" else others[0]
        return Side(kind, file.shape[0], file.ids.get(kind))

    def ranked(self, gallery: Gallery, corrected: bool) -> Ranked:
        """Return what is ranked of it, its rows in the order of the gallery. corrected: whether a bank is needed.

        Raises BadInput if it has rows of something else, or a value that is not finite.
        """
        if self.runs:
            return self._of_runs(gallery)
        image_rows, caption_rows = (
            torch.from_numpy(_rows(file, self.side(kind), gallery))
            for file, kind in zip((self.files[0], self.files[-1]), ("images", "captions"), strict=True)
        )
        if len(self.arrays) == 1:
            for _ in self.arrays[0].blocks("scores"):
                pass  # each of them is checked
            scores = dict.fromkeys(DIRECTIONS, looked_up(self.arrays[0].taken))
            ranked = Ranked("cosine", image_rows[:, None].double(), caption_rows[:, None].double(), scores=scores)
        else:
            images, captions = self._embeddings(self.arrays)
            similarity = "order" if self.similarity == "order" else "cosine"  # of rows as they are: the dot product
            ranked = Ranked(similarity, images[image_rows], captions[caption_rows])
        return replace(ranked, bank=self._bank(ranked)) if corrected else ranked

    def _embeddings(self, files: Sequence[ArrayFile]) -> tuple[Tensor, Tensor]:
        images, captions = files
        if images.shape[1] != captions.shape[1]:
            raise BadInput(
                f"{images.path}: has {images.shape[1]:,} dimensions and {captions.path} {captions.shape[1]:,}; images "
                f"and captions are compared in one space, so take both from the same model"
            )
        read = partial(read_embeddings, similarity=self.similarity)
        sides = read(images, "images"), read(captions, "captions")
        largest = math.prod(float(torch.linalg.vector_norm(side, dim=1, dtype=torch.float64).max()) for side in sides)
        if largest > LARGEST:  # of rows that are as they are, for the dot product
            raise BadInput(
                f"{images.path}: has dot products with {captions.path} of up to {largest:.0e}, beyond float32, in "
                f"which they are compared; divide all rows of both by one number"
            )
        return sides

    def _of_runs(self, gallery: Gallery) -> Ranked:
        by_direction = {direction_of(run, gallery.images, gallery.caption_ids): run for run in self.runs}
        lacking = [direction for direction in DIRECTIONS if direction not in by_direction]
        if lacking or len(self.runs) > len(DIRECTIONS):
            raise BadInput(
                f"{self.files[0]}: a row is one TREC run of each direction, and {self.name} has {len(self.runs)}, with "
                f"{' and '.join(TITLES[way] for way in by_direction)}; give both, as {self.name}=FILE if names differ"
            )
        scores = {way: looked_up(run_scores(run, way, gallery)) for way, run in by_direction.items()}
        return Ranked("cosine", numbered(len(gallery.images)), numbered(len(gallery.captions)), scores=scores)

    def _bank(self, ranked: Ranked) -> RunBank:
        """Return what corrects it, with parameters that the spread of its scores gives, not its figures."""
        measured = ranked.images, ranked.captions
        images, captions = self._embeddings(self.bank) if self.bank else (side[:0] for side in measured)
        for file, side, rows in zip(self.bank, (images, captions), measured, strict=False):
            _check_bank(file.path, side, rows)
        few = [side[np.unique(np.linspace(0, len(side) - 1, SPREAD_ROWS).astype(int))] for side in measured]
        scores = ranked.scorer(DIRECTIONS[0])(few[0], few[1]).double()
        if scores.numel() == 1:
            raise BadInput(
                f"{self.files[0]}: scores one image with one caption, which has no hubs to correct; leave `correction` "
                f"out"
            )
        spread = float(scores.std())
        chosen = {bank: dict.fromkeys(DIRECTIONS, fixed_parameters(spread)) for bank in BANKS}
        none = np.empty(0, np.int64)
        return RunBank(images.numpy(), captions.numpy(), none, none, chosen, None)


def _check_bank(path: Path, bank: Tensor, measured: Tensor) -> None:
    """Raise BadInput if a bank is of another space, or holds a row that is measured."""
    if bank.shape[1] != measured.shape[1]:
        raise BadInput(
            f"{path}: has {bank.shape[1]:,} dimensions where what it shall correct has {measured.shape[1]:,}; take the "
            f"bank from the same model"
        )
    known = {hash(row.tobytes()) for row in measured.numpy()}
    same = next((number for number, row in enumerate(bank.numpy()) if hash(row.tobytes()) in known), None)
    if same is not None:
        raise BadInput(
            f"{path}: its row {same} is one of those that are measured: no correction by it is inductive; leave such "
            f"rows out, or correct by the queries themselves with `bank` test"
        )


def _rows(file: Path, side: Side, gallery: Gallery) -> np.ndarray:
    """Return the row of the model for each image, or caption, of the gallery. Raises BadInput if it has others."""
    names = gallery.images if side.kind == "images" else gallery.caption_ids
    if side.count != len(names):
        other = len(gallery.captions if side.kind == "images" else gallery.images)
        hint = "; give the rows of this gallery, in its order"
        if side.count == other:
            hint = ": have they changed sides (rows of scores are images), or images been repeated for each caption?"
        raise BadInput(f"{file}: has {side.count:,} {side.kind} where {gallery.size} are ranked{hint}")
    if side.ids is None:
        return np.arange(len(names))
    row_of = {name: row for row, name in enumerate(side.ids)}
    lost = next((name for name in names if name not in row_of), None)
    if lost is not None:
        raise BadInput(
            f"{file}: has no row for {lost} of {gallery.dataset}; give it, or leave the ids of {side.kind} out"
        )
    return np.array([row_of[name] for name in names])


def open_externals(
    scores: Sequence[str], embeddings: Sequence[Sequence[str]], banks: Sequence[Sequence[Path]], similarity: str
) -> list[External]:
    """Open the files of models, each `FILE` or `NAME=FILE`. Raises BadInput if one is not what it should be.

    scores: a file each, or two TREC runs of one name; embeddings: those of images and those of captions; banks:
    embeddings of training data, in the order of `embeddings`.
    """
    if banks and len(banks) != len(embeddings):
        raise BadInput(
            f"`bank_embeddings`: {len(banks)} are given for {len(embeddings)} `embeddings`; give as many, in that order"
        )
    models: dict[str, External] = {}

    def add(model: External) -> None:
        known = models.get(model.name)
        if known and known.runs and model.runs:  # the other direction
            model = External(model.name, known.files + model.files, runs=known.runs + model.runs)
        elif known:
            raise BadInput(
                f"{model.files[0]}: would be called {model.name}, as {known.files[0]} is; name one of them NAME=FILE"
            )
        models[model.name] = model

    for text in scores:
        name, path = _named(text)
        if path.suffix.casefold() in ARRAYS:
            add(External(name or path.stem, (path,), (open_array(path, "scores"),)))
        else:
            add(External(name or without_direction(path), (path,), runs=(read_run(path),)))
    for number, (first, second) in enumerate(embeddings):
        name, path = _named(first)
        files = path, Path(second)
        arrays = tuple(open_array(file, kind) for file, kind in zip(files, ("images", "captions"), strict=True))
        kept = banks[number] if banks else ()
        bank = tuple(open_array(file, kind) for file, kind in zip(kept, ("images", "captions"), strict=False))
        add(External(name or _common_name(files), files, arrays, bank, similarity=similarity))
    return list(models.values())


def _named(text: str) -> tuple[str, Path]:
    """Return the name and the path of `NAME=FILE`, or no name where the whole is a file."""
    name, sign, path = text.partition("=")
    return ("", Path(text)) if not sign or Path(text).exists() else (name.strip(), Path(path))


def _common_name(files: Sequence[Path]) -> str:
    """Return what the names of two files have in common, or that of the folder they are given with, or both names.

    >>> _common_name([Path("out/clip_images.npy"), Path("out/clip_captions.npy")])
    'clip'
    >>> _common_name([Path("siglip/images.npy"), Path("siglip/captions.npy")])
    'siglip'
    >>> _common_name([Path("im.npy"), Path("cap.npy")])
    'im.npy, cap.npy'
    """
    common = os.path.commonprefix([file.stem for file in files]).strip("_-. ")
    return common or files[0].parent.name or ", ".join(file.name for file in files)


def gallery_of_externals(models: Sequence[External], pairs: Pairs, split: str) -> Gallery:
    """Return the gallery that pairs make of the rows that models have; TREC runs alone may bring more documents."""
    counted = [model for model in models if model.arrays]

    def side(kind: str) -> Side:
        sides = [model.side(kind) for model in counted]
        return next((one for one in sides if one.ids), sides[0]) if sides else Side(kind, None)

    gallery = gallery_of(pairs, split, side("images"), side("captions"))
    if counted:
        return gallery
    more: dict[str, list[str]] = {"images": [], "captions": []}
    known = {"images": rows_by_id(gallery.images), "captions": rows_by_id(gallery.caption_ids)}
    for model in models:
        for run in model.runs:
            forward = direction_of(run, gallery.images, gallery.caption_ids) == "image_to_text"
            for kind, names in zip(
                ("images", "captions"), (run.topics, run.documents)[:: 1 if forward else -1], strict=True
            ):
                more[kind] += [name for name in names if name not in known[kind]]
    return gallery.with_more(more["images"], more["captions"])
