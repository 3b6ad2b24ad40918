"""TREC's files: a run (`topic Q0 document rank score tag`) and qrels (`topic 0 document relevance`), read and written.

A direction of retrieval is a run of its own: images ask for captions, or captions for images. A run lists the best
documents of a topic; whatever it leaves out scores below all of them, and what is equal counts against the model.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from evaluation.gallery import Gallery
from features.progress import progress_bar
from metrics.ranks import DIRECTIONS
from metrics.similarity import Scores
from reading import read_text
from utils import BadInput, atomic_write

DEPTH = 100  # documents that are written for a topic: five thousand captions are half a million lines
TOPICS_PER_BLOCK = 256
RUN, QRELS = "topic Q0 document rank score tag", "topic 0 document relevance"
AGAIN = "get the file again, or name another"
WAY = re.compile(r"[._-]?(image[_-]to[_-]text|text[_-]to[_-]image|i2t|t2i)", re.IGNORECASE)


@dataclass
class Ids:
    """Names in the order in which they come, each with its number."""

    number: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> int:
        return self.number.setdefault(name, len(self.number))


@dataclass(frozen=True)
class Judged:
    """Lines of a run or of qrels. topic, document: (P,) numbers of the names; value: (P,) scores or relevances."""

    path: Path
    topics: list[str]
    documents: list[str]
    topic: np.ndarray
    document: np.ndarray
    value: np.ndarray


def trec_id(name: str) -> str:
    """Return a name without the blanks that would end it.

    >>> trec_id("a dog.jpg#3")
    'a%20dog.jpg#3'
    """
    return re.sub(r"[%\s]", lambda sign: quote(sign[0]), name)


def rows_by_id(names: Iterable[str]) -> dict[str, int]:
    """Return the row of each name, as it is and as TREC's files have it."""
    names = list(names)
    return {name: row for known in (map(trec_id, names), names) for row, name in enumerate(known)}


def read_run(path: Path) -> Judged:
    """Read a run. Raises BadInput for a line that is none, a score that is not finite, and a document named twice."""
    return _read(path, "run", RUN, 4)


def read_qrels(path: Path) -> Judged:
    """Read qrels. Raises BadInput as `read_run` does."""
    return _read(path, "qrels", QRELS, 3)


def is_qrels(line: str) -> bool:
    """Return whether a line is one of qrels.

    >>> is_qrels("1 0 a.jpg 1"), is_qrels("image,caption")
    (True, False)
    """
    return bool(re.fullmatch(r"\S+\s+\S+\s+\S+\s+-?\d+\s*", line))


def _read(path: Path, kind: str, form: str, column: int) -> Judged:
    """column: where the value of a line stands."""
    topics, documents, width = Ids(), Ids(), len(form.split())
    topic, document, value = array("q"), array("q"), array("d")
    lines = read_text(path, AGAIN, f"TREC {kind}", encoding="utf-8-sig").split("\n")
    for number, line in enumerate(progress_bar(lines, f"read {path.name}", unit=" lines", leave=False, delay=2), 1):
        words = line.split()
        if not words:
            continue
        try:
            value.append(float(words[column]) if len(words) == width else np.nan)
        except ValueError:
            value.append(np.nan)
        if not np.isfinite(value[-1]):
            raise BadInput(f"{path}: line {number} is not {form!r} with a finite number; {AGAIN}")
        topic.append(topics.of(words[0]))
        document.append(documents.of(words[2]))
    if not value:
        raise BadInput(f"{path}: has no line; {AGAIN}")
    judged = Judged(path, list(topics.number), list(documents.number), *map(np.array, (topic, document, value)))
    pairs, counts = np.unique(judged.topic * len(judged.documents) + judged.document, return_counts=True)
    if (counts > 1).any():
        one, other = divmod(int(pairs[np.argmax(counts > 1)]), len(judged.documents))
        raise BadInput(f"{path}: topic {judged.topics[one]} names {judged.documents[other]} twice; {AGAIN}")
    return judged


def direction_of(run: Judged, images: Iterable[str], captions: Iterable[str]) -> str:
    """Return the direction of a run: by its ids, or where images and captions share those by its name.

    images, captions: the names that are known. Raises BadInput if it names none of them, and where its name tells no
    direction.
    """
    known = [set(rows_by_id(names)) for names in (images, captions)]
    asked, given = ([len(ids & set(names)) for ids in known] for names in (run.topics, run.documents))
    likely = {"image_to_text": asked[0] + given[1], "text_to_image": asked[1] + given[0]}
    if len(set(likely.values())) == 1:
        if any(likely.values()) and (direction := named_direction(run.path)):
            return direction
        raise BadInput(
            f"{run.path}: its topics are neither the images nor the captions that the pairs name; give its own pairs, "
            f"or write image_to_text or text_to_image into its name"
        )
    return max(likely, key=lambda direction: likely[direction])


def named_direction(path: Path) -> str | None:
    """Return the direction that a file's name tells, if it does.

    >>> named_direction(Path("clip.image_to_text.run")), named_direction(Path("t2i.qrels")), named_direction(Path("a"))
    ('image_to_text', 'text_to_image', None)
    """
    name = path.name.casefold().replace("-", "_")
    short = {"image_to_text": "i2t", "text_to_image": "t2i"}
    return next((direction for direction in DIRECTIONS if direction in name or short[direction] in name), None)


def without_direction(path: Path) -> str:
    """Return what a file is called besides its direction and its ending, or its folder, where that is all.

    >>> without_direction(Path("clip.image_to_text.run")), without_direction(Path("/coco/t2i.qrels"))
    ('clip', 'coco')
    """
    return WAY.sub("", path.stem) or path.absolute().parent.name


def run_scores(run: Judged, direction: str, gallery: Gallery) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return what gives the scores (r, c) of images (r,) with captions (c,), -inf where the run lists none.

    Raises BadInput if the run names what is not in the gallery.
    """
    sides = [run.topics, run.documents] if direction == "image_to_text" else [run.documents, run.topics]
    numbers = [run.topic, run.document] if direction == "image_to_text" else [run.document, run.topic]
    rows = []
    for kind, names, known, number in zip(
        ("image", "caption"), sides, (gallery.images, gallery.caption_ids), numbers, strict=True
    ):
        row_of = rows_by_id(known)
        lost = next((name for name in names if name not in row_of), None)
        if lost is not None:
            raise BadInput(f"{run.path}: {lost} is no {kind} of those that are ranked; give the run its own pairs")
        rows.append(np.array([row_of[name] for name in names])[number])
    order = np.argsort(rows[0], kind="stable")
    images, captions, values = rows[0][order], rows[1][order], run.value[order]
    starts = np.searchsorted(images, np.arange(len(gallery.images) + 1))

    def taken(wanted: np.ndarray, columns: np.ndarray) -> np.ndarray:
        lengths = starts[wanted + 1] - starts[wanted]
        lines = np.repeat(starts[wanted] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        whole = np.full((len(wanted), len(gallery.captions)), -np.inf)
        whole[np.repeat(np.arange(len(wanted)), lengths), captions[lines]] = values[lines]
        return whole[:, columns]

    return taken


def write_run(path: Path, tag: str, score: Scores, direction: str, sides: Sequence[Tensor], gallery: Gallery) -> None:
    """Write the best DEPTH documents of every topic; of equal scores, those that are not true stand first.

    sides: embeddings of the images and of the captions of the gallery.
    """
    forward = direction == "image_to_text"
    names = [[trec_id(name) for name in side] for side in (gallery.images, gallery.caption_ids)]
    topics, documents = names if forward else names[::-1]
    pairs = getattr(gallery.truth, direction)[:, :: 1 if forward else -1]
    with atomic_write(path) as file:
        bar = progress_bar(
            range(0, len(topics), TOPICS_PER_BLOCK), f"write {path.name}", unit=" blocks", leave=False, delay=1
        )
        for start in bar:
            block = slice(start, start + TOPICS_PER_BLOCK)
            scores = score(sides[0][block], sides[1]) if forward else score(sides[0], sides[1][block]).T
            inside = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + len(scores))]
            keys = scores.double()
            true = keys[inside[:, 0] - start, inside[:, 1]]
            keys[inside[:, 0] - start, inside[:, 1]] = true.nextafter(torch.full_like(true, -torch.inf))
            best = keys.topk(min(DEPTH, len(documents)), dim=1).indices
            digits = 9 if scores.dtype == torch.float32 else 17  # which give back every bit
            values = scores.gather(1, best).tolist()
            for topic, rows, row_values in zip(topics[block], best.tolist(), values, strict=True):
                for rank, (document, value) in enumerate(zip(rows, row_values, strict=True), 1):
                    if value != -np.inf:
                        file.write(f"{topic} Q0 {documents[document]} {rank} {value:.{digits}g} {tag}\n")


def write_qrels(folder: Path, gallery: Gallery) -> list[Path]:
    """Write the true pairs of both directions, called after the dataset; return their files."""
    images, captions = ([trec_id(name) for name in side] for side in (gallery.images, gallery.caption_ids))
    files, dataset = [], re.sub(r"[^\w.]+", "-", gallery.dataset)
    for direction in DIRECTIONS:
        files.append(folder / f"{dataset}.{direction}.qrels")
        with atomic_write(files[-1]) as file:
            for image, caption in getattr(gallery.truth, direction).tolist():
                pair = (images[image], captions[caption])
                topic, document = pair if direction == "image_to_text" else pair[::-1]
                file.write(f"{topic} 0 {document} 1\n")
    return files
