"""What a run was trained on, and whether the images of an index are of that kind or of another world.

There is always a nearest image, and a run that knows drawn scenes finds one among photographs as well. So images of the
index are compared with the training images of the run's bank: most of those of another world lie farther from them
than nearly all of them lie from each other.
"""

import numpy as np

from retrieval.index import Index
from training.bank import RunBank
from training.run import RunInfo

KNOWN = {
    "scenes": "scenes that this project draws",
    "flickr8k": "Flickr8k, photographs of people, dogs and what these do",
    "flickr30k": "Flickr30k, photographs of people and what they do",
    "coco": "COCO, photographs of everyday things",
}
SAMPLE = 300  # images of the index, and of the bank
NEIGHBORS = 5  # training images that nearness is the mean over
FAR = 5  # percent of the training images lie farther from the others
MANY = 0.5  # share of the index that has to lie so far


def trained_on(info: RunInfo) -> str:
    """Return what a run was trained on, in words where the dataset is known.

    >>> from types import SimpleNamespace
    >>> trained_on(SimpleNamespace(dataset="coco"))
    'COCO, photographs of everyday things'
    """
    return KNOWN.get(info.dataset, info.dataset)


def share_far(embeddings: np.ndarray, training: np.ndarray) -> float:
    """Return the share of rows (N, dim) that lie farther from training images (B, dim) than these from each other.

    Farther: the mean cosine with the NEIGHBORS nearest is less than that of all but FAR percent of the training images.

    >>> training = np.eye(16, dtype=np.float32)[np.arange(64) % 8]
    >>> share_far(training[:8], training), share_far(np.eye(16, dtype=np.float32)[8:], training)
    (0.0, 1.0)
    """
    among = np.sort(_sample(training) @ training.T, axis=1)[:, -NEIGHBORS - 1 : -1].mean(axis=1)  # without itself
    near = np.sort(_sample(embeddings) @ training.T, axis=1)[:, -NEIGHBORS:].mean(axis=1)
    return float((near < np.percentile(among, FAR) - 1e-6).mean())


def world_note(index: Index, info: RunInfo, bank: RunBank | None) -> str | None:
    """Return a sentence that warns where the images of an index are of another world; None where nothing says so."""
    if bank is None or len(index) == 0 or len(bank.images) <= NEIGHBORS:
        return None
    if share_far(index.embeddings[:, : index.meta.dim], bank.images) < MANY:
        return None
    return f"These images are unlike those that the model was trained on ({trained_on(info)}): answers may mean little."


def _sample(rows: np.ndarray) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64)]
