"""Ask a run: embeddings of anything, emoji for a photograph, an index of your photographs and searches in it.

    python search.py embed RUN a.jpg b.jpg --out photographs.npy    one float32 row for each image or sentence
    python search.py emoji RUN a.jpg                                emoji by their names, without having seen one
    python search.py emoji RUN --map emoji.png                      where the emoji lie in the run's space
"""

import argparse

from utils import script


def main() -> None:
    args = arguments()
    args.command(args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_subparsers(required=True, metavar="COMMAND")
    return parser.parse_args()


if __name__ == "__main__":
    script(main)
