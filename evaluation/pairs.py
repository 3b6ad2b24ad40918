"""Files that say which captions and images belong together: CSV, TSV, JSON lines, .npy, and TREC's qrels."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.gallery import Gallery
from evaluation.trec import AGAIN, is_qrels, named_direction, read_qrels, without_direction
from features.datasets.vsepp import open_npy
from metrics.positions import Truth
from metrics.ranks import DIRECTIONS
from reading import parse_json, read_text
from utils import BadInput, log

IMAGE_COLUMNS = ("image", "image_id", "image_row", "filename", "file_name", "file")
CAPTION_COLUMNS = ("caption", "caption_id", "caption_row", "sentence_id", "text_id")
HEADER = "a header with the columns image and caption"
ROW = re.compile(r"\d{1,18}")  # what has more digits is an id


@dataclass(frozen=True)
class Pairs:
    """Pairs as files have them. true: by direction, (image, caption) as text; images, captions: all that are named, in
    the order in which they come, those of pairs that are judged not to be true among them.
    """

    path: Path
    true: Mapping[str, list[tuple[str, str]]]
    images: list[str]
    captions: list[str]


def read_pairs(paths: Sequence[Path]) -> Pairs:
    """Read one file of pairs, or qrels of both directions. Raises BadInput for what is none, and for no pair at all."""
    first, *others = paths
    if others:
        directions = [named_direction(path) for path in paths]
        if sorted(map(str, directions)) != sorted(DIRECTIONS):
            raise BadInput(
                f"`pairs` {first} {others[0]}: two files are qrels of both directions, with image_to_text and "
                f"text_to_image in their names; name them so, or give one file"
            )
    lists = {path: list(_pairs_of(path)) for path in paths}
    for path, pairs in lists.items():
        if not any(true for _, _, true in pairs):
            raise BadInput(f"{path}: says of no image and caption that they belong together; {AGAIN}")
    named = [(image, caption) for pairs in lists.values() for image, caption, _ in pairs]
    true = {
        direction: list(dict.fromkeys((image, caption) for image, caption, yes in lists[path] if yes))
        for path, direction in (
            [(first, direction) for direction in DIRECTIONS]
            if not others
            else zip(paths, map(str, directions), strict=True)
        )
    }
    images, captions = (list(dict.fromkeys(pair[side] for pair in named)) for side in (0, 1))
    return Pairs(first, true, images, captions)


def _pairs_of(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield image, caption and whether they belong together."""
    if path.suffix.casefold() == ".npy":
        yield from _npy_pairs(path)
        return
    text = read_text(path, AGAIN, "file of pairs", encoding="utf-8-sig")
    head = next((line for line in text.splitlines() if line.strip()), "")
    if is_qrels(head):
        yield from _qrels_pairs(path)
    elif head.lstrip().startswith("{"):
        yield from _json_pairs(path, text)
    else:
        yield from _table_pairs(path, text, head)


def _npy_pairs(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(M,): the image row of every caption; (P, 2): image row and caption row of every pair."""
    array = open_npy(path)
    if array.dtype.kind not in "iu" or not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 2)):
        raise BadInput(
            f"{path}: is {array.dtype} of the shape {array.shape}; pairs are whole numbers, the image row of every "
            f"caption (M,), or image row and caption row of every pair (P, 2)"
        )
    if array.size and int(array.min()) < 0:
        raise BadInput(f"{path}: holds the row {int(array.min())}; rows are counted from 0")
    rows = array.tolist() if array.ndim == 2 else zip(array.tolist(), range(len(array)), strict=True)
    for image, caption in rows:
        yield str(image), str(caption), True


def _qrels_pairs(path: Path) -> Iterator[tuple[str, str, bool]]:
    """A name that tells no direction is read as text → image: topics are captions, documents are images."""
    qrels, forward = read_qrels(path), named_direction(path) == "image_to_text"
    if named_direction(path) is None:
        log(f"{path}: read as qrels of text → image; write image_to_text into its name if its topics are images")
    for topic, document, value in zip(qrels.topic.tolist(), qrels.document.tolist(), qrels.value.tolist(), strict=True):
        pair = qrels.topics[topic], qrels.documents[document]
        yield (*(pair if forward else pair[::-1]), value > 0)


def _json_pairs(path: Path, text: str) -> Iterator[tuple[str, str, bool]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            captions = row["captions"] if "captions" in row else row["caption"]
            ids = [_id(one) for one in (row["image"], *(captions if isinstance(captions, list) else [captions]))]
        except (ValueError, KeyError, TypeError):
            raise BadInput(
                f'{path}: line {number} is not {{"image": …, "caption": …}} with ids or row numbers; {AGAIN}'
            ) from None
        for caption in ids[1:]:
            yield ids[0], caption, True


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError
    return str(value)


def _table_pairs(path: Path, text: str, head: str) -> Iterator[tuple[str, str, bool]]:
    delimiter = next((sign for sign in "\t,;" if sign in head), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = (row for row in _proper(path, reader) if any(cell.strip() for cell in row))
    columns = [name.strip().casefold() for name in next(rows, [])]
    image, caption = (
        next((columns.index(name) for name in known if name in columns), None)
        for known in (IMAGE_COLUMNS, CAPTION_COLUMNS)
    )
    if image is None or caption is None:
        raise BadInput(f"{path}: line 1 is {head.strip()[:80]!r}; pairs need {HEADER}")
    for row in rows:
        if len(row) <= max(image, caption) or not row[image].strip() or not row[caption].strip():
            raise BadInput(f"{path}: line {reader.line_num} lacks its image or its caption; {AGAIN}")
        yield row[image].strip(), row[caption].strip(), True


def _proper(path: Path, reader: Any) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise BadInput(f"{path}: line {reader.line_num} is not proper CSV ({error}); {AGAIN}") from None


@dataclass(frozen=True)
class Side:
    """The images, or the captions, that models have rows of. count: None where any may come (of TREC runs alone);
    ids: those that a file has of its rows.
    """

    kind: str
    count: int | None
    ids: list[str] | None = None


def gallery_of(pairs: Pairs, split: str, images: Side, captions: Side) -> Gallery:
    """Return what the pairs say of the images and captions there are; its dataset is called after the file.

    Raises BadInput if they name others, or rows that there are not.
    """
    _check_turned(pairs, images, captions)
    (image_ids, image_row), (caption_ids, caption_row) = _rows(pairs, images), _rows(pairs, captions)
    both = [
        np.array([(image_row[image], caption_row[caption]) for image, caption in pairs.true[direction]])
        for direction in DIRECTIONS
    ]
    every = np.concatenate(both[::-1])
    _, first = np.unique(every[:, 1], return_index=True)
    image_of_caption = np.full(len(caption_ids), -1)
    image_of_caption[every[first, 1]] = every[first, 0]
    gallery = Gallery(
        without_direction(pairs.path),
        split,
        image_ids,
        caption_ids,
        caption_ids,
        image_of_caption,
        Truth(both[0], both[1]),
    )
    idle = [len(side) - len(np.unique(every[:, column])) for column, side in enumerate((image_ids, caption_ids))]
    if any(idle):
        log(f"{pairs.path}: {idle[0]:,} images and {idle[1]:,} captions are in no pair; they are ranked, not asked")
    return gallery


def _rows(pairs: Pairs, side: Side) -> tuple[list[str], dict[str, int]]:
    """Return what the rows of a side are called, and the row of each name that the pairs have.

    By the ids of the file, where it has some; else row numbers are taken as such if all of them are there, and ids in
    the order in which the pairs name them.
    """
    named = getattr(pairs, side.kind)
    if side.count is None:
        return named, {name: row for row, name in enumerate(named)}
    if side.ids is not None:
        row_of = {name: row for row, name in enumerate(side.ids)}
        if len(row_of) < len(side.ids):
            raise BadInput(
                f"{pairs.path}: the ids of the {side.kind} are not all different; mend the file that has them"
            )
        lost = next((name for name in named if name not in row_of), None)
        if lost is None:
            return side.ids, row_of
        if not all(ROW.fullmatch(name) for name in named):
            raise BadInput(f"{pairs.path}: {lost} is none of the {side.count:,} {side.kind} with rows; mend its id")
    if all(ROW.fullmatch(name) and int(name) < side.count for name in named):
        labels = side.ids or [f"{side.kind[:-1]}-{row}" for row in range(side.count)]
        return labels, {name: int(name) for name in named}
    if len(named) != side.count:
        raise BadInput(
            f"{pairs.path}: names {len(named):,} {side.kind} where {side.count:,} have rows; name every row once at "
            f"least, in their order, or give row numbers from 0 to {side.count - 1:,}"
        )
    log(f"{pairs.path}: has ids of {side.kind}; rows are taken in its order, the first as {named[0]}")
    return named, {name: row for row, name in enumerate(named)}


def _check_turned(pairs: Pairs, images: Side, captions: Side) -> None:
    """Raise BadInput where the pairs fit once images and captions change sides, and do not as they are."""
    if images.count is None or captions.count is None:
        return

    def fits(named: list[str], count: int) -> bool:
        return len(named) == count or (all(map(ROW.fullmatch, named)) and max(map(int, named)) < count)

    sides, counts = (pairs.images, pairs.captions), (images.count, captions.count)
    if not all(map(fits, sides, counts)) and all(map(fits, sides, counts[::-1])):
        raise BadInput(
            f"{pairs.path}: names {len(sides[0]):,} images and {len(sides[1]):,} captions, and there are rows of "
            f"{counts[0]:,} and {counts[1]:,}: images and captions have changed sides; turn the scores (their rows are "
            f"images), or name the embeddings of images first"
        )
