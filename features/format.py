"""The version that a file of this project carries, and the refusal of one that this program does not read."""

from pathlib import Path

from utils import BadInput


def check_format(path: Path, version: object, known: int, again: str) -> None:
    """Raise BadInput unless `version`, as a file carries it, is the one that this program reads.

    known: that one. again: how the file is made again; a newer one wants a newer program instead.

    >>> check_format(Path("meta.json"), 2, 1, "build it again")
    Traceback (most recent call last):
    utils.BadInput: meta.json: has format 2, this program reads format 1; update the program, or build it again
    """
    if version == known:
        return
    if version is None:
        raise BadInput(f"{path}: carries no format, so it is no file of this program; {again}")
    newer = "update the program, or " if isinstance(version, int) and version > known else ""
    raise BadInput(f"{path}: has format {version!r:.20}, this program reads format {known}; {newer}{again}")
