"""Corrected search: an index whose rows carry, as one more dimension, what a correction takes from their scores.

That of an image is its bias with the training captions of the run's bank, that of a caption its bias with the training
images (metrics/correction.py). A query asks for corrected scores by its own last dimension; one for images similar to
an image does not. Every search for the largest score, by a graph too, finds corrected ones so.
"""

from dataclasses import dataclass

import numpy as np
import torch

from metrics.correction import CORRECTIONS, Retrieval, biases, item_column, query_column
from training.bank import BANK, RunBank, read_bank
from training.run import Run
from utils import BadInput, did_you_mean

NONE = "none"  # asks for an index without a correction, whatever it has
BY_A_BIAS = tuple(name for name in CORRECTIONS if name != "qb_norm")


def check_correction(name: str | None) -> None:
    """Raise BadInput for a name that is no correction, or one that is no bias of an item alone."""
    if name == "qb_norm":
        raise BadInput("`correction` qb_norm: corrects some queries only, which an index cannot tell; choose another")
    if name == "sinkhorn":
        raise BadInput("`correction` sinkhorn: needs all queries at once, which an index never has; choose another")
    if name is not None and name not in (*BY_A_BIAS, NONE):
        raise BadInput(f"`correction` {name}: no such correction; {did_you_mean(name, [*BY_A_BIAS, NONE])}")


@dataclass(frozen=True)
class Corrector:
    """A correction of a run's scores by its bank. name: one of BY_A_BIAS."""

    name: str
    similarity: str
    bank: RunBank

    @classmethod
    def of_run(cls, run: Run, name: str) -> "Corrector":
        """Read the bank of a run. Raises BadInput if it has none."""
        bank = read_bank(run.folder)
        if bank is None:
            raise BadInput(
                f"{run.folder}: has no {BANK}, which `correction` {name} needs: it was trained before runs kept one; "
                f"train it again with `fresh`"
            )
        return cls(name, run.settings.similarity, bank)

    def rows(self, embeddings: np.ndarray, direction: str) -> np.ndarray:
        """Return rows (N, D + 1) float32 of embeddings (N, D): images for "text_to_image", or else captions."""
        retrieval, items = Retrieval(self.similarity, direction), torch.from_numpy(np.array(embeddings, np.float32))
        parameters = self.bank.chosen["train"][direction][self.name]
        bias = biases(self.name, parameters, retrieval, items, self.bank.side(direction))
        return np.concatenate([embeddings, item_column(retrieval, bias).numpy()], axis=1)


def asking(similarity: str, direction: str, queries: np.ndarray) -> np.ndarray:
    """Return queries (Q, D + 1) float32 that ask rows for corrected scores; `direction` as in `Corrector.rows`.

    Those of order come less 1 (`with_bias`).
    """
    column = query_column(Retrieval(similarity, direction), torch.from_numpy(queries)).numpy()
    return np.concatenate([queries, column], axis=1)


def not_asking(queries: np.ndarray) -> np.ndarray:
    """Return queries (Q, D + 1) whose inner products with corrected rows are those of the embeddings."""
    return np.pad(queries, ((0, 0), (0, 1)))
