"""How often does a search say that nothing matches, when something does and when nothing does?

    python benchmarks/nothing_matches.py models/minilm data/flickr8k --plot reliability.png
    python benchmarks/nothing_matches.py 'runs/strong-scenes-*' data/scenes --other data/flickr8k

The test split's images are searched with its own captions, with the sentences of off_topic.txt, of which none is about
them, with words of its captions in random order, and with captions of drawn scenes, or of the test split of another
prepared folder. The plot compares what probabilities say with how often that is so, ANSWERED of the queries being
captions.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from folders import images_of

from features.datasets import scenes
from features.prepared import Prepared
from metrics.similarity import TRAINING
from metrics.table import Table, as_markdown
from retrieval.commands import open_run
from retrieval.searcher import LIKELY
from script import run_script
from training.bank import read_bank
from training.calibration import ANSWERED, nearness_to, shuffled_sentences
from training.run import Run
from utils import BadInput

OFF_TOPIC = Path(__file__).parent / "off_topic.txt"
BINS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, or a pattern that one run matches")
    parser.add_argument("data", type=Path, help="a prepared folder with the features of the run")
    parser.add_argument(
        "--other", type=Path, metavar="DIR", help="a prepared folder whose test captions are asked, too"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    args = parser.parse_args()
    said = probabilities(open_run(args.run), Prepared(args.data), others(args.other))
    print(as_markdown(table(said)))
    if args.plot:
        plot(args.plot, said)


def others(folder: Path | None) -> dict[str, list[str]]:
    """Return captions of other images: of drawn scenes, or of the test split of a prepared folder."""
    if folder is None:
        drawn = scenes.plan(0, 0, 0, 100)
        return {"captions of drawn scenes": [caption for scene in drawn for caption in scenes.captions(scene)]}
    prepared = Prepared(folder)
    test = [image for image in images_of(prepared) if image.split == "test"]
    return {f"captions of {prepared.folder.name}": [caption for image in test for caption in image.captions]}


def probabilities(run: Run, prepared: Prepared, others: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Return the probability of the best image of every query, by kind; the first kind has images that match."""
    bank = read_bank(run.folder)
    if bank is None or bank.calibration is None:
        raise BadInput(f"{run.folder}: keeps nothing that makes probabilities; name another run")
    test = prepared.split("test", run.info.features, run.settings.image.normalize)
    images = torch.from_numpy(run.embed_features(test.features))
    queries: dict[str, Sequence[str]] = {
        "captions of the images": test.captions,
        "off topic": OFF_TOPIC.read_text().splitlines(),
        "words in random order": shuffled_sentences(test.captions, seed=1),
        **others,
    }
    said = {}
    for kind, sentences in queries.items():
        embedded = torch.from_numpy(run.embed_sentences(sentences, check=False))
        best = TRAINING[run.settings.similarity](images, embedded).amax(dim=0).numpy()
        likely = bank.calibration.probabilities(best, nearness_to(bank.captions, embedded.numpy()))
        known = [run.knows(sentence) for sentence in sentences]  # of no known word: a search refuses it
        said[kind] = np.where(known, likely, 0)
    return said


def table(said: Mapping[str, np.ndarray]) -> Table:
    """Return by kind how many queries are told that nothing matches, and the area under the ROC curve."""
    true = next(iter(said.values()))
    body = []
    for kind, p in said.items():
        labels = np.repeat([1, 0], [len(true), len(p)])
        area = "" if p is true else f"{roc_auc_score(labels, np.concatenate([true, p])):.3f}"
        body.append([kind, f"{len(p):,}", f"{100 * (p < LIKELY).mean():.1f}", area])
    return Table("", ["queries", "number", "nothing matches, %", "AUC"], body)


def plot(path: Path, said: Mapping[str, np.ndarray]) -> None:
    """Draw how often something matches over what the probabilities say, a curve for each kind of query without."""
    import matplotlib.pyplot as plt

    (_, true), *others = said.items()
    figure, axis = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="as often as it says")
    for kind, p in others:
        both, matches = np.concatenate([true, p]), np.repeat([1.0, 0.0], [len(true), len(p)])
        weights = np.where(matches, ANSWERED / len(true), (1 - ANSWERED) / len(p))
        bins = np.minimum((both * BINS).astype(int), BINS - 1)
        total, x, y = (np.bincount(bins, weights * values, BINS) for values in (1, both, matches))
        filled = np.bincount(bins, minlength=BINS) >= BINS
        axis.plot(x[filled] / total[filled], y[filled] / total[filled], marker="o", markersize=4, label=kind)
    axis.set(xlabel="probability of the best image", ylabel="share of queries with a match", xlim=(0, 1), ylim=(0, 1))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    run_script(main)
