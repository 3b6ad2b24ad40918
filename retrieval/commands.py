"""The commands of search.py, as functions: results are printed, whatever else is to be said is logged.

`run` is everywhere a run folder, a name under `runs`, a pattern that one run matches, or None for a model that ships.
"""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from features.images.decode import IMAGE_SUFFIXES, Unreadable, read_image
from metrics.table import Table, as_text
from retrieval.contact_sheet import Tile, write_sheet
from retrieval.index import INDEX_SUFFIX, META, Index, Meta, index_folder
from retrieval.models import shipped_run
from retrieval.nearest import check_k
from retrieval.searcher import MAX_TRUE_SHOWN, Hit, ScoredIds, Searcher, plain
from retrieval.words import check_query
from retrieval.world import trained_on, world_note
from training.bank import read_bank
from training.run import Run, find_runs
from utils import BadInput, atomic_write, log, make_folder, warn

MAX_ANSWER_CHARS = 100  # of a caption or an id in the table
RUNS = Path("runs")


def embed(inputs: Sequence[str], out: Path, *, run: str | None = None, runs: Path = RUNS) -> None:
    """Write images or sentences to a .npy file: one float32 row each, as the run's similarity wants them.

    >>> embed(["a dog", "a red car"], Path("rows.npy"), run="runs/strong-0")  # doctest: +SKIP
    2 sentences → (2, 1024) float32 in rows.npy, for cosine similarity
    """
    kind = kind_of(inputs)
    check_output("out", out, ".npy")
    opened = open_run(run, runs)
    rows = opened.embed_sentences(inputs) if kind == "sentence" else opened.embed_images(inputs)
    with atomic_write(out, "wb") as file:
        np.save(file, rows.astype(np.float32, copy=False), allow_pickle=False)
    what = f"{len(rows):,} {kind}{'s' if len(rows) > 1 else ''}"
    print(f"{what} → {rows.shape} float32 in {out}, for {opened.settings.similarity} similarity")


def emoji(  # noqa: PLR0913 (a command's options, keyword-only)
    images: Sequence[str],
    *,
    run: str | None = None,
    runs: Path = RUNS,
    k: int = 10,
    prompt: str = "{}",
    format: str = "table",
    sheet: Path | None = None,
    map: Path | None = None,
    projection: str = "tsne",
    max_emoji: int | None = None,
) -> None:
    """Print the k emoji nearest to each image, or write them under the images, or where they lie in the run's space.

    prompt, projection, max_emoji: see `embed_emoji` and `make_map`; format: a key of EMOJI_FORMATS.
    """
    from retrieval import emoji_map
    from retrieval.emoji import EMOJI_FORMATS, embed_emoji, rank_emoji

    if not images and (sheet or not map):
        raise BadInput("emoji: no image; name one at least, or only the emoji themselves with `map` FILE")
    check_k(k)
    if sheet:
        check_output("sheet", sheet, ".png")
    if map:
        check_output("map", map, ".png", ".html")
    if sheet or (map and map.suffix.lower() == ".png"):
        emoji_map.find_emoji_font()  # an error if it is missing, before the work
    opened = open_run(run, runs)
    space = embed_emoji(opened, prompt)
    log(str(space))
    hits = rank_emoji(space, opened.embed_images(images), opened.settings.similarity, k) if images else []
    if sheet:
        emoji_map.write_emoji_sheet(sheet, images, hits)
        log(f"wrote {sheet}")
    if map:
        log(f"lays {min(max_emoji or len(space.emoji), len(space.emoji)):,} emoji out by {projection}")
        emoji_map.write_map(map, space, opened.folder.name, projection, max_emoji)
        log(f"wrote {map}")
    if hits:
        print(EMOJI_FORMATS[format](images, hits))


def index(  # noqa: PLR0913 (a command's options, keyword-only)
    images: Sequence[Path],
    out: Path | None = None,
    *,
    run: str | None = None,
    runs: Path = RUNS,
    captions: Path | None = None,
    fresh: bool = False,
    search: str | None = None,
    index_url: str | None = None,
    correction: str | None = None,
    batch_size: int = 16,
    workers: int = 0,
) -> None:
    """Build the index in folder `out`, or bring it up to date, and print what changed; see `build_index`.

    out: by default that of the first folder named, with .index at its end.
    """
    from retrieval.build import build_index
    from retrieval.sources import check_there

    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise BadInput(f"`{name}` {value}: too small; leave it out for the default")
    check_there(images)
    out = out or index_folder(images)
    opened = open_run(run, runs)
    report = build_index(
        opened,
        images,
        out,
        captions=captions,
        fresh=fresh,
        search=search,
        index_url=index_url,
        correction=correction,
        batch=batch_size,
        workers=workers,
    )
    for line in report.lines():
        warn(line)
    log(f"made by {opened.folder.name}, trained on {trained_on(opened.info)}")
    if note := world_note(Index.open(out, exact=True), opened.info, read_bank(opened.folder)):
        warn(note)
    corrected = f", corrected by {report.correction}" if report.correction else ""
    print(f"{out}: {report.images:,} images ({report.counts()}), {report.captions:,} captions{corrected}")
    log(f'ask it: python search.py find {shlex.quote(str(out))} "a dog on the beach"')


def find(  # noqa: PLR0913 (a command's options, keyword-only)
    words: Sequence[str],
    *,
    image: Path | None = None,
    k: int = 20,
    captions: Path | None = None,
    format: str = "table",
    sheet: Path | None = None,
    exact: bool = False,
    index_url: str | None = None,
    at_least: float | None = None,
    like: str | None = None,
    minus: Sequence[str] = (),
    run: Path | None = None,
) -> None:
    """Print the k images nearest to a sentence, or the k captions and the k images nearest to an image.

    words: the folder of an index, the newest here by default, and a sentence, in quotes or not. captions: a file of
    others than those of the index; sheet: a PNG of query and images; exact, index_url, run: see `Searcher.open`;
    at_least: the smallest probability of an image that is shown; like, minus: see `Searcher.combined`; format: a key
    of FORMATS.
    """
    index, sentence = index_and_sentence(words)
    summed = like is not None or bool(minus)
    if summed:
        check_sum(image, captions, at_least)
    else:
        check_question(sentence, image, captions)
    check_k(k)
    if sheet:
        check_output("sheet", sheet, ".png")
    Meta.read(index)  # an error if it is no index, before a run is opened
    query_image = None if image is None else open_image(image)
    searcher = Searcher.open(index, run, exact, index_url)
    lines = own_captions(searcher.run, captions)
    if summed:
        result = find_sum(searcher, sentence or "", like, minus, k)
    elif image:
        result = find_captions(searcher, image, k, lines)
    else:
        result = find_images(searcher, sentence or "", k, at_least)
    log(f"answers by {searcher.run.folder.name}, trained on {trained_on(searcher.run.info)}")
    if note := world_note(searcher.index, searcher.run.info, searcher.bank):
        log(note)
    print(FORMATS[format](searcher, result))
    if format == "jsonl":  # a line that is no answer has no place there
        for note in result.notes:
            log(note)
    if sheet:
        title = " − ".join([" + ".join(filter(None, [plain(like or image or ""), sentence])), *minus])
        write_answer_sheet(sheet, searcher, title, result, query_image)
        log(f"wrote {sheet}")


def export(index: Path, out: Path, *, run: Path | None = None) -> None:
    """Write an index as clip-retrieval's folder, and print what it holds; see `export_index`."""
    from retrieval.export import export_index

    report = export_index(Searcher.open(index, run, exact=True), out)
    what = "one for each caption" if report.captions else "one for each image"
    print(f"{out}: {report.rows:,} rows, {what}, of {report.images:,} images")


def index_and_sentence(words: Sequence[str], folder: Path = Path()) -> tuple[Path, str | None]:
    """Return the index that the first word names, or the newest in `folder`, and the sentence of the others.

    The sentence is None where there is no word more. Raises BadInput if no index is named and there is none.
    """
    if words and names_an_index(words[0]):
        return Path(words[0]), " ".join(words[1:]) if words[1:] else None
    indexes = sorted(folder.glob(f"*/{META}"), key=lambda path: (-path.stat().st_mtime, path))
    if not indexes:
        raise BadInput(f"{folder.resolve()}: holds no index; build one with search.py index IMAGES, or name one")
    which = f"the newest of {len(indexes)} indexes here; another, by its name before the sentence"
    log(f"asks {indexes[0].parent}, {which if len(indexes) > 1 else 'the index here'}")
    return indexes[0].parent, " ".join(words) if words else None


def names_an_index(word: str) -> bool:
    """Return whether a word names a folder: it is there, ends in INDEX_SUFFIX, or is a path; a sentence has blanks.

    >>> [names_an_index(word) for word in ("photos.index", "my/photos", "a black/white dog")]
    [True, True, False]
    """
    path_like = os.sep in word and not any(character.isspace() for character in word)
    return word.endswith(INDEX_SUFFIX) or path_like or os.path.isdir(word)


def open_run(run: str | None, runs: Path = RUNS) -> Run:
    """Open the run that a folder, a name under `runs`, or a pattern names, or a model that ships (None).

    Raises BadInput unless it is one.
    """
    if run is None:
        return shipped_run()
    folders = list(find_runs([run], runs))
    if len(folders) > 1:
        raise BadInput(f"{run}: names {len(folders)} runs; name one of them, such as {folders[0]}")
    return Run.open(folders[0])


def own_captions(run: Run, file: Path | None) -> list[str] | None:
    """Read the captions of a file that the run knows a word of; None without a file. Raises BadInput."""
    if file is None:
        return None
    from retrieval.sources import known_captions, read_captions  # late: a sentence needs none of it

    return known_captions(run, read_captions(file), file)


def open_image(path: Path) -> PILImage.Image:
    """Read an image. Raises BadInput if that cannot be done."""
    try:
        return read_image(path)
    except Unreadable as error:
        raise BadInput(f"{path}: cannot be read ({error}); name another image with `image`") from None


def kind_of(inputs: Sequence[str]) -> str:
    """Return "image" or "sentence". Raises BadInput for both at once, and for a file that is missing."""
    for text in inputs:
        if os.path.isdir(text):
            raise BadInput(f"{text}: is a folder; name its images, such as {Path(text) / '*.jpg'}")
        path_like = os.sep in text and not any(character.isspace() for character in text)
        if not os.path.isfile(text) and (path_like or text.lower().endswith(IMAGE_SUFFIXES)):
            raise BadInput(f"{text}: no such image; mend its path, or write a sentence with blanks between its words")
    kinds = {"image" if os.path.isfile(text) else "sentence": text for text in inputs}
    if len(kinds) > 1:
        raise BadInput(f"{kinds['image']}: is an image, but {kinds['sentence']!r} a sentence; write an `out` for each")
    return next(iter(kinds))


def check_output(name: str, path: Path, *suffixes: str) -> None:
    """Make the folder of a file. Raises BadInput unless the file can be written and is of one of these kinds."""
    if path.suffix.lower() not in suffixes or path.is_dir():
        raise BadInput(f"`{name}` {path}: name a file that ends in {' or '.join(suffixes)}")
    make_folder(path.parent, name)


def check_question(sentence: str | None, image: Path | None, captions: Path | None) -> None:
    """Raise BadInput unless exactly one of sentence and image is asked with, and it goes with the captions."""
    if (sentence is None) == (image is None):
        given = "both a sentence and `image`" if image else "neither a sentence nor `image`"
        raise BadInput(f"find: {given} given; ask with one of the two")
    if captions and image is None:
        raise BadInput("`captions`: are searched from an image; name one with `image`, or leave it out")
    if sentence is not None:
        check_query(sentence)


def check_sum(image: Path | None, captions: Path | None, at_least: float | None) -> None:
    """Raise BadInput for what does not go with a question of `like` and `minus`."""
    if image or captions or at_least is not None:
        raise BadInput("`image`, `captions`, `at_least`: go neither with `like` nor with `minus`; leave them out")


@dataclass(frozen=True)
class Result:
    """What `find` shows: images, captions with their scores, best first, and notes on them."""

    hits: list[Hit]
    captions: ScoredIds = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_images(searcher: Searcher, sentence: str, k: int, at_least: float | None = None) -> Result:
    """Return the k best images, and behind them the best true one if it is not there."""
    answer = searcher.ask(sentence, k, at_least)
    for note in answer.query.notes():
        log(plain(note))
    ranks = [f"{plain(image)} at rank {rank:,}" for image, rank in answer.positions.items()]
    doubts = answer.doubts(at_least)
    if not ranks:
        return Result(answer.hits, notes=doubts)
    more = f" and {len(ranks) - MAX_TRUE_SHOWN:,} more" if len(ranks) > MAX_TRUE_SHOWN else ""
    shown = f"{', '.join(ranks[:MAX_TRUE_SHOWN])}{more} of {len(searcher.index):,}"
    note = f"a caption of the dataset; true image{'s' if len(ranks) > 1 else ''}: {shown}"
    return Result(answer.hits, notes=[*doubts, note])


def find_sum(searcher: Searcher, sentence: str, like: str | None, minus: Sequence[str], k: int) -> Result:
    """Return the k images nearest to a sentence and an image, less other sentences; see `Searcher.combined`."""
    pairs = searcher.combined(sentence, like=like, minus=minus, k=k)
    notes = [note for text in (sentence, *minus) if text for note in searcher.mended(text).notes()]
    return Result([Hit(rank, score, image) for rank, (image, score) in enumerate(pairs, 1)], notes=notes)


def find_captions(searcher: Searcher, image: Path, k: int, captions: list[str] | None = None) -> Result:
    """Return the k best captions, of the index or of others, and the k most similar images, without itself."""
    query, row = searcher.embed_image(image), searcher.index.row_of_file(image)
    pairs = searcher.similar_of(query, k) if row is None else searcher.similar_to(searcher.index.ids[row], k)
    hits = [Hit(rank, score, other) for rank, (other, score) in enumerate(pairs, 1)]
    if captions is None and not len(searcher.index.captions):
        return Result(hits, notes=["the index has no captions; name a file of them with --captions"])
    return Result(hits, searcher.captions_of(query, k, captions))


def write_answer_sheet(
    path: Path, searcher: Searcher, title: str, result: Result, query_image: PILImage.Image | None
) -> None:
    """Write the contact sheet of an answer: captions as text, images as tiles."""
    captions = enumerate(result.captions, 1)
    lines = [f"{rank} · {score:.3f} · {plain(caption)}" for rank, (caption, score) in captions]
    tiles = []
    for hit in result.hits:
        likely = "" if hit.probability is None else f"{100 * hit.probability:.0f} % · "
        label = f"{hit.rank:,} · {likely}{hit.score:.3f}"
        tiles.append(Tile(label, searcher.thumbnail(hit.image), hit.true, plain(Path(hit.image).name)))
    write_sheet(path, plain(" ".join(title.split())), tiles, [*lines, *result.notes], query_image)


def as_table(_: Searcher, result: Result) -> str:
    """Return captions and images as aligned tables; a true image is marked, one behind the k best is below a gap."""
    captions = [
        [f"{rank:,}", f"{score:.4f}", _cut(caption)] for rank, (caption, score) in enumerate(result.captions, 1)
    ]
    images: list[list[str]] = []
    for hit in result.hits:
        images += [["…", "", "", ""]] * hit.below
        likely = "" if hit.probability is None else f"{hit.probability:.2f}"
        images.append([f"{hit.rank:,}", f"{hit.score:.4f}", likely, f"{_cut(hit.image)}{'  ← true' * hit.true}"])
    if all(hit.probability is None for hit in result.hits):
        images = [[*row[:2], row[3]] for row in images]
    tables = [
        as_text(
            Table(
                "",
                [head for head in heads if head != "likely" or len(rows[0]) == 4],
                rows,
                left=frozenset({len(rows[0]) - 1}),
                rules={},
            )
        )
        for heads, rows in ((["rank", "score", "caption"], captions), (["rank", "score", "likely", "image"], images))
        if rows
    ]
    return "\n\n".join([*tables, *(["\n".join(result.notes)] if result.notes else [])])


def _cut(text: str) -> str:
    text = plain(text)
    return text if len(text) <= MAX_ANSWER_CHARS else f"{text[: MAX_ANSWER_CHARS - 1]}…"


def as_jsonl(searcher: Searcher, result: Result) -> str:
    """Return one JSON object a line; a file name that is no Unicode is escaped."""
    rows = [{"rank": rank, "score": score, "caption": text} for rank, (text, score) in enumerate(result.captions, 1)]
    for hit in result.hits:
        if not hit.below:  # it is in the notes
            path = searcher.path(hit.image)
            likely = {} if hit.probability is None else {"probability": hit.probability}
            rows.append(
                {"rank": hit.rank, "score": hit.score, **likely, "image": hit.image, "path": path and str(path)}
            )
    lines = ((json.dumps(row, ensure_ascii=False), json.dumps(row)) for row in rows)
    return "\n".join(line if line.isprintable() else escaped for line, escaped in lines)


FORMATS = {"table": as_table, "jsonl": as_jsonl}
