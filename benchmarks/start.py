"""How long does a command wait before it does anything: a search from the shell, and --help of every script?

    python benchmarks/start.py
    python benchmarks/start.py --run models/minilm --pairs 9

An index of drawn images is made first, by a model that ships. The reference is the same
command that first imports torch, NLTK and h5py, as scripts of this field do, and as this one did.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import Goal, Timing, in_pairs, seconds, timings_table

from metrics.table import as_text
from retrieval.build import build_index
from training.run import Run

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("prep", "train", "eval", "search", "app")
FIRST_THING = "import torch, nltk, h5py"
SENTENCE = "a dog on the beach"


def command(*words: str, first: str = "") -> float:
    """Return how long a script takes, in a process of its own."""
    script, *args = words
    code = (
        f"{first}\nimport sys, runpy; sys.argv = {[script, *args]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    call = [sys.executable, *([script, *args] if not first else ["-c", code])]
    return seconds(lambda: subprocess.run(call, cwd=ROOT, check=True, capture_output=True))


def draw_images(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def timings(
    run: Path = ROOT / "models/stems", images: int = 50, sentence: str = SENTENCE, pairs: int = 5
) -> Iterator[Timing]:
    """Yield what a search takes, and --help of each script."""
    with tempfile.TemporaryDirectory() as name:
        folder, index = Path(name), Path(name) / "images.index"
        draw_images(folder / "images", images)
        build_index(Run.open(run), [folder / "images"], index)
        words = ("search.py", "find", str(index), sentence)
        command(*words), command(*words, first=FIRST_THING)  # both read from the disk once
        times = in_pairs(lambda: command(*words), lambda: command(*words, first=FIRST_THING), pairs)
    first, goal = "torch, NLTK, h5py first", Goal(1.5, False, "seconds")
    yield Timing(f"search.py find, {run.name}", *times, "", first, goal=goal)
    for script in SCRIPTS:
        command(f"{script}.py", "--help")
        times_of_help = [command(f"{script}.py", "--help") for _ in range(pairs)]
        yield Timing(f"{script}.py --help", times_of_help, goal=Goal(0.5, False, "seconds"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "models/stems")
    parser.add_argument("--images", type=int, default=50, help="of the index")
    parser.add_argument("--sentence", default=SENTENCE)
    parser.add_argument("--pairs", type=int, default=5, help="of runs")
    args = parser.parse_args()
    print(as_text(timings_table(list(timings(**vars(args))))))


if __name__ == "__main__":
    main()
