"""The commands `index` and `find` of search.py: what they read, what they print."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from features.images.decode import Unreadable, read_image
from retrieval.build import BuildReport, build_index
from retrieval.contact_sheet import Tile, write_sheet
from retrieval.index import Meta
from retrieval.searcher import MAX_TRUE_SHOWN, Hit, ScoredIds, Searcher, check_query, plain
from retrieval.sources import read_captions
from training.run import Run
from utils import BadInput, make_folder

MAX_UNREADABLE_SHOWN = 20  # of the unreadable images that are named one by one
MAX_COLUMNS = 100  # columns of an answer in the table
Row = dict[str, Any]


def index_images(args: argparse.Namespace, run: Run) -> None:
    """search.py index: say what changed, what cannot be read, and what the graph for approximate search is worth."""
    if args.batch_size < 1 or args.workers < 0:
        flag = f"--batch-size {args.batch_size}" if args.batch_size < 1 else f"--workers {args.workers}"
        raise BadInput(f"{flag}: too small; leave it out for the default")
    built = build_index(
        run,
        args.images,
        args.out,
        captions=args.captions,
        fresh=args.fresh,
        approximate=args.approximate,
        batch=args.batch_size,
        workers=args.workers,
    )
    for line in report_lines(built):
        log(line)
    print(f"{args.out}: {built.images:,} images ({built.counts()}), {built.captions:,} captions")


def report_lines(built: BuildReport) -> list[str]:
    """What is to be said of a build beside its counts."""
    lines = [*built.notes]
    lines += [
        f"cannot be read: {plain(image)}: {plain(reason)}" for image, reason in built.unreadable[:MAX_UNREADABLE_SHOWN]
    ]
    if len(built.unreadable) > MAX_UNREADABLE_SHOWN:
        lines.append(f"cannot be read: {len(built.unreadable) - MAX_UNREADABLE_SHOWN:,} more")
    if built.unreadable:
        lines.append(f"{len(built.unreadable):,} images that cannot be read left out; the next build tries them again")
    if built.graph:
        graph = built.graph
        lines.append(
            f"approximate search: recall@10 {graph['recall@10']:.3f} against exact on {graph['queries']:,} queries, "
            f"efSearch {graph['efSearch']}, built in {graph['seconds']:,.1f} s; find --exact searches all"
        )
    return lines


def find(args: argparse.Namespace) -> None:
    """search.py find: a sentence finds images; an image finds captions and similar images."""
    if (args.sentence is None) == (args.image is None):
        both = "both a sentence and --image" if args.image else "neither a sentence nor --image"
        raise BadInput(f"find: {both} given; ask with one of the two")
    if args.k < 1:
        raise BadInput(f"-k {args.k}: at least one answer must be asked for; choose 1 or more")
    if args.captions and args.image is None:
        raise BadInput("--captions: are searched from an image; name one with --image, or leave it out")
    if args.sheet:
        check_sheet(args.sheet)
    if args.sentence is not None:
        check_query(args.sentence)
    Meta.read(args.index)  # before a run is opened: a typo is told at once
    captions = read_captions(args.captions) if args.captions else None
    picture = None if args.image is None else open_picture(args.image)
    searcher = Searcher.open(args.index, args.run, exact=args.exact)
    if picture is None:
        rows, notes = answers_to_sentence(searcher, args.sentence, args.k)
        title = args.sentence
    else:
        rows, notes = answers_to_image(searcher, args.image, args.k, captions)
        title = plain(args.image)
    print(FORMATS[args.format](rows, notes))
    if args.format == "jsonl":  # a line that is no answer has no place there
        for note in notes:
            log(note)
    if args.sheet:
        sheet(searcher, args.sheet, title, rows, notes, picture)
        log(f"--sheet: wrote {args.sheet}")


def check_sheet(path: Path) -> None:
    """Raises BadInput unless a PNG can be written to `path`; its folder is made."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise BadInput(f"--sheet {path}: is written as PNG; name a file that ends in .png")
    make_folder(path.parent, "--sheet")


def open_picture(path: Path) -> Any:
    """Raises BadInput if the image cannot be read."""
    try:
        return read_image(path)
    except Unreadable as error:
        raise BadInput(f"{path}: cannot be read ({error}); name another image with --image") from None


def answers_to_sentence(searcher: Searcher, sentence: str, k: int) -> tuple[list[Row], list[str]]:
    """The k best images, and behind them the best true one if it is not there; what is to be said of them."""
    answer = searcher.ask(sentence, k)
    unknown = searcher.unknown_words(sentence)
    if unknown:
        log(f"unknown words, left out: {', '.join(map(plain, unknown))}")
    notes = []
    if answer.positions:
        said = list(answer.positions.items())[:MAX_TRUE_SHOWN]
        places = ", ".join(f"{plain(image)} at rank {rank:,}" for image, rank in said)
        more = len(answer.positions) - len(said)
        many = "true images" if len(answer.positions) > 1 else "true image"
        and_more = f" and {more:,} more" if more else ""
        notes = [f"a caption of the dataset; {many}: {places}{and_more} of {len(searcher.index):,}"]
    return [image_row(searcher, hit) for hit in answer.hits], notes


def answers_to_image(
    searcher: Searcher, image: Path, k: int, captions: list[str] | None
) -> tuple[list[Row], list[str]]:
    """The k best captions, then the k most similar images."""
    rows: list[Row] = []
    notes = []
    query = searcher.embed_image(image)
    if captions is not None:
        rows += caption_rows(searcher.captions_of(query, k, captions))
    elif len(searcher.index.captions):
        rows += caption_rows(searcher.captions_of(query, k))
    else:
        notes = ["the index has no captions; name some with --captions"]
    found = searcher.similar_of(query, k)
    rows += [image_row(searcher, Hit(rank, score, other)) for rank, (other, score) in enumerate(found, 1)]
    return rows, notes


def image_row(searcher: Searcher, hit: Hit) -> Row:
    path = searcher.path(hit.image)
    row = {"rank": hit.rank, "score": hit.score, "image": hit.image, "path": None if path is None else str(path)}
    return {**row, "true": hit.true, "below": hit.below}


def caption_rows(found: ScoredIds) -> list[Row]:
    return [{"rank": rank, "score": score, "caption": caption} for rank, (caption, score) in enumerate(found, 1)]


def table(rows: list[Row], notes: list[str]) -> str:
    """Rank, score and image or caption, aligned; a true image is marked, one behind the k best stands below a gap."""
    lines: list[str] = []
    for column, name in (("caption", "caption"), ("image", "image")):
        some = [row for row in rows if column in row]
        if not some:
            continue
        if lines:
            lines.append("")
        width = max(len("rank"), *(len(f"{row['rank']:,}") for row in some))
        lines.append(f"{'rank':>{width}}    score  {name}")
        for row in some:
            if row.get("below"):
                lines.append(f"{'…':>{width}}")
            text = plain(row[column])
            text = text if len(text) <= MAX_COLUMNS else f"{text[: MAX_COLUMNS - 1]}…"
            lines.append(
                f"{row['rank']:>{width},}  {row['score']:>7.4f}  {text}{'  ← true' if row.get('true') else ''}"
            )
    return "\n".join([*lines, *([""] if notes else []), *notes])


def json_lines(rows: list[Row], notes: list[str]) -> str:
    """One object a line; a file name that is no Unicode is escaped."""
    lines = []
    for row in rows:
        if row.get("below"):
            continue  # said apart
        kept = {name: value for name, value in row.items() if name not in ("true", "below")}
        line = json.dumps(kept, ensure_ascii=False)
        lines.append(line if line.isprintable() else json.dumps(kept))
    return "\n".join(lines)


FORMATS = {"table": table, "jsonl": json_lines}


def sheet(searcher: Searcher, path: Path, title: str, rows: list[Row], notes: list[str], picture: Any) -> None:
    """The contact sheet of an answer: captions as text, images as tiles."""
    texts = [f"{row['rank']} · {row['score']:.3f} · {plain(row['caption'])}" for row in rows if "caption" in row]
    tiles = [
        Tile(f"{row['rank']:,} · {row['score']:.3f}", searcher.thumbnail(row["image"]), row["true"])
        for row in rows
        if "image" in row
    ]
    write_sheet(path, plain(" ".join(title.split())), tiles, [*texts, *notes], picture)


def log(line: str) -> None:
    print(f"search.py: {line}", file=sys.stderr, flush=True)
