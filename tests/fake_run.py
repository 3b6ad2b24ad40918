"""A run for the tests of index and search: embeddings without a network, and a count of what was embedded."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from features.dataset import Dataset
from features.dataset import Image as DatasetImage
from features.extraction import Unreadable, read_image
from features.prepared import write_prepared
from features.store import write_store
from features.vocabulary import Vocabulary, tokenise
from utils import BadInput

DIM = 24
WORDS = {"a", "red", "house", "dog", "cat", "picture", "of", "two", "pictures", "one", "caption", *map(str, range(20))}


def paint(path, seed, size=(40, 30)):
    """A picture of noise that depends on the seed alone."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


@dataclass
class _FakeRun:
    """root: its folder is made below; name: stands for its weights. It embeds pictures by their pixels."""

    root: Path
    similarity: str = "cosine"
    name: str = "run"
    stop_after: int | None = None  # images, then it is killed

    def __post_init__(self):
        self.folder = self.root / self.name  # not there: opening it again must be asked for
        self.settings = SimpleNamespace(
            similarity=self.similarity,
            dim=DIM,
            image=SimpleNamespace(normalise=True),
            text=SimpleNamespace(encoder="", finetune=False),
        )
        self.facts = SimpleNamespace(
            data=str(self.root / "nowhere"), features=("noise",), digests=("d1",), sizes=(DIM,), grid=()
        )
        self.embedded = []

    def digest(self):
        return hashlib.sha256(f"{self.name} {self.similarity}".encode()).hexdigest()[:16]

    def unit(self, rows):
        rows = np.asarray(rows, np.float32)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return np.abs(rows) if self.similarity == "order" else rows

    def embed_sentences(self, sentences):
        seeds = [int(hashlib.sha256(sentence.encode()).hexdigest()[:8], 16) for sentence in sentences]
        return self.unit([np.random.default_rng(seed).normal(size=DIM) for seed in seeds])

    def embed_features(self, features):
        return self.unit(features)

    def embed_readable(self, paths, batch=16, workers=0):
        for place, path in enumerate(paths):
            if self.stop_after is not None and len(self.embedded) >= self.stop_after:
                raise KeyboardInterrupt
            try:
                pixels = np.asarray(read_image(path), np.float32).reshape(-1)[:DIM] - 127
            except Unreadable as error:
                yield place, str(error)
                continue
            self.embedded.append(path)
            yield place, self.unit(pixels[None])[0]

    def embed_images(self, paths):
        rows = []
        for place, row in self.embed_readable(paths):
            if isinstance(row, str):
                raise BadInput(f"{paths[place]}: cannot be read ({row}); mend it, or leave it out")
            rows.append(row)
        return np.stack(rows)

    def unknown_words(self, sentence):
        return [word for word in tokenise(sentence) if word not in WORDS]

    def knows(self, sentence):
        return len(self.unknown_words(sentence)) < len(tokenise(sentence))

    def prepare(self, root, count, digest="d1"):
        """A prepared folder of `count` pictures with features, six of them for training, which is this run's own."""
        folder = root / "data"
        folder.mkdir(exist_ok=True)
        images = []
        for number in range(count):
            paint(root / "photographs" / f"{number}.png", number)
            captions = [f"picture {number} of a dog"] + ["two pictures of one caption"] * (number > 7)
            split = "train" if number < 6 else "val" if number < 8 else "test"
            path = root / "photographs" / f"{number}.png"
            images.append(DatasetImage(f"{number}.png", path, split, tuple(captions)))
        vocabulary = Vocabulary.build(caption for image in images for caption in image.captions)
        write_prepared(folder, Dataset("drawn", tuple(images)), root / "photographs", vocabulary)
        rows = np.random.default_rng(0).normal(size=(count, DIM)).astype(np.float32)
        ids = [image.id for image in images]
        write_store(folder / "noise.h5", ids, (DIM,), "float32", {"digest": digest}, [rows])
        self.facts.data = str(folder)
        return folder


FakeRun: Any = _FakeRun  # stands for a Run wherever one is wanted
