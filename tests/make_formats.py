"""Write tests/formats/N/: a prepared folder, a run and an index of made-up rows, in the formats of today.

python -m tests.make_formats 1

Called once, whenever a format has been raised, with the next number; earlier folders stay, for the test that opens or
refuses them (tests/features/test_format.py).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from evaluation.share import without_paths
from features.datasets.dataset import Dataset, Image
from features.images.store import write_store
from features.prepared import Prepared, write_prepared
from features.text.store import POOLINGS, keys_of, write_text_store
from features.text.vocabulary import Vocabulary
from tests.helpers import ROOT
from training.run import read_run_config, write_run_config

FORMATS = ROOT / "tests/formats"
SPLITS = ("train", "train", "train", "val", "test")
COLORS = ("red", "green", "blue", "yellow", "white")
ENCODER: dict[str, str | int] = {"encoder": "made-up", "digest": "0" * 64, "size": 3, "longest": 8}
BACKBONE: dict[str, str | int] = {"backbone": "made-up", "digest": "0" * 64, "dtype": "float32", "file": ""}
SMALL = ("embed_dim=4", "training.epochs=1", "training.min_steps=0")


def rows(count: int, size: int) -> np.ndarray:
    """Made-up features (count, size), every one another."""
    return np.arange(count * size, dtype=np.float32).reshape(count, size) % 7


def make(folder: Path) -> None:
    """Write the three folders, with no path of this machine in any."""
    pairs = zip(SPLITS, COLORS, strict=True)
    images = tuple(Image(f"{color}.jpg", None, split, (f"a {color} dog", f"{color} snow")) for split, color in pairs)
    captions = [caption for image in images[:3] for caption in image.captions]
    (folder / "prepared").mkdir(parents=True)
    write_prepared(folder / "prepared", Dataset("made-up", images), None, Vocabulary.build(captions, "english"))
    ids = [image.id for image in images]
    write_store(folder / "prepared/made-up.h5", ids, (4,), "float32", BACKBONE, [rows(len(ids), 4)])
    keys = keys_of(Prepared(folder / "prepared").rows)
    blocks = {pooling: [rows(len(keys), 3)] for pooling in POOLINGS}
    kept = dict.fromkeys(POOLINGS, "float16")
    write_text_store(folder / "prepared/made-up.text.h5", keys, ENCODER, kept, blocks)
    run_script(folder, "train.py", "strong", "--data", "prepared", "--runs", ".", "--set", *SMALL)
    (run,) = folder.glob("strong-*")
    settings, info = read_run_config(run)
    write_run_config(run, settings, without_paths(info))
    run.rename(folder / "run")
    run_script(folder, "search.py", "index", "prepared", "--run", "run", "--out", "index")
    meta = json.loads((folder / "index/meta.json").read_text())
    meta |= {name: Path(meta[name]).name for name in ("run", "captions_from")}
    (folder / "index/meta.json").write_text(json.dumps(meta))


def run_script(folder: Path, script: str, *args: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, ROOT / script, *args], cwd=folder, check=True, env=environment)


if __name__ == "__main__":
    target = FORMATS / sys.argv[1]
    shutil.rmtree(target, ignore_errors=True)
    make(target)
