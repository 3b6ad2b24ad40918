"""A probe before training: which features and which text side lie most alike, on a thousand training pairs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.images.maps import FeatureMaps
from features.images.views import Features
from features.prepared import Prepared, newest_prepared
from features.text.vocabulary import Sentences, WordIndex
from metrics.alignment import cka, mutual_knn
from metrics.table import Table
from training.moments import bag_of_words, unit_rows
from utils import BadInput, NotPrepared

PAIRS = 1000
NEIGHBORS = 10  # as Huh et al. take
MAPS_PER_BLOCK = 64
STEMS = "stems"


def probe(data: Path | None = None, features: Sequence[Sequence[str]] = (), pairs: int = PAIRS) -> Table:
    """Rank all pairs of image features and text side that a prepared folder holds; return a table, the best first.

    data: a prepared folder, the newest under data/ by default. features: further sets of names, those of a set joined.
    A text side is a pooling of a text encoder, or the bag of stems. pairs: training images to take, evenly spread, each
    with its first caption; maps count by their mean. Raises BadInput if there is nothing to rank.

    >>> print(as_text(probe(Path("data/flickr8k"), [["efficientnet_lite0", "inception_v3"]])))  # doctest: +SKIP
    """
    prepared = Prepared(data or newest_prepared(Path("data")))
    rows = training_pairs(prepared, pairs)
    ids = [row["image"] for row in rows]
    sets = dict.fromkeys([*((name,) for name in prepared.stores()), *(tuple(dict.fromkeys(s)) for s in features)])
    if not sets:
        raise NotPrepared(f"{prepared.folder}: has no features", {"": prepared.name, "backbone": "NAME"})
    texts = dict(text_sides(prepared, rows))
    results = []
    for names in sets:
        x = image_side(prepared.features_of(ids, names, normalize=True))
        results += [("+".join(names), text, mutual_knn(x, y, NEIGHBORS), cka(x, y)) for text, y in texts.items()]
    results.sort(key=lambda result: -result[2])
    return as_table(prepared.name, results, len(rows))


def training_pairs(prepared: Prepared, pairs: int) -> list[dict[str, Any]]:
    """Return lines of captions.jsonl of `pairs` training images, evenly spread, each with its first caption alone.

    Raises BadInput if there are too few to have neighbors.
    """
    rows = [row for row in prepared.rows if row["split"] == "train"]
    if len(rows) <= 2 * NEIGHBORS:
        raise BadInput(
            f"{prepared.folder}: has {len(rows)} training images, too few to have {NEIGHBORS} neighbors each; prepare "
            f"more than {2 * NEIGHBORS}, or name another folder with `data`"
        )
    kept = np.linspace(0, len(rows) - 1, min(pairs, len(rows))).round().astype(int)
    return [{**rows[i], "captions": rows[i]["captions"][:1]} for i in kept]


def text_sides(prepared: Prepared, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and (N, size) of every text side: the poolings of each text encoder, then the bag of stems."""
    for name in prepared.text_stores():
        encoder = str(prepared.text_store(name).attributes["encoder"])  # as prep.py was given it, for errors
        store = prepared.text_store(encoder)
        for pooling in store.poolings:
            yield f"{name}, {pooling}", unit_rows(store.read(rows, pooling))
    index = WordIndex(prepared.vocabulary, stem=True, min_count=1)
    sentences = Sentences.encode([row["captions"][0] for row in rows], index)
    yield STEMS, bag_of_words(sentences, len(index), "mean").toarray()


def image_side(features: Features) -> np.ndarray:
    """Return features (N, D), of several views the mean, and of maps (N, H, W, C) that over positions (N, C)."""
    if not isinstance(features, FeatureMaps):
        return features[:]
    blocks = range(0, len(features), MAPS_PER_BLOCK)
    return np.concatenate([features[start : start + MAPS_PER_BLOCK].mean(axis=(1, 2)) for start in blocks])


def as_table(dataset: str, results: Sequence[tuple[str, str, float, float]], pairs: int) -> Table:
    """Return a table of (features, text, mutual nearest neighbors, CKA), the best of both columns bold."""
    columns = [[result[2] for result in results], [result[3] for result in results]]
    best = {(row, column) for column, values in enumerate(columns, 2) for row in [int(np.argmax(values))]}
    return Table(
        f"{dataset}, {pairs:,} training pairs before training",
        ("features", "text", f"mutual {NEIGHBORS}-NN", "CKA"),
        [(names, text, f"{100 * mutual:.1f}", f"{alike:.3f}") for names, text, mutual, alike in results],
        left=frozenset({0, 1}),
        best=frozenset(best),
        notes=(
            f"mutual {NEIGHBORS}-NN: percentage of an image's {NEIGHBORS} nearest images whose captions are among the "
            f"{NEIGHBORS} nearest of its caption (Huh et al., 2024); {100 * NEIGHBORS / (pairs - 1):.1f} by chance.",
            "CKA: linear, unbiased (Kornblith et al., 2019; Maniparambil et al., 2024); 0 by chance, 1 for one space.",
            "The more alike two sides lie, the less is left to training. Compare within this table alone: both figures "
            "depend on the pairs. The bag of stems weighs every word alike here, which training does not.",
        ),
    )
