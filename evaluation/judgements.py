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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from features.datasets.line_files import numbered_lines, read_text
from features.prepared import Prepared
from utils import BadInput

EXPERT, CROWDFLOWER = "ExpertAnnotations.txt", "CrowdFlowerAnnotations.txt"
AGAIN = "take the file of the original Flickr8k_text folder again"
KEY = re.compile(r"(.+)#(\d+)")
ScoresOf = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Judgements:
    """P pairs of the file `path`. images: (P,) image ids; captions: (P,) keys such as "dog.jpg#2", the third caption of
    dog.jpg; ratings: (P, R) float64, R ratings of each pair, larger is better; variant: of Kendall's τ.
    """

    path: Path
    variant: str
    images: np.ndarray
    captions: np.ndarray
    ratings: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def caption_images(self) -> np.ndarray:
        """Return (P,) the image that each caption was written for."""
        return np.array([key.rpartition("#")[0] for key in self.captions.tolist()], dtype=str)

    def take(self, rows: np.ndarray) -> "Judgements":
        return replace(self, images=self.images[rows], captions=self.captions[rows], ratings=self.ratings[rows])


@dataclass(frozen=True)
class Judgement:
    """How far the scores of a run, or of several seeds, agree with one file.

    taus: Kendall's τ × 100 of each seed, None where it is not defined; pairs and ratings: how many counted; left_out:
    pairs whose image or caption the prepared folder does not hold; images_seen and captions_seen: pairs whose image, or
    whose caption, is of the training split: 0 for the official splits.
    """

    taus: tuple[float | None, ...]
    variant: str
    pairs: int
    ratings: int
    left_out: int
    images_seen: int
    captions_seen: int

    @property
    def tau(self) -> float | None:
        """The mean over seeds."""
        return None if None in self.taus else float(np.mean(np.array(self.taus, float)))

    @property
    def std(self) -> float | None:
        """The standard deviation over seeds (n - 1)."""
        return None if None in self.taus or len(self.taus) < 2 else float(np.std(np.array(self.taus, float), ddof=1))

    def as_dict(self) -> dict[str, Any]:
        """Return tau, the counts, and, of several seeds, std."""
        several = len(self.taus) > 1
        counts = {name: value for name, value in asdict(self).items() if name != "taus"}
        return {"tau": self.tau, **counts, **({"std": self.std} if several else {})}


def read_expert(folder: Path | str) -> Judgements:
    """Read the experts' pairs, three ratings from 1 to 4 each, without those whose caption belongs to the image.

    Raises BadInput if the file is missing, or a line is not image, caption and three ratings.
    """
    pairs = _read(Path(folder) / EXPERT, "c", _stars)
    return pairs.take(np.flatnonzero(pairs.caption_images() != pairs.images))


def read_crowdflower(folder: Path | str) -> Judgements:
    """Read CrowdFlower's pairs, one rating each: the fraction of people who said that the caption describes the image.

    Raises BadInput if the file is missing, or a line is not image, caption, fraction, yeses and noes.
    """
    return _read(Path(folder) / CROWDFLOWER, "b", _fraction)


MEASURES = {"expert": read_expert, "crowdflower": read_crowdflower}


def correlate(scores: np.ndarray, ratings: np.ndarray, variant: str) -> float | None:
    """Return Kendall's τ times 100 between the scores (P,) of P pairs and their ratings (P, R), each rating counted.

    variant: "b" (ties taken off both sides; Kendall, 1945) or "c" (for tables that are not square; Stuart, 1953).
    None where τ is not defined: all scores equal, as a collapsed model gives them, or all ratings.
    """
    from scipy.stats import kendalltau  # a second to import

    tau = kendalltau(np.repeat(scores, ratings.shape[1]), ratings.ravel(), variant=variant).statistic
    return None if math.isnan(tau) else 100.0 * float(tau)


def judge(prepared: Prepared, scores_of: ScoresOf, judgements: Judgements) -> Judgement:
    """Judge a run by the pairs of one file. scores_of: the run's scores (P,) of P image ids and P captions.

    Raises BadInput if the prepared folder holds none of the pairs.
    """
    captions, splits = captions_by_key(prepared), {row["image"]: row["split"] for row in prepared.rows}
    keys = zip(judgements.images.tolist(), judgements.captions.tolist(), strict=True)
    pairs = judgements.take(np.flatnonzero([image in splits and key in captions for image, key in keys]))
    if not len(pairs):
        raise BadInput(
            f"{judgements.path}: none of its images and captions is in {prepared.folder}, which holds {prepared.name}; "
            f"judge runs on flickr8k, or leave `judgements` out"
        )
    scores = scores_of(pairs.images.tolist(), [captions[key] for key in pairs.captions.tolist()])
    return Judgement(
        taus=(correlate(scores, pairs.ratings, pairs.variant),),
        variant=pairs.variant,
        pairs=len(pairs),
        ratings=pairs.ratings.size,
        left_out=len(judgements) - len(pairs),
        images_seen=sum(splits[image] == "train" for image in pairs.images.tolist()),
        captions_seen=sum(splits[image] == "train" for image in pairs.caption_images().tolist()),
    )


def note_of(judged: Mapping[str, Judgement]) -> str:
    """Say what belongs under the figures of a table: the pairs that count, those left out, those seen in training."""
    parts = []
    for name, one in judged.items():
        part = f"{name} τ-{one.variant} over {one.pairs:,} pairs ({one.ratings:,} ratings)"
        if one.left_out:
            part += f", {one.left_out:,} pairs left out that the prepared folder does not hold"
        seen = [f"the image of {one.images_seen:,}"] if one.images_seen else []
        seen += [f"the caption of {one.captions_seen:,}"] if one.captions_seen else []
        parts.append(part + (f", {' and '.join(seen)} of them seen in training" if seen else ""))
    unseen = not any(one.images_seen or one.captions_seen for one in judged.values())
    return "; ".join(parts) + ("; no image or caption of them was seen in training" if unseen else "")


def captions_by_key(prepared: Prepared) -> dict[str, str]:
    """Return every caption by its key. Captions are numbered as in the dataset's file, which captions.jsonl keeps."""
    return {f"{row['image']}#{n}": text for row in prepared.rows for n, text in enumerate(row["captions"])}


def _read(path: Path, variant: str, ratings_of: Callable[[Path, int, list[str]], list[float]]) -> Judgements:
    """Read a file of lines of image, key of the caption, and three words that `ratings_of` reads."""
    remedy = f"point `judgements` to the folder that holds {EXPERT} and {CROWDFLOWER}"
    if not path.parent.is_dir():
        raise BadInput(f"{path.parent}: no such folder; {remedy}")
    if not path.is_file():
        raise BadInput(f"{path}: no such file; {remedy}")
    rows = []
    for number, line in numbered_lines(read_text(path)):
        words = [word.strip() for word in line.split("\t")]
        if len(words) != 5 or not words[0] or not KEY.fullmatch(words[1]):
            raise _malformed(path, number)
        rows.append((words[0], words[1], ratings_of(path, number, words[2:])))
    images, captions, ratings = zip(*rows, strict=True)
    return Judgements(path, variant, np.array(images), np.array(captions), np.array(ratings, np.float64))


def _stars(path: Path, line: int, words: list[str]) -> list[float]:
    if not all(word in ("1", "2", "3", "4") for word in words):
        raise _malformed(path, line)
    return [float(word) for word in words]


def _fraction(path: Path, line: int, words: list[str]) -> list[float]:
    """Read the fraction of yeses, which must be what the two counts say."""
    try:
        fraction, yes, no = float(words[0]), int(words[1]), int(words[2])
    except ValueError:
        raise _malformed(path, line) from None
    if yes < 0 or no < 0 or yes + no == 0 or not abs(fraction - yes / (yes + no)) < 1e-5:
        raise _malformed(path, line)
    return [yes / (yes + no)]  # not the rounded decimals: equal fractions must be equal numbers


def _malformed(path: Path, line: int) -> BadInput:
    rest = "three ratings from 1 to 4" if path.name == EXPERT else "fraction of yeses, yeses, noes"
    return BadInput(f"{path}: line {line} is not image, caption (image.jpg#0) and {rest}, between tabs; {AGAIN}")
