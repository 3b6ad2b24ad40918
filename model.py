"""The trained half: an image branch and a text branch that end in one space, compared by cosine or order similarity."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from features.vocabulary import UNKNOWN, Sentences
from pooling import AttentionPool
from settings import ImageSettings, Settings, TextSettings


class Linear(nn.Linear):
    """A fully connected layer with Glorot's uniform weights and a zero bias, as VSE++ begins."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def linear_image(features: int, dim: int, s: ImageSettings) -> nn.Module:
    """(B, features) → (B, dim)."""
    return nn.Sequential(nn.Dropout(s.dropout), Linear(features, dim))


def perceptron_image(features: int, dim: int, s: ImageSettings) -> nn.Module:
    """(B, features) → (B, hidden) → (B, dim)."""
    return nn.Sequential(
        nn.Dropout(s.dropout), Linear(features, s.hidden), nn.ReLU(), nn.Dropout(s.dropout), Linear(s.hidden, dim)
    )


def attention_image(features: int, dim: int, s: ImageSettings, grid: tuple[int, ...]) -> nn.Module:
    """(B, H, W, features) → (B, features) → (B, dim). grid: (H, W)."""
    height, width = grid
    pool = AttentionPool((height, width), features, s.heads)
    return nn.Sequential(pool, nn.Dropout(s.dropout), Linear(features, dim))


class OneHotText(nn.Module):
    """A bag of words (or stems) through one or two fully connected layers.

    A one-hot vector times a weight matrix is a sum of its rows, so the first layer is an embedding bag: with
    weighting "mean" and one layer the sentence is the mean of its word embeddings. Unknown words count for nothing.
    """

    def __init__(self, words: int, dim: int, s: TextSettings):
        super().__init__()
        self.weighting = s.weighting
        width = dim if s.layers == 1 else s.hidden
        self.bag = nn.EmbeddingBag(words, width, mode="mean" if s.weighting == "mean" else "sum", padding_idx=UNKNOWN)
        nn.init.normal_(self.bag.weight, std=width**-0.5)
        with torch.no_grad():
            self.bag.weight[UNKNOWN].zero_()
        self.dropout = nn.Dropout(s.dropout)
        self.second = None if s.layers == 1 else nn.Sequential(nn.ReLU(), Linear(width, dim))
        self.bias = nn.Parameter(torch.zeros(width)) if s.layers == 2 or s.bias else None

    def forward(self, sentences: Sentences) -> Tensor:
        """B sentences → (B, dim)."""
        if self.weighting == "binary":
            sentences = Sentences.of([sorted(set(words)) for words in _lists(sentences)])
        device = self.bag.weight.device
        x = self.bag(_tensor(sentences.numbers, device), _tensor(sentences.starts[:-1], device))
        x = self.dropout(x if self.bias is None else x + self.bias)
        return x if self.second is None else self.second(x)


class GRUText(nn.Module):
    """Word embeddings through a GRU of `dim` units; pooled by its last state, the mean or the maximum over words."""

    def __init__(self, words: int, dim: int, s: TextSettings):
        super().__init__()
        self.pooling = s.pooling
        self.embedding = nn.Embedding(words, s.words)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(s.dropout)
        self.gru = nn.GRU(s.words, dim, batch_first=True, bidirectional=s.bidirectional)

    def forward(self, sentences: Sentences) -> Tensor:
        """B sentences → (B, dim)."""
        lengths = torch.from_numpy(sentences.lengths)  # on the CPU: packing wants them there
        words = _tensor(sentences.numbers, self.embedding.weight.device).split(lengths.tolist())
        padded = nn.utils.rnn.pad_sequence(list(words), batch_first=True, padding_value=UNKNOWN)
        packed = pack_padded_sequence(
            self.dropout(self.embedding(padded)), lengths, batch_first=True, enforce_sorted=False
        )
        states, last = self.gru(packed)
        if self.pooling == "last":
            return self.dropout(last.mean(dim=0))  # (directions, B, dim): the directions are averaged
        return self.dropout(self._pooled(states, lengths))

    def _pooled(self, packed, lengths: Tensor) -> Tensor:
        states, _ = pad_packed_sequence(packed, batch_first=True)  # (B, longest, directions x dim), padded with zeros
        if self.gru.bidirectional:
            states = states.unflatten(2, (2, -1)).mean(dim=2)
        lengths = lengths.to(states.device)
        if self.pooling == "mean":
            return states.sum(dim=1) / lengths[:, None]
        padding = torch.arange(states.shape[1], device=states.device)[None, :] >= lengths[:, None]
        return states.masked_fill(padding[:, :, None], -torch.inf).amax(dim=1)


class EncoderText(nn.Module):
    """A transformer's feature of a sentence through an optional layer norm and a linear layer.

    The features are the cached ones of a frozen encoder (B, size), or those of `transformer`, which is trained too.
    """

    def __init__(self, size: int, dim: int, s: TextSettings, transformer: nn.Module | None = None, padding: int = 0):
        super().__init__()
        self.transformer, self.padding, self.pooling = transformer, padding, s.encoder_pooling
        self.norm = nn.LayerNorm(size) if s.layer_norm else None
        self.dropout = nn.Dropout(s.dropout)
        self.linear = Linear(size, dim)

    def forward(self, sentences: Sentences) -> Tensor:
        """B sentences → (B, dim)."""
        x = self._features(sentences)
        x = F.normalize(x, dim=1) if self.norm is None else self.norm(x)
        return self.linear(self.dropout(x))

    def _features(self, sentences: Sentences) -> Tensor:
        device = self.linear.weight.device
        if self.transformer is None:
            assert sentences.features is not None
            return _tensor(sentences.features, device)
        from features.text_encoders import POOLINGS, pad

        assert sentences.tokens is not None
        ids, mask = (tensor.to(device) for tensor in pad(sentences.tokens, self.padding))
        states = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        return POOLINGS[self.pooling](states, mask)


class JoinedText(nn.Module):
    """Words and a transformer's feature of the whole sentence, added up in the common space."""

    def __init__(self, words: nn.Module, sentence: EncoderText):
        super().__init__()
        self.words, self.sentence = words, sentence

    def forward(self, sentences: Sentences) -> Tensor:
        """B sentences → (B, dim)."""
        return self.words(sentences) + self.sentence(sentences)


IMAGE_BRANCHES = {"linear": linear_image, "perceptron": perceptron_image}
TEXT_BRANCHES = {"gru": GRUText, "onehot": OneHotText}


@dataclass(frozen=True)
class Sizes:
    """What a model must know of its data: size of an image feature (of a map, its channels), words, (H, W) of a map,
    size of a sentence encoder's feature; and the encoder itself with its padding, where it is trained too."""

    features: int
    words: int
    grid: tuple[int, ...] = ()
    encoder: int = 0
    transformer: nn.Module | None = None
    padding: int = 0


def image_branch(s: Settings, sizes: Sizes) -> nn.Module:
    if s.image.branch == "attention":
        return attention_image(sizes.features, s.dim, s.image, sizes.grid)
    return IMAGE_BRANCHES[s.image.branch](sizes.features, s.dim, s.image)


def text_branch(s: Settings, sizes: Sizes) -> nn.Module:
    if not s.text.encoder:
        return TEXT_BRANCHES[s.text.branch](sizes.words, s.dim, s.text)
    words = None if s.text.branch == "encoder" else TEXT_BRANCHES[s.text.branch](sizes.words, s.dim, s.text)
    sentence = EncoderText(sizes.encoder, s.dim, s.text, sizes.transformer, sizes.padding)
    return sentence if words is None else JoinedText(words, sentence)


class TwoBranch(nn.Module):
    """Both branches, and the normalisation that the similarity wants: evaluation cannot disagree with training."""

    def __init__(self, settings: Settings, sizes: Sizes):
        super().__init__()
        self.order = settings.similarity == "order"
        self.image = image_branch(settings, sizes)
        self.text = text_branch(settings, sizes)
        # The scalars that contrastive losses learn; ranks do not depend on them.
        if settings.loss.name in ("infonce", "siglip"):
            self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.loss.temperature)))
        if settings.loss.name == "siglip":
            self.score_bias = nn.Parameter(torch.tensor(settings.loss.bias))

    def scale(self) -> Tensor:
        """One over the learnt temperature, kept from growing beyond 100 as CLIP does."""
        return self.log_scale.exp().clamp(max=100.0)

    def embed_images(self, features: Tensor) -> Tensor:
        """(B, features) or (B, H, W, C) float32 → (B, dim), unit length; non-negative too for order similarity."""
        return self._normalised(self.image(features))

    def embed_sentences(self, sentences: Sentences) -> Tensor:
        """B sentences → (B, dim), unit length; non-negative too for order similarity."""
        return self._normalised(self.text(sentences))

    def _normalised(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        return x.abs() if self.order else x  # Vendrov et al., 2016, section 3.2


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


def _lists(sentences: Sentences) -> list[list[int]]:
    return [words.tolist() for words in np.split(sentences.numbers, sentences.starts[1:-1])]
