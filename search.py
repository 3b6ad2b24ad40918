"""Ask a run: embeddings of anything, emoji for a photograph, an index of your photographs and searches in it.

python search.py embed RUN a.jpg b.jpg --out photographs.npy    one float32 row for each image or sentence
python search.py emoji RUN a.jpg                                emoji by their names, without having seen one
python search.py emoji RUN --map emoji.png                      where the emoji lie in the run's space
python search.py index RUN photographs --out photographs.index  an index of photographs; again: up to date
python search.py find photographs.index "a dog on the beach"    the photographs nearest to a sentence
python search.py find photographs.index --image a.jpg           captions of an image, and similar photographs
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils import BadInput, atomic_write, make_folder, run_script

if TYPE_CHECKING:
    from training.run import Run


def main() -> None:
    args = arguments()
    args.command(args)


def embed(args: argparse.Namespace) -> None:
    """Images or sentences → one float32 row each, as the run's similarity wants them."""
    kind = kind_of(args.input)
    out = output_path(args.out, "--out", ".npy")
    run = open_run(args)
    if kind == "sentence":
        for sentence in args.input:
            check_sentence(run, sentence)
        rows = run.embed_sentences(args.input)
    else:
        rows = run.embed_images(args.input)
    with atomic_write(out, "wb") as file:
        np.save(file, rows.astype(np.float32, copy=False), allow_pickle=False)
    what = f"{len(rows):,} {kind}{'s' if len(rows) > 1 else ''}"
    print(f"{what} → {rows.shape} float32 in {out}, for {run.settings.similarity} similarity")


def emoji(args: argparse.Namespace) -> None:
    """The emoji nearest to each image, and the map of all of them."""
    from retrieval.emoji import FORMATS, check_top, embed_emoji, rank_emoji
    from retrieval.emoji_map import find_emoji_font, write_map, write_sheet

    if not args.image and (args.sheet or not args.map):
        raise BadInput(
            "emoji: no image; name one at least after RUN, or only draw the emoji themselves with --map FILE"
        )
    check_top(args.k)
    sheet = output_path(args.sheet, "--sheet", ".png") if args.sheet else None
    drawn = output_path(args.map, "--map", ".png", ".html") if args.map else None
    if sheet or (drawn and drawn.suffix.lower() == ".png"):
        find_emoji_font()  # where it is missing, that is told before the work
    run = open_run(args)
    space = embed_emoji(run, args.prompt)
    print(space, file=sys.stderr)
    hits = rank_emoji(space, run.embed_images(args.image), run.settings.similarity, args.k) if args.image else []
    if sheet:
        write_sheet(sheet, args.image, hits)
    if drawn:
        write_map(drawn, space, run.folder.name, args.projection, args.max_emoji)
    if hits:
        print(FORMATS[args.format](args.image, hits))


def index(args: argparse.Namespace) -> None:
    """Photographs → an index folder, or the index brought up to date."""
    from retrieval.commands import index_images

    index_images(args, open_run(args))


def find(args: argparse.Namespace) -> None:
    """A sentence → images of an index; an image → captions and similar images."""
    from retrieval.commands import find

    find(args)


def open_run(args: argparse.Namespace) -> "Run":
    """The run that a folder, a name under --runs, or a pattern names. Raises BadInput unless it is one."""
    from training.run import Run, find_runs

    folders = list(find_runs([args.run], args.runs))
    if len(folders) > 1:
        raise BadInput(f"{args.run}: names {len(folders)} runs; name one of them, such as {folders[0]}")
    return Run.open(folders[0])


def kind_of(inputs: Sequence[str]) -> str:
    """What `inputs` are, "image" or "sentence". Raises BadInput for both at once, and for a file that is missing."""
    from features.images.decode import IMAGE_SUFFIXES

    for text in inputs:
        if os.path.isdir(text):
            raise BadInput(f"{text}: is a folder; name its images, such as {Path(text) / '*.jpg'}")
        path_like = os.sep in text and not any(letter.isspace() for letter in text)
        if not os.path.isfile(text) and (path_like or text.lower().endswith(IMAGE_SUFFIXES)):
            raise BadInput(f"{text}: no such image; mend its path, or write a sentence with blanks between its words")
    kinds = {"image" if os.path.isfile(text) else "sentence": text for text in inputs}
    if len(kinds) > 1:
        raise BadInput(
            f"{kinds['image']}: is an image, but {kinds['sentence']!r} a sentence; write a --out for each kind"
        )
    return next(iter(kinds))


def check_sentence(run: "Run", sentence: str) -> None:
    """Raises BadInput for a sentence that the run can make nothing of."""
    from features.text.vocabulary import tokenize

    if not sentence.strip():
        raise BadInput(f"{sentence!r}: an empty sentence has no embedding; leave it out")
    if not run.knows(sentence):
        words = ", ".join(tokenize(sentence)) or "it holds none"
        raise BadInput(f"{sentence!r}: the run knows none of its words ({words}); use words of its training captions")


def output_path(path: Path, flag: str, *suffixes: str) -> Path:
    """Raises BadInput unless a file of one of these kinds can be written to `path`; its folder is made."""
    if path.suffix.lower() not in suffixes or path.is_dir():
        raise BadInput(f"{flag} {path}: is written as {' or '.join(suffixes)}; name a file that ends so")
    make_folder(path.parent, flag)
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_embed(commands)
    add_emoji(commands)
    add_index(commands)
    add_find(commands)
    return parser.parse_args()


def add_embed(commands) -> None:
    command = add_command(commands, "embed", embed, "images or sentences as float32 rows in a .npy file")
    command.add_argument("input", nargs="+", metavar="IMAGE|SENTENCE", help="files, or sentences; not both at once")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.npy")


def add_emoji(commands) -> None:
    command = add_command(commands, "emoji", emoji, "the emoji whose names are nearest to an image; a map of them all")
    image = command.add_argument("image", nargs="+", default=[], metavar="IMAGE", help="none is needed for --map")
    image.required = False  # "*" would not find images that stand behind an option
    command.add_argument("-k", type=int, default=10, metavar="N", help="emoji an image; default: 10")
    command.add_argument("--prompt", default="{}", metavar="TEXT", help="a sentence with {} for the emoji's name")
    command.add_argument("--format", choices=("table", "jsonl"), default="table")
    command.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw the images with their emoji under them")
    command.add_argument("--map", type=Path, metavar="FILE.png|FILE.html", help="draw where the emoji lie in its space")
    command.add_argument("--projection", choices=("tsne", "pca"), default="tsne", help="of the map")
    command.add_argument("--max-emoji", type=int, metavar="N", help="draw so many emoji on the map at most")


def add_index(commands) -> None:
    command = add_command(commands, "index", index, "an index of images to search in, built or brought up to date")
    command.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGES", help="folders, image files, or one prepared folder"
    )
    command.add_argument("--out", type=Path, required=True, metavar="INDEX", help="the folder of the index")
    command.add_argument(
        "--captions", type=Path, metavar="FILE", help="captions to find for an image, one a line; default: the run's"
    )
    command.add_argument("--fresh", action="store_true", help="start over, whatever index is there")
    command.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="images the frozen network sees at a time"
    )
    command.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode images")
    way = command.add_mutually_exclusive_group()
    way.add_argument(
        "--approximate",
        action="store_true",
        default=None,
        help="a graph for approximate search, for cosine; default: beyond 50,000 images",
    )
    way.add_argument("--exact", action="store_false", dest="approximate", help="no such graph")


def add_find(commands) -> None:
    about = "search an index: a sentence finds images, an image finds captions and similar images"
    command = commands.add_parser("find", help=about, description=f"{about[0].upper()}{about[1:]}.")
    command.add_argument("index", type=Path, metavar="INDEX")
    command.add_argument("sentence", nargs="?", metavar="SENTENCE")
    command.add_argument("-k", type=int, default=20, metavar="N", help="answers; default: 20")
    command.add_argument("--image", type=Path, metavar="FILE", help="ask with an image")
    command.add_argument(
        "--captions", type=Path, metavar="FILE", help="with --image: rank these captions, one a line, not the index's"
    )
    command.add_argument("--format", choices=("table", "jsonl"), default="table")
    command.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw query and images as a contact sheet")
    command.add_argument("--exact", action="store_true", help="search all, where the index is made approximate")
    command.add_argument("--run", type=Path, metavar="RUN", help="the index's run, if it has moved")
    command.set_defaults(command=find)


def add_command(commands, name: str, command: Callable[[argparse.Namespace], None], about: str):
    """A command that asks a run."""
    parser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.add_argument("run", metavar="RUN", help="a run folder, or a name under --runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="ROOT", help="where runs are looked for")
    parser.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    run_script(main)
