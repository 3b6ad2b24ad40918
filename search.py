# PYTHON_ARGCOMPLETE_OK
"""Search your images with sentences: an index of them, searches in it, embeddings of anything, emoji for an image.

python search.py index photos                               an index of images, photos.index; again: up to date
python search.py find photos.index "a dog on the beach"     the images nearest to a sentence
python search.py find photos.index --image a.jpg            captions of an image, and similar images
python search.py a dog on the beach                         the same of the newest index here
python search.py in the snow --like a.jpg --minus people    images like one, but in the snow, less of people
python search.py embed a.jpg b.jpg --out images.npy         one float32 row for each image or sentence
python search.py export photos.index --out embeddings       an index as clip-retrieval's folder, for other tools
python search.py emoji a.jpg                                emoji by their names, without having seen one
python search.py emoji --map emoji.png                      where the emoji lie in the run's space

Without --run, a model that ships with the program answers: one of models/, which knows photographs of people and dogs.
"""

import argparse
import sys
from pathlib import Path

from script import complete, folders_with, one_sentence, run_script
from utils import be_quiet


def main() -> None:
    args = vars(arguments())
    if args.pop("quiet", False):
        be_quiet()
    from retrieval import commands  # late: it takes seconds, and --help does not need it

    getattr(commands, args.pop("command"))(**args)


def arguments() -> argparse.Namespace:
    """The name of a function of `retrieval.commands`, and its arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    def add(name: str, about: str, asks_run: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        if asks_run:
            named = "a run folder, a name under --runs, a pattern, or hub:USER/NAME; default: a model that ships"
            command.add_argument("--run", metavar="RUN", help=named)
            command.add_argument("--runs", type=Path, default=Path("runs"), metavar="ROOT", help="where runs lie")
        return command

    embed = add("embed", "images or sentences as float32 rows in a .npy file")
    embed.add_argument("inputs", nargs="+", metavar="IMAGE|SENTENCE", help="files, or sentences; not both at once")
    embed.add_argument("--out", type=Path, required=True, metavar="FILE.npy")

    emoji = add("emoji", "the emoji whose names are nearest to an image; a map of them all")
    images = emoji.add_argument("images", nargs="+", default=[], metavar="IMAGE", help="none is needed for --map")
    images.required = False  # "*" would not find images that stand behind an option
    emoji.add_argument("-k", type=int, default=10, metavar="N", help="emoji an image; default: 10")
    emoji.add_argument("--prompt", default="{}", metavar="TEXT", help="a sentence with {} for the emoji's name")
    emoji.add_argument("--format", choices=("table", "jsonl"), default="table")
    emoji.add_argument("--sheet", type=Path, metavar="FILE.png", help="show the images with their emoji under them")
    emoji.add_argument("--map", type=Path, metavar="FILE.png|FILE.html", help="show where the emoji lie in its space")
    emoji.add_argument("--projection", choices=("tsne", "pca"), default="tsne", help="of the map")
    emoji.add_argument("--max-emoji", type=int, metavar="N", help="show so many emoji on the map at most")

    index = add("index", "an index of images to search in, built or brought up to date")
    named = "folders, image files, tars or tables of images, or one prepared folder"
    index.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help=named)
    out = "the folder of the index; default: that of the images, with .index at its end"
    index.add_argument("--out", type=Path, metavar="INDEX", help=out)
    lines = "captions to find for an image, one a line; default: the run's"
    index.add_argument("--captions", type=Path, metavar="FILE", help=lines)
    index.add_argument("--fresh", action="store_true", help="start over, whatever index is there")
    index.add_argument("--batch-size", type=int, default=16, metavar="N", help="images the backbone sees at a time")
    index.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode images")
    correct = "rank by scores corrected for hubs, by the run's bank: inverted_softmax, nnn, db_norm, or none"
    index.add_argument("--correction", metavar="NAME", help=f"{correct}; default: as the index is")
    index.add_argument("--quiet", action="store_true", help="say only warnings, errors and the result")
    way = "exact, or for cosine hnsw or ivf_pq of FAISS; default: by the number of images, hnsw from 50,000 on"
    index.add_argument("--search", metavar="WAY", help=way)
    server = "search in Milvus: http://HOST:19530, or a file of milvus-lite, FILE.db"
    index.add_argument("--index-url", metavar="URL", help=server)

    find = add("find", "search an index: a sentence finds images, an image finds captions and similar images", False)
    words = "an index, by default the newest here, and a sentence"
    find.add_argument("words", nargs="*", metavar="INDEX|SENTENCE", help=words)
    find.add_argument("-k", type=int, default=20, metavar="N", help="answers; default: 20")
    find.add_argument("--image", type=Path, metavar="FILE", help="ask with an image")
    like = "look for images like this one, a file or an id of the index, and with a sentence for both together"
    find.add_argument("--like", metavar="IMAGE", help=like)
    less = "take a sentence away from what is looked for; may be given several times"
    find.add_argument("--minus", action="append", default=[], metavar="SENTENCE", help=less)
    ranked = "with --image: rank these captions, one a line, not the index's"
    find.add_argument("--captions", type=Path, metavar="FILE", help=ranked)
    find.add_argument("--format", choices=("table", "jsonl"), default="table")
    find.add_argument("--sheet", type=Path, metavar="FILE.png", help="query and images as a contact sheet")
    least = "leave out images of a smaller probability that they and the sentence belong together"
    find.add_argument("--at-least", type=float, metavar="P", help=least)
    find.add_argument("--exact", action="store_true", help="search all, where the index is made approximate")
    where = "where Milvus is, if it searches the index; default: INDEX_URL of the environment"
    find.add_argument("--index-url", metavar="URL", help=where)
    moved = "the index's run, if it has moved"
    find.add_argument("--run", type=Path, metavar="RUN", help=moved)

    export = add("export", "an index as clip-retrieval's folder: embeddings and metadata for other tools", False)
    export.add_argument("index", type=Path, metavar="INDEX")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet")
    export.add_argument("--run", type=Path, metavar="RUN", help=moved)
    given = sys.argv[1:]
    complete(
        parser,
        run=lambda args: folders_with("recipe.toml", getattr(args, "runs", Path("runs"))),
        correction=lambda args: ["inverted_softmax", "nnn", "db_norm", "none"],
    )
    sentence = bool(given) and given[0] not in commands.choices and not given[0].startswith("-")
    args, behind = one_sentence(parser).parse_known_args(["find", *given] if sentence else given)
    if behind and (args.command != "find" or any(word.startswith("-") for word in behind)):
        parser.error(f"unrecognized arguments: {' '.join(behind)}")
    if behind:  # words of a sentence that stand behind an option
        args.words += behind
    return args


if __name__ == "__main__":
    run_script(main)
