# PYTHON_ARGCOMPLETE_OK
"""The web page: search an index with a sentence, or with an image that you drop, paste or choose.

python app.py photos.index                    a page on http://127.0.0.1:7860/, for this machine alone
python app.py photos.index --host 0.0.0.0     for everybody who can reach this machine and has the token it prints

It asks no other host for anything, and shows no file but the images of the index. Where files lie is shown on this
machine alone.
"""

import argparse
from pathlib import Path

from script import complete, one_sentence, run_script


def main() -> None:
    args = arguments()
    from retrieval.web import serve  # late: --help does not need it

    serve(**vars(args))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, metavar="INDEX", help="the folder of an index, from search.py index")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, this machine")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0 for any free one")
    parser.add_argument("--run", type=Path, metavar="RUN", help="the index's run, if it has moved")
    parser.add_argument("--exact", action="store_true", help="search all, where the index is made approximate")
    where = "where Milvus is, if it searches the index; default: INDEX_URL of the environment"
    parser.add_argument("--index-url", metavar="URL", help=where)
    parser.add_argument("--max-upload", type=float, default=20, metavar="MB", help="of an image sent; default: 20")
    parser.add_argument(
        "--token", help="open the page by /?token=TOKEN; default: beyond this machine, one that it draws"
    )
    complete(parser)
    return one_sentence(parser).parse_args()


if __name__ == "__main__":
    run_script(main)
