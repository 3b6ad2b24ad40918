"""The text branch of a bag of words, by NumPy alone: a sentence is embedded before torch would have been imported."""

from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors

from features.text.vocabulary import UNKNOWN, Sentences
from settings import Settings
from training.run import AGAIN, MODEL, Run, local_folder, read_run_config
from utils import BadInput


def open_for_sentences(folder: Path | str) -> Run:
    """Open a run as Run.open does; one whose text branch is a bag of words loads torch when an image comes, not before.

    Raises BadInput if `folder` is no run, or one whose training has not finished.
    """
    folder = local_folder(folder)
    kind = BagRun if is_bag(read_run_config(folder)[0]) else Run
    return kind.open(folder)


def is_bag(settings: Settings) -> bool:
    """Return whether the text branch is a bag of words alone."""
    return settings.text.branch == "onehot" and not settings.text.encoder


class BagRun(Run):
    """A run whose sentences do without torch: rows of its weights are added up, as `model.OneHotBranch` does it.

    The embeddings are those of its model, but for the last bits of a float32. Images go through the model itself.
    """

    def read_weights(self) -> object:
        return self.weights

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """What the saved weights hold of the text branch, as they are stored. Raises BadInput if they are damaged."""
        path = self.folder / MODEL
        try:
            with safetensors.safe_open(path, "numpy") as file:
                weights = {n: file.get_tensor(n) for n in file.keys() if n.startswith("text.")}  # noqa: SIM118
            self._check(weights)
            return weights
        except FileNotFoundError:
            raise BadInput(f"{path}: no such file; {AGAIN}") from None
        except (safetensors.SafetensorError, TypeError, KeyError, ValueError, OSError) as error:
            raise BadInput(f"{path}: cut short, or not the weights of this recipe ({error}); {AGAIN}") from None

    def _check(self, weights: dict[str, np.ndarray]) -> None:
        """Raise ValueError or KeyError unless they are those of `model.OneHotBranch` of these settings."""
        words, dim = len(self.processor.words), self.settings.embed_dim
        deep = "text.second.1.weight" in weights
        width = self.settings.text.hidden_dim if deep else dim
        shapes: dict[str, tuple[int, ...]] = {"text.bag.weight": (words, width)}
        shapes |= {"text.bias": (width,)} if "text.bias" in weights else {}
        shapes |= {"text.second.1.weight": (dim, width), "text.second.1.bias": (dim,)} if deep else {}
        for name, shape in shapes.items():
            if weights[name].shape != shape or weights[name].dtype.kind != "f":
                raise ValueError(f"{name} is {weights[name].shape} and not {shape}")

    def _embed(self, sentences: Sentences) -> np.ndarray:
        if not len(sentences):
            return np.empty((0, self.settings.embed_dim), np.float32)
        x = np.stack([self._bag(words) for words in np.split(sentences.numbers, sentences.starts[1:-1])])
        x = x + self.weights["text.bias"] if "text.bias" in self.weights else x
        if "text.second.1.weight" in self.weights:
            weight, bias = (self.weights[f"text.second.1.{name}"].astype(np.float32) for name in ("weight", "bias"))
            x = np.maximum(x, 0) @ weight.T + bias
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return np.abs(x) if self.settings.similarity == "order" else x

    def _bag(self, words: np.ndarray) -> np.ndarray:
        """Numbers of words (n,) → the mean or the sum of their rows (width,); unknown words count for nothing."""
        words, weighting = words[words != UNKNOWN], self.settings.text.weighting
        rows = self.weights["text.bag.weight"][np.unique(words) if weighting == "binary" else words].astype(np.float32)
        return rows.sum(axis=0) / (max(1, len(rows)) if weighting == "mean" else 1)
