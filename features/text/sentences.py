"""Sentences as a text branch takes them: numbers of words or stems, and what a transformer makes of them."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from features.text.hub import is_dual
from features.text.vocabulary import Sentences, Vocabulary, WordIndex, tokenize
from utils import BadInput

if TYPE_CHECKING:
    from features.dual_encoders import DualSentences
    from features.text.encoders import SentenceEncoder


@cache
def sentence_encoder(name: str) -> "SentenceEncoder":
    """Load the transformer `name`, once. Raises BadInput if it cannot be, or its features came without it."""
    from features.text.store import PRECOMPUTED

    if name.startswith(PRECOMPUTED):
        raise BadInput(f"{name}: sentence features that came without their encoder: no other sentence can be read")
    from features.text.encoders import load_sentence_encoder

    return load_sentence_encoder(name)


@cache
def frozen_encoder(name: str) -> "SentenceEncoder | DualSentences":
    """Load what makes features of sentences, once: a transformer, or a dual encoder. Raises BadInput."""
    from features.dual_encoders import load_sentence_side

    return load_sentence_side(name) if is_dual(name) else sentence_encoder(name)


def as_sentences(sentences: str | Iterable[str]) -> list[str]:
    """Return sentences as a list, one alone as a list of one. Raises BadInput for what is no text.

    >>> as_sentences("a dog"), as_sentences(("a dog", "a cat"))
    (['a dog'], ['a dog', 'a cat'])
    """
    texts = list(sentences) if isinstance(sentences, Iterable) and not isinstance(sentences, str) else [sentences]
    for text in texts:
        if not isinstance(text, str):
            raise BadInput(f"{str(text)[:80]!r}: is {type(text).__name__}, no sentence; give text, or a list of texts")
    return texts


class TextProcessor:
    """Turns sentences into what a text branch takes.

    stem, min_count: which words count (see WordIndex). encoder: name of a transformer, "" for none; encoder_pooling: of
    its states; finetune: it is trained too, and takes tokens. digest: of a frozen encoder's weights, "" for any.

    >>> TextProcessor(Vocabulary.build(["two dogs", "a dog"]), stem=True).encode(["Two dogs run"]).numbers.tolist()
    [3, 1, 0]
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        stem: bool = False,
        min_count: int = 1,
        encoder: str = "",
        encoder_pooling: str = "mean",
        finetune: bool = False,
        digest: str = "",
    ):
        self.vocabulary, self.words = vocabulary, WordIndex(vocabulary, stem, min_count)
        self.encoder, self.encoder_pooling, self.finetune, self.digest = encoder, encoder_pooling, finetune, digest

    def encode(self, sentences: Sequence[str], features: np.ndarray | None = None, progress: bool = False) -> Sentences:
        """Encode N sentences. features: (N, D) of the frozen encoder, where they are cached; else made here.

        Raises BadInput if the encoder cannot be loaded, or its weights are not those of `digest`.
        """
        encoded = Sentences.encode(sentences, self.words, progress)
        if not self.encoder:
            return encoded
        if self.finetune:
            from features.text.encoders import tokenize_for

            return encoded.with_tokens(tokenize_for(sentence_encoder(self.encoder), sentences))
        if features is None:
            encoder = frozen_encoder(self.encoder)
            if self.digest and encoder.digest != self.digest:
                raise BadInput(
                    f"{self.encoder}: holds other weights than the run was trained with; put those back, or train "
                    f"again with `fresh`"
                )
            features = encoder.features(sentences, progress)[self.encoder_pooling]
        return encoded.with_features(features)

    def unknown_words(self, sentence: str) -> list[str]:
        """Return the words that the text branch has no number for. A transformer takes any."""
        return [] if self.encoder else self.words.unknown_words(sentence)

    def knows(self, sentence: str) -> bool:
        """Return whether the text branch knows one word at least."""
        words = tokenize(sentence)
        return len(self.unknown_words(sentence)) < len(words) or (bool(self.encoder) and bool(sentence.strip()))
