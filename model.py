"""The trained half: an image branch and a text branch that end in one space, compared by cosine or order similarity."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from features.text.vocabulary import UNKNOWN, Sentences
from settings import ImageSettings, Settings, TextSettings
from utils import BadInput

HEAD_CHANNELS = 64  # where the setting leaves it open, as in CLIP


class Linear(nn.Linear):
    """A fully connected layer with Glorot's uniform weights and a zero bias, as VSE++ begins."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def heads_for(channels: int, num_heads: int = 0) -> int:
    """Return the number of heads that `image.num_heads` means for maps of `channels`; 0 is CLIP's: one per 64 channels.

    Where 64 does not divide the channels, 0 is the largest number of equal heads of at least 64 channels, or one.
    Raises BadInput if the channels do not split into `num_heads` equal parts.

    >>> heads_for(1280), heads_for(1000), heads_for(1280, 8)
    (20, 10, 8)
    """
    divisors = [count for count in range(1, channels + 1) if channels % count == 0]
    if not num_heads:
        return max(count for count in divisors if count <= max(1, channels // HEAD_CHANNELS))
    if num_heads not in divisors:
        near = sorted(sorted(divisors, key=lambda count: abs(count - num_heads))[:3])
        raise BadInput(
            f"`image.num_heads` {num_heads}: {channels} channels do not split into {num_heads} equal heads; take "
            f"{', '.join(map(str, near))} or another divisor of {channels}, or 0 for one per {HEAD_CHANNELS} channels"
        )
    return num_heads


class AttentionPool(nn.Module):
    """Multi-head attention over the positions of a map, asked by their mean (Radford et al., 2021, section 2.4).

    The H·W positions x_t and, before them, their mean x_0 are 1 + H·W tokens, each with its learned positional
    embedding. Token 0 alone is the query; all tokens are keys and values. Weights begin as in CLIP: normal, with a
    standard deviation of C**-0.5; biases begin at zero.

    The parameters are those of nn.MultiheadAttention, and so are the results, but keys and values of the tokens are
    never computed. With one query q, a head's score q · (K x_t + k) / √d is (Kᵀ q) · x_t / √d but for a term that is
    the same for all t and drops out of the softmax (so the key's bias k has no gradient); and as a head's weights a_t
    add up to 1, Σ a_t (V x_t + v) = V (Σ a_t x_t) + v. Every projection is taken once for an image, not once for a
    token: for 20 heads on 7 x 7 x 1280 that is 14 times fewer multiplications and, forward and backward on a CPU,
    about 9 times quicker (benchmarks/attention_pooling.py).

    grid: (H, W). channels: C. num_heads: as for `heads_for`. Raises BadInput if they do not divide the channels.

    >>> AttentionPool((7, 7), 1280)(torch.zeros(2, 7, 7, 1280)).shape
    torch.Size([2, 1280])
    """

    def __init__(self, grid: tuple[int, ...], channels: int, num_heads: int = 0):
        super().__init__()
        self.grid, self.num_heads = grid, heads_for(channels, num_heads)
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid[0] * grid[1], channels))
        self.attention = nn.MultiheadAttention(channels, self.num_heads, batch_first=True)  # for its parameters
        for weight in (self.positional_embedding, self.attention.in_proj_weight, self.attention.out_proj.weight):
            nn.init.normal_(weight, std=channels**-0.5)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W, C) float32 → (B, C)."""
        if tuple(maps.shape[1:3]) != self.grid:
            raise ValueError(f"maps of {tuple(maps.shape[1:3])} positions for a pooling of {self.grid}")
        embedding, maps = self.positional_embedding, maps.flatten(1, 2)  # (1 + H·W, C); (B, H·W, C), a view
        count, positions, channels = maps.shape
        weights = self.attention.in_proj_weight.unflatten(0, (3, self.num_heads, -1))
        biases = self.attention.in_proj_bias.unflatten(0, (3, self.num_heads, -1))
        (to_query, to_key, to_value), (bias, _, value_bias) = weights, biases  # (heads, d, C), (heads, d)

        mean = maps.mean(dim=1)  # (B, C)
        query = (mean + embedding[0]) @ to_query.flatten(0, 1).T + bias.flatten()
        query = query.unflatten(1, (self.num_heads, -1)) * (channels // self.num_heads) ** -0.5  # (B, heads, d)
        query = torch.einsum("bhd,hdc->bhc", query, to_key)  # Kᵀ q

        # Tokens are a position of the map plus its embedding. A sum over the two parts does without a second copy of
        # all maps, and the mean's score is the mean of scores.
        scores = query @ maps.mT  # (B, heads, H·W)
        scores = torch.cat([scores.mean(dim=2, keepdim=True), scores], dim=2) + query @ embedding.T
        weights = scores.softmax(dim=2)  # (B, heads, 1 + H·W)
        pooled = (weights[:, :, 1:] + weights[:, :, :1] / positions) @ maps + weights @ embedding  # (B, heads, C)
        values = torch.einsum("bhc,hdc->bhd", pooled, to_value) + value_bias
        return F.linear(values.reshape(count, channels), self.attention.out_proj.weight, self.attention.out_proj.bias)


class OneHotBranch(nn.Module):
    """A bag of words (or stems) through one or two fully connected layers.

    A one-hot vector times a weight matrix is a sum of its rows, so the first layer is an embedding bag: with
    weighting "mean" and one layer the sentence is the mean of its word embeddings. Unknown words count for nothing.
    """

    def __init__(self, num_words: int, embed_dim: int, s: TextSettings):
        super().__init__()
        self.weighting = s.weighting
        width = embed_dim if s.num_layers == 1 else s.hidden_dim
        self.bag = nn.EmbeddingBag(
            num_words, width, mode="mean" if s.weighting == "mean" else "sum", padding_idx=UNKNOWN
        )
        nn.init.normal_(self.bag.weight, std=width**-0.5)
        with torch.no_grad():
            self.bag.weight[UNKNOWN].zero_()
        self.dropout = nn.Dropout(s.dropout)
        self.second = None if s.num_layers == 1 else nn.Sequential(nn.ReLU(), Linear(width, embed_dim))
        self.bias = nn.Parameter(torch.zeros(width)) if s.num_layers == 2 or s.bias else None

    def forward(self, sentences: Sentences) -> Tensor:
        """B sentences → (B, embed_dim)."""
        if self.weighting == "binary":
            sentences = Sentences.of([sorted(set(words)) for words in _lists(sentences)])
        device = self.bag.weight.device
        x = self.bag(_tensor(sentences.numbers, device), _tensor(sentences.starts[:-1], device))
        x = self.dropout(x if self.bias is None else x + self.bias)
        return x if self.second is None else self.second(x)


class GRUBranch(nn.Module):
    """Word embeddings through a GRU of `embed_dim` units; its last state, or the mean or maximum over words (Kiros et
    al., 2014)."""

    def __init__(self, num_words: int, embed_dim: int, s: TextSettings):
        super().__init__()
        self.pooling = s.pooling
        self.embedding = nn.Embedding(num_words, s.word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(s.dropout)
        self.gru = nn.GRU(s.word_dim, embed_dim, batch_first=True, bidirectional=s.bidirectional)

    def forward(self, sentences: Sentences) -> Tensor:
        """B sentences → (B, embed_dim)."""
        lengths = torch.from_numpy(sentences.lengths)  # on the CPU: packing wants them there
        words = _tensor(sentences.numbers, self.embedding.weight.device).split(lengths.tolist())
        padded = nn.utils.rnn.pad_sequence(list(words), batch_first=True, padding_value=UNKNOWN)
        packed = pack_padded_sequence(
            self.dropout(self.embedding(padded)), lengths, batch_first=True, enforce_sorted=False
        )
        states, last = self.gru(packed)
        if self.pooling == "last":
            return self.dropout(last.mean(dim=0))  # (directions, B, embed_dim): the directions are averaged
        return self.dropout(self._pooled(states, lengths))

    def _pooled(self, packed: PackedSequence, lengths: Tensor) -> Tensor:
        states, _ = pad_packed_sequence(
            packed, batch_first=True
        )  # (B, longest, directions x embed_dim), padded with zeros
        if self.gru.bidirectional:
            states = states.unflatten(2, (2, -1)).mean(dim=2)
        lengths = lengths.to(states.device)
        if self.pooling == "mean":
            return states.sum(dim=1) / lengths[:, None]
        padding = torch.arange(states.shape[1], device=states.device)[None, :] >= lengths[:, None]
        return states.masked_fill(padding[:, :, None], -torch.inf).amax(dim=1)


class TransformerBranch(nn.Module):
    """A transformer's feature of a sentence through an optional layer norm and a linear layer.

    The features are the cached ones of a frozen encoder, (B, encoder_dim), or those of `dims.transformer`, which is
    trained too.
    """

    def __init__(self, dims: "InputDims", embed_dim: int, s: TextSettings):
        super().__init__()
        self.transformer, self.padding, self.pooling = dims.transformer, dims.padding, s.encoder_pooling
        self.norm = nn.LayerNorm(dims.encoder_dim) if s.layer_norm else None
        self.dropout = nn.Dropout(s.dropout)
        self.linear = Linear(dims.encoder_dim, embed_dim)

    def forward(self, sentences: Sentences) -> Tensor:
        """B sentences → (B, embed_dim)."""
        x = self._features(sentences)
        x = F.normalize(x, dim=1) if self.norm is None else self.norm(x)
        return self.linear(self.dropout(x))

    def _features(self, sentences: Sentences) -> Tensor:
        device = self.linear.weight.device
        if self.transformer is None:
            assert sentences.features is not None
            return _tensor(sentences.features, device)
        from features.text.encoders import POOLINGS, pad

        assert sentences.tokens is not None
        ids, mask = (tensor.to(device) for tensor in pad(sentences.tokens, self.padding))
        states = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        return POOLINGS[self.pooling](states, mask)


class JoinedBranch(nn.Module):
    """Words and a transformer's feature of the whole sentence, added up in the common space."""

    def __init__(self, words: nn.Module, sentence: TransformerBranch):
        super().__init__()
        self.words, self.sentence = words, sentence

    def forward(self, sentences: Sentences) -> Tensor:
        """B sentences → (B, embed_dim)."""
        return self.words(sentences) + self.sentence(sentences)


class RelativeBranch(nn.Module):
    """Similarities of a feature to `anchors` training pairs, the `top_k` largest of them to a `power` (ASIF, Norelli et
    al., 2023). The anchors are kept, not trained: training.closed_form fills them in.

    >>> RelativeBranch(size=8, anchors=5, top_k=2)(torch.rand(3, 8)).shape
    torch.Size([3, 5])
    """

    def __init__(self, size: int, anchors: int, top_k: int, power: float = 1.0):
        super().__init__()
        self.top_k, self.power = min(top_k, anchors), power
        self.anchors = nn.Parameter(torch.zeros(anchors, size), requires_grad=False)

    def forward(self, inputs: Tensor | Sentences) -> Tensor:
        """(B, size), or B sentences with features of it → (B, anchors)."""
        if isinstance(inputs, Sentences):
            assert inputs.features is not None
            inputs = _tensor(inputs.features, self.anchors.device)
        similarities = F.normalize(inputs, dim=1) @ self.anchors.T
        values, nearest = similarities.topk(self.top_k, dim=1)
        return torch.zeros_like(similarities).scatter_(1, nearest, values.clamp(min=0) ** self.power)


@dataclass(frozen=True)
class InputDims:
    """What a model must know of its data. image_dim: size of an image feature, of a map its channels; num_words: of the
    vocabulary, the unknown one included; grid: (H, W) of a map; encoder_dim: size of a sentence encoder's feature;
    transformer, padding: the encoder itself and its padding token, where it is trained too."""

    image_dim: int
    num_words: int
    grid: tuple[int, ...] = ()
    encoder_dim: int = 0
    transformer: nn.Module | None = None
    padding: int = 0


def image_branch(s: ImageSettings, dims: InputDims, embed_dim: int) -> nn.Sequential:
    """Return a branch (B, image_dim) → (B, embed_dim), or (B, H, W, image_dim) → (B, embed_dim) with attention."""
    dropout = nn.Dropout(s.dropout)
    if s.branch == "attention":
        return nn.Sequential(
            AttentionPool(dims.grid, dims.image_dim, s.num_heads), dropout, Linear(dims.image_dim, embed_dim)
        )
    if s.branch == "linear":
        return nn.Sequential(dropout, Linear(dims.image_dim, embed_dim))
    first, second = Linear(dims.image_dim, s.hidden_dim), Linear(s.hidden_dim, embed_dim)
    return nn.Sequential(dropout, first, nn.ReLU(), nn.Dropout(s.dropout), second)


def text_branch(s: TextSettings, dims: InputDims, embed_dim: int) -> nn.Module:
    """Return a branch from B sentences to (B, embed_dim)."""
    branches = {"gru": GRUBranch, "onehot": OneHotBranch}
    words = branches[s.branch](dims.num_words, embed_dim, s) if s.branch in branches else None
    if not s.encoder:
        assert words is not None  # settings.py sees to it that branch = "encoder" names one
        return words
    sentence = TransformerBranch(dims, embed_dim, s)
    return sentence if words is None else JoinedBranch(words, sentence)


def branches(s: Settings, dims: InputDims) -> tuple[nn.Module, nn.Module]:
    """Return image branch and text branch."""
    if s.loss.name == "asif":
        image, text = (
            RelativeBranch(size, s.embed_dim, s.loss.top_k, s.loss.power) for size in (dims.image_dim, dims.encoder_dim)
        )
        return image, text
    return image_branch(s.image, dims, s.embed_dim), text_branch(s.text, dims, s.embed_dim)


class TwoBranch(nn.Module):
    """Both branches, and the normalization that the similarity wants: evaluation cannot disagree with training.

    >>> model = TwoBranch(Settings(embed_dim=64), InputDims(image_dim=2048, num_words=1000))
    >>> images, captions = torch.rand(3, 2048), Sentences.of([[4, 1], [7], [2, 2, 9]])
    >>> model.embed_images(images).shape, model.embed_sentences(captions).shape
    (torch.Size([3, 64]), torch.Size([3, 64]))
    """

    def __init__(self, settings: Settings, dims: InputDims):
        super().__init__()
        self.order = settings.similarity == "order"
        self.image, self.text = branches(settings, dims)
        # The scalars that contrastive losses learn; ranks do not depend on them.
        if settings.loss.name in ("infonce", "siglip"):
            self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.loss.temperature)))
        if settings.loss.name == "siglip":
            self.score_bias = nn.Parameter(torch.tensor(settings.loss.bias))

    def scale(self) -> Tensor:
        """Return one over the learned temperature, kept from growing beyond 100 as CLIP does."""
        return self.log_scale.exp().clamp(max=100.0)

    def embed_images(self, features: Tensor) -> Tensor:
        """Embed (B, D) features or (B, H, W, C) maps, float32 → (B, embed_dim), unit length; for order non-negative."""
        return self._normalized(self.image(features))

    def embed_sentences(self, sentences: Sentences) -> Tensor:
        """Embed B sentences → (B, embed_dim), unit length; for order non-negative."""
        return self._normalized(self.text(sentences))

    def _normalized(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        return x.abs() if self.order else x  # Vendrov et al., 2016, section 3.2


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


def _lists(sentences: Sentences) -> list[list[int]]:
    return [words.tolist() for words in np.split(sentences.numbers, sentences.starts[1:-1])]
