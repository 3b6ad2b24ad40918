"""Fuzzing of the reader of one kind of file, guided by coverage: python -m tests.torture.guided NAME FOLDER [flags].

It needs atheris, takes libFuzzer's flags, and ends with another status than 0 where a file is neither read nor refused.
"""

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["features", "reading", "settings", "evaluation", "retrieval", "training"]):
    from tests.torture.parsers import PARSERS

import utils
from utils import BadInput


def main(name: str, folder: str, *flags: str) -> None:
    parser, corpus = PARSERS[name], Path(folder, "corpus")
    corpus.mkdir()
    made = Path(folder, "made")
    made.mkdir()
    path = parser.make(made)
    (corpus / "sound").write_bytes(path.read_bytes())
    parser.read(path)
    utils.be_quiet(warnings=True)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(BadInput):
            parser.read(path)

    atheris.Setup([sys.argv[0], "-timeout=5", "-rss_limit_mb=4096", *flags, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
