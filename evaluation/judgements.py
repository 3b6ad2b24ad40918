"""Human judgements of Flickr8k: how far the scores of image–caption pairs agree with what people say of them.

Hodosh, Young and Hockenmaier (2013) had captions of one image judged against another: three experts gave each of 5,822
pairs 1 to 4 (ExpertAnnotations.txt), and workers of CrowdFlower said yes or no to 47,830 (CrowdFlowerAnnotations.txt).
Papers on the evaluation of captions report Kendall's τ, times 100, and this room does as Hessel et al. (CLIPScore,
2021) and their code do, after Anderson et al. (SPICE, 2016): Expert by τ-c, without the 158 pairs whose caption belongs
to the image, each of the three ratings counted; CrowdFlower by τ-b against the fraction of yeses, over all pairs.
CLIPScore itself reaches 51.2 and 34.4. Every image and caption that was judged is of the official test split.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from features.datasets.line_files import numbered_lines, read_text
from features.prepared import Prepared, join_features
from metrics.similarity import pair_scores
from training.run import Run
from utils import BadInput

EXPERT, CROWDFLOWER = "ExpertAnnotations.txt", "CrowdFlowerAnnotations.txt"
AGAIN = "take the file of the original Flickr8k_text folder again"

_KEY = re.compile(r"(.+)#(\d+)")


@dataclass(frozen=True)
class Judgements:
    """P pairs. images: (P,) image ids; captions: (P,) keys such as "dog.jpg#2", the third caption of dog.jpg;
    ratings: (P, R) float64, R ratings of each pair, larger is better.
    """

    images: np.ndarray
    captions: np.ndarray
    ratings: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def owners(self) -> np.ndarray:
        """(P,) the image that each caption was written for."""
        return np.array([caption_number(key)[0] for key in self.captions.tolist()], dtype=str)

    def take(self, rows: np.ndarray) -> "Judgements":
        return Judgements(self.images[rows], self.captions[rows], self.ratings[rows])


def caption_number(key: str) -> tuple[str, int]:
    """The image of a caption's key, and which of its captions it is, from 0.

    >>> caption_number("dog.jpg#2")
    ('dog.jpg', 2)
    """
    image, _, number = key.rpartition("#")
    return image, int(number)


def read_expert(folder: Path | str) -> Judgements:
    """The experts' pairs, three ratings from 1 to 4 each, without those whose caption belongs to the image.

    Raises BadInput if the file is missing, or a line is not image, caption and three ratings.
    """
    path = _file(folder, EXPERT)
    found = _judgements([(image, key, _stars(path, line, words)) for line, image, key, words in _lines(path)])
    return found.take(np.flatnonzero(found.owners() != found.images))


def read_crowdflower(folder: Path | str) -> Judgements:
    """CrowdFlower's pairs, one rating each: the fraction of people who said that the caption describes the image.

    Raises BadInput if the file is missing, or a line is not image, caption, fraction, yeses and noes.
    """
    path = _file(folder, CROWDFLOWER)
    return _judgements([(image, key, [_fraction(path, line, words)]) for line, image, key, words in _lines(path)])


def correlate(scores: np.ndarray, ratings: np.ndarray, variant: str) -> float | None:
    """Kendall's τ times 100 between the scores (P,) of P pairs and their ratings (P, R), each rating counted.

    variant: "b" (ties taken off both sides; Kendall, 1945) or "c" (for tables that are not square; Stuart, 1953).
    None where τ is not defined: all scores equal, as a collapsed model gives them, or all ratings.
    """
    tau = kendalltau(np.repeat(scores, ratings.shape[1]), ratings.ravel(), variant=variant).statistic
    return None if math.isnan(tau) else 100.0 * float(tau)


MEASURES: dict[str, tuple[str, Callable[[Path | str], Judgements], str]] = {
    "expert": (EXPERT, read_expert, "c"),
    "crowdflower": (CROWDFLOWER, read_crowdflower, "b"),
}


def judge(run: Run, prepared: Prepared, folder: Path | str) -> dict[str, dict[str, Any]]:
    """A run against both files of `folder`: {"expert": {…}, "crowdflower": {…}}, each with

    tau: Kendall's τ × 100, None where it is not defined; variant: "c" or "b"; pairs and ratings: how many counted;
    left_out: pairs whose image or caption the prepared folder does not hold; images_seen and captions_seen: pairs whose
    image, or whose caption, is of the training split of `prepared`: 0 for the official splits.

    The run's features must be in `prepared`, of the weights it was trained on: whoever calls has checked that. Raises
    BadInput for a missing or malformed file, and if `prepared` holds no pair at all.
    """
    return {name: _judge(run, prepared, Path(folder), *measure) for name, measure in MEASURES.items()}


def note_of(judged: dict[str, dict[str, Any]]) -> str:
    """What a table has to say under its figures: the pairs that count, those left out, those seen in training."""
    parts = []
    for name, found in judged.items():
        part = f"{name} τ-{found['variant']} over {found['pairs']:,} pairs ({found['ratings']:,} ratings)"
        if found["left_out"]:
            part += f", {found['left_out']:,} pairs left out that the prepared folder does not hold"
        seen = [f"the image of {found['images_seen']:,}"] if found["images_seen"] else []
        seen += [f"the caption of {found['captions_seen']:,}"] if found["captions_seen"] else []
        parts.append(part + (f", {' and '.join(seen)} of them seen in training" if seen else ""))
    unseen = not any(found["images_seen"] or found["captions_seen"] for found in judged.values())
    return "; ".join(parts) + ("; no image or caption of them was seen in training" if unseen else "")


def _judge(run: Run, prepared: Prepared, folder: Path, file: str, read: Callable, variant: str) -> dict[str, Any]:
    everything = read(folder)
    captions = _captions(prepared)
    splits = {row["image"]: row["split"] for row in prepared.rows}
    there = [
        image in splits and key in captions
        for image, key in zip(everything.images.tolist(), everything.captions.tolist(), strict=True)
    ]
    pairs = everything.take(np.flatnonzero(there))
    if not len(pairs):
        raise BadInput(
            f"{folder / file}: none of its images and captions is in {prepared.folder}, which holds {prepared.name}; "
            f"judge runs on flickr8k, or leave --judgements out"
        )
    scores = _scores(run, prepared, pairs, captions)
    return {
        "tau": correlate(scores, pairs.ratings, variant),
        "variant": variant,
        "pairs": len(pairs),
        "ratings": pairs.ratings.size,
        "left_out": len(everything) - len(pairs),
        "images_seen": sum(splits[image] == "train" for image in pairs.images.tolist()),
        "captions_seen": sum(splits[image] == "train" for image in pairs.owners().tolist()),
    }


def _captions(prepared: Prepared) -> dict[str, str]:
    """Every caption by its key. Captions are numbered as in the dataset's file, which captions.jsonl keeps."""
    return {f"{row['image']}#{n}": text for row in prepared.rows for n, text in enumerate(row["captions"])}


def _scores(run: Run, prepared: Prepared, pairs: Judgements, captions: dict[str, str]) -> np.ndarray:
    """(P,) scores of the pairs by the run's own similarity; each image and each caption is embedded once."""
    ids, image_rows = np.unique(pairs.images, return_inverse=True)
    texts, caption_rows = np.unique([captions[key] for key in pairs.captions.tolist()], return_inverse=True)
    stores = [prepared.store(name) for name in run.info.features]
    parts = [store.read(store.rows(ids.tolist())) for store in stores]
    images = run.embed_features(join_features(parts, run.settings.image.normalize))
    sentences = run.embed_sentences(texts.tolist())
    return pair_scores(run.settings.similarity, images, sentences, image_rows, caption_rows)


def _file(folder: Path | str, name: str) -> Path:
    remedy = f"point --judgements to the folder that holds {EXPERT} and {CROWDFLOWER}"
    if not Path(folder).is_dir():
        raise BadInput(f"{folder}: no such folder; {remedy}")
    if not (Path(folder) / name).is_file():
        raise BadInput(f"{Path(folder) / name}: no such file; {remedy}")
    return Path(folder) / name


def _lines(path: Path) -> Iterator[tuple[int, str, str, list[str]]]:
    """Line number, image, key of the caption, and the three words behind them."""
    for number, line in numbered_lines(read_text(path)):
        words = [word.strip() for word in line.split("\t")]
        if len(words) != 5 or not words[0] or not _KEY.fullmatch(words[1]):
            raise _malformed(path, number)
        yield number, words[0], words[1], words[2:]


def _stars(path: Path, line: int, words: list[str]) -> list[float]:
    if not all(word in ("1", "2", "3", "4") for word in words):
        raise _malformed(path, line)
    return [float(word) for word in words]


def _fraction(path: Path, line: int, words: list[str]) -> float:
    """The fraction of yeses, which must be what the two counts say."""
    try:
        fraction, yes, no = float(words[0]), int(words[1]), int(words[2])
    except ValueError:
        raise _malformed(path, line) from None
    if yes < 0 or no < 0 or yes + no == 0 or not abs(fraction - yes / (yes + no)) < 1e-5:
        raise _malformed(path, line)
    return yes / (yes + no)  # not the rounded decimals: equal fractions must be equal numbers


def _malformed(path: Path, line: int) -> BadInput:
    rest = "three ratings from 1 to 4" if path.name == EXPERT else "fraction of yeses, yeses, noes"
    return BadInput(f"{path}: line {line} is not image, caption (image.jpg#0) and {rest}, between tabs; {AGAIN}")


def _judgements(rows: list[tuple[str, str, list[float]]]) -> Judgements:
    images, captions, ratings = zip(*rows, strict=True)
    return Judgements(np.array(images), np.array(captions), np.array(ratings, np.float64))
