"""Sentences as a text branch takes them: numbers of words or stems, and what a transformer makes of them."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from features.text.vocabulary import Sentences, Vocabulary, WordIndex, tokenize
from settings import TextSettings
from utils import BadInput

if TYPE_CHECKING:
    from features.text.encoders import SentenceEncoder


@cache
def sentence_encoder(name: str) -> "SentenceEncoder":
    """The transformer `name`, loaded once. Raises BadInput if it cannot be."""
    from features.text.encoders import load_sentence_encoder

    return load_sentence_encoder(name)


class TextProcessor:
    """Turns sentences into what the text branch of these settings takes.

    digest: of the frozen sentence encoder that the run was trained with; any will do while there is none.
    """

    def __init__(self, vocabulary: Vocabulary, text: TextSettings, digest: str = ""):
        self.words = WordIndex(vocabulary, text.stem, text.min_count)
        self.text, self.digest = text, digest

    def read(self, sentences: Sequence[str], features: np.ndarray | None = None, progress: bool = False) -> Sentences:
        """`features`: (N, D) of the frozen sentence encoder where they are at hand; made here where they are not.

        Raises BadInput if the encoder cannot be loaded, or its weights are no longer those the run was trained with.
        """
        encoded = Sentences.encode(sentences, self.words, progress)
        if not self.text.encoder:
            return encoded
        if self.text.finetune:
            from features.text.encoders import tokenize_for

            return encoded.with_tokens(tokenize_for(sentence_encoder(self.text.encoder), sentences))
        if features is None:
            encoder = sentence_encoder(self.text.encoder)
            if self.digest and encoder.digest != self.digest:
                raise BadInput(
                    f"{self.text.encoder}: holds other weights than the run was trained with; put those back, or "
                    f"train again with --fresh"
                )
            features = encoder.features(sentences, progress)[self.text.encoder_pooling]
        return encoded.with_features(features)

    def unknown_words(self, sentence: str) -> list[str]:
        """The words that the text branch has no number for. A transformer takes any."""
        return [] if self.text.encoder else self.words.unknown_words(sentence)

    def knows(self, sentence: str) -> bool:
        """Whether the text branch knows one word at least."""
        words = tokenize(sentence)
        return len(self.unknown_words(sentence)) < len(words) or (bool(self.text.encoder) and bool(sentence.strip()))
