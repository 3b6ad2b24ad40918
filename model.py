"""The trained half: an image branch and a text branch that end in one space, compared by cosine or order similarity."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from features.device import default_device
from features.images.views import Features
from features.text.vocabulary import UNKNOWN, Sentences
from layers.gru import gru_states
from layers.heads import Linear, head_layers
from layers.inputs import Standardize
from layers.pooling import GPO, AttentionPool, GPOPool
from settings import ImageSettings, Settings, TextSettings

ROWS_PER_BLOCK = 1024  # features that are standardized at a time
Mix = Callable[[Tensor], Tensor]  # from the features of B sentences to those of their mixtures


class WordDropout(nn.Module):
    """Drops a share of the words of every sentence in training; one word stays."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, sentences: Sentences) -> Sentences:
        """B sentences → B sentences."""
        if not (self.training and self.share):
            return sentences
        return sentences.drop(torch.rand(len(sentences.numbers)).numpy(), self.share)


class OneHotBranch(nn.Module):
    """A bag of words (or stems) through one or two fully connected layers.

    A one-hot vector times a weight matrix is a sum of its rows, so the first layer is an embedding bag: with
    weighting "mean" and one layer the sentence is the mean of its word embeddings. Unknown words count for nothing.
    """

    def __init__(self, num_words: int, embed_dim: int, s: TextSettings):
        super().__init__()
        self.weighting, self.drop_words = s.weighting, WordDropout(s.word_dropout)
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

    def forward(self, sentences: Sentences, mix: Mix | None = None) -> Tensor:
        """B sentences, or mixtures of them → (B, embed_dim). The first layer of mixed bags is the mixed first layer."""
        sentences = self.drop_words(sentences)
        if self.weighting == "binary":
            sentences = Sentences.of([sorted(set(words)) for words in _lists(sentences)])
        device = self.bag.weight.device
        x = self.bag(_tensor(sentences.numbers, device), _tensor(sentences.starts[:-1], device))
        return self.behind(x if mix is None else mix(x))

    def behind(self, x: Tensor) -> Tensor:
        """What is behind the first layer: (B, width) → (B, embed_dim)."""
        x = self.dropout(x if self.bias is None else x + self.bias)
        return x if self.second is None else self.second(x)


class GRUBranch(nn.Module):
    """Word embeddings through a GRU of `embed_dim` units (Kiros et al., 2014); its last state, or those of all words
    pooled: their mean, their maximum, or by GPO. With `residual` the bag of words goes past the GRU, too."""

    def __init__(self, num_words: int, embed_dim: int, s: TextSettings):
        super().__init__()
        self.pooling, self.drop_words = s.pooling, WordDropout(s.word_dropout)
        self.embedding = nn.Embedding(num_words, s.word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(s.dropout)
        self.gru = nn.GRU(s.word_dim, embed_dim, batch_first=True, bidirectional=s.bidirectional)
        self.gpo = GPO() if s.pooling == "gpo" else None
        self.past = Linear(s.word_dim, embed_dim) if s.residual else None

    def forward(self, sentences: Sentences, mix: Mix | None = None) -> Tensor:
        """B sentences → (B, embed_dim)."""
        assert mix is None  # settings.py sees to it: there is no sentence between two
        sentences = self.drop_words(sentences)
        lengths = torch.from_numpy(sentences.lengths)  # on the CPU: packing wants them there
        words = _tensor(sentences.numbers, self.embedding.weight.device).split(lengths.tolist())
        padded = nn.utils.rnn.pad_sequence(list(words), batch_first=True, padding_value=UNKNOWN)
        if self.gru.bidirectional or padded.is_cuda:  # cuDNN has its own way
            states, last = self.gru(self._packed(self.dropout(self.embedding(padded)), lengths))
            last = last.mean(dim=0)  # (directions, B, embed_dim): directions are averaged
        else:
            states, last = self._states(padded, lengths)
        x = last if self.pooling == "last" else self.pooled(pad_packed_sequence(states, batch_first=True)[0], lengths)
        return self.dropout(x if self.past is None else x + self.past(self._bag(sentences)))

    def _states(self, padded: Tensor, lengths: Tensor) -> tuple[PackedSequence, Tensor]:
        """Words (B, longest) → packed states, and the last of each sentence (B, embed_dim)."""
        if self.training and self.dropout.p:  # no two words are the same any more
            packed = self._packed(self.dropout(self.embedding(padded)), lengths)
            x, index = packed.data, torch.arange(len(packed.data))
        else:
            packed = self._packed(padded, lengths)
            distinct, index = packed.data.unique(return_inverse=True)
            x = self.embedding(distinct)
        counts = packed.batch_sizes
        states = packed._replace(data=gru_states(self.gru, x, index, counts.tolist()))
        order = packed.unsorted_indices
        assert order is not None  # sentences came in any order
        return states, states.data[(counts.cumsum(0) - counts)[lengths - 1] + order]

    def _packed(self, padded: Tensor, lengths: Tensor) -> PackedSequence:
        return pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)

    def _bag(self, sentences: Sentences) -> Tensor:
        weight = self.embedding.weight
        numbers, starts = (_tensor(array, weight.device) for array in (sentences.numbers, sentences.starts[:-1]))
        return F.embedding_bag(numbers, weight, starts, mode="mean", padding_idx=UNKNOWN)

    def pooled(self, states: Tensor, lengths: Tensor) -> Tensor:
        """States (B, longest, directions x embed_dim), zeros beyond the lengths (B,) → (B, embed_dim)."""
        if self.gru.bidirectional:
            states = states.unflatten(2, (2, -1)).mean(dim=2)
        lengths = lengths.to(states.device)
        if self.pooling == "mean":
            return states.sum(dim=1) / lengths[:, None]
        padding = torch.arange(states.shape[1], device=states.device)[None, :] >= lengths[:, None]
        if self.gpo is not None:
            return self.gpo(states, ~padding)
        return states.masked_fill(padding[:, :, None], -torch.inf).amax(dim=1)


class TransformerBranch(nn.Module):
    """A transformer's feature of a sentence through an optional layer norm and a head, one linear layer by default.

    The features are the cached ones of a frozen encoder, (B, encoder_dim), or those of `dims.transformer`, which is
    trained too.
    """

    def __init__(self, dims: "InputDims", embed_dim: int, s: TextSettings):
        super().__init__()
        self.transformer, self.padding, self.pooling = dims.transformer, dims.padding, s.encoder_pooling
        self.norm = nn.LayerNorm(dims.encoder_dim) if s.layer_norm else None
        self.dropout = nn.Dropout(s.dropout if s.head != "residual" else 0.0)  # whose blocks have theirs
        layers = head_layers(
            s.head,
            dims.encoder_dim,
            embed_dim,
            hidden_dim=s.hidden_dim,
            num_blocks=s.num_blocks,
            dropout=s.dropout,
        )
        self.linear = nn.Sequential(*layers) if len(layers) > 1 else layers[0]

    def forward(self, sentences: Sentences, mix: Mix | None = None) -> Tensor:
        """B sentences, or mixtures of them → (B, embed_dim)."""
        x = self._features(sentences)
        x = F.normalize(x, dim=1) if self.norm is None else x
        return self.behind(x if mix is None else mix(x))

    def behind(self, x: Tensor) -> Tensor:
        """What is behind features, (B, encoder_dim), L2-normalized where there is no layer norm: → (B, embed_dim)."""
        return self.linear(self.dropout(x if self.norm is None else self.norm(x)))

    def _features(self, sentences: Sentences) -> Tensor:
        device = next(self.linear.parameters()).device
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

    def forward(self, sentences: Sentences, mix: Mix | None = None) -> Tensor:
        """B sentences, or mixtures of them → (B, embed_dim)."""
        return self.words(sentences, mix) + self.sentence(sentences, mix)


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

    def forward(self, inputs: Tensor | Sentences, mix: Mix | None = None) -> Tensor:
        """(B, size), or B sentences with features of it → (B, anchors)."""
        if isinstance(inputs, Sentences):
            assert inputs.features is not None
            inputs = _tensor(inputs.features, self.anchors.device)
        similarities = F.normalize(inputs, dim=1) @ self.anchors.T
        values, nearest = similarities.topk(self.top_k, dim=1)
        return torch.zeros_like(similarities).scatter_(1, nearest, values.clamp(min=0) ** self.power)


class AsItIs(nn.Module):
    """What a dual encoder makes of an image or a sentence, with nothing behind it: loss.name "none".

    >>> AsItIs()(torch.ones(1, 2))
    tensor([[1., 1.]])
    """

    def forward(self, inputs: Tensor | Sentences, mix: Mix | None = None) -> Tensor:
        """(B, D), or B sentences with features of it → (B, D)."""
        if isinstance(inputs, Tensor):
            return inputs
        assert inputs.features is not None
        return _tensor(inputs.features, default_device())


@dataclass(frozen=True)
class InputDims:
    """What a model must know of its data. image_dim: size of an image feature, of a map its channels; num_words: of the
    vocabulary, the unknown one included; grid: (H, W) of a map; sizes: of several backbones' features, which add up to
    image_dim; encoder_dim: size of a sentence encoder's feature; transformer, padding: the encoder itself and its
    padding token, where it is trained too."""

    image_dim: int
    num_words: int
    grid: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    encoder_dim: int = 0
    transformer: nn.Module | None = None
    padding: int = 0


def image_branch(s: ImageSettings, dims: InputDims, embed_dim: int) -> nn.Sequential:
    """Return a branch (B, image_dim) → (B, embed_dim), or (B, H, W, image_dim) → (B, embed_dim) where it pools maps."""
    dropout = nn.Dropout(s.dropout if s.branch != "residual" else 0.0)  # whose blocks have theirs
    if s.branch == "attention":
        return nn.Sequential(
            AttentionPool(dims.grid, dims.image_dim, s.num_heads), dropout, Linear(dims.image_dim, embed_dim)
        )
    if s.branch == "gpo":
        return nn.Sequential(dropout, GPOPool(dims.image_dim, embed_dim, s.position_dropout))
    layers = head_layers(
        s.branch, dims.image_dim, embed_dim, hidden_dim=s.hidden_dim, num_blocks=s.num_blocks, dropout=s.dropout
    )
    return nn.Sequential(dropout, *layers)


WORD_BRANCHES: dict[str, Callable[[int, int, TextSettings], nn.Module]] = {"gru": GRUBranch, "onehot": OneHotBranch}
WORD_ROWS = (["embedding", "weight"], ["bag", "weight"])  # how names of weights end that have a row for each word


def text_branch(s: TextSettings, dims: InputDims, embed_dim: int) -> nn.Module:
    """Return a branch from B sentences to (B, embed_dim)."""
    words = WORD_BRANCHES[s.branch](dims.num_words, embed_dim, s) if s.branch in WORD_BRANCHES else None
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
    if s.loss.name == "none":
        return AsItIs(), AsItIs()
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
        sizes = dims.sizes or (dims.image_dim,)
        self.inputs = Standardize(sizes, settings.image.power) if settings.image.standardize else None
        self.image, self.text = branches(settings, dims)
        # The scalars that contrastive losses learn; ranks do not depend on them.
        if settings.loss.name in ("infonce", "siglip", "cwcl"):
            self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.loss.temperature)))
        if settings.loss.name == "siglip":
            self.score_bias = nn.Parameter(torch.tensor(settings.loss.bias))

    def fit_inputs(self, features: Features) -> None:
        """Take what standardizes features, where the settings say so, from the training split's (N, …, D), by block."""
        if self.inputs is not None:
            self.inputs.fit(features[i : i + ROWS_PER_BLOCK] for i in range(0, len(features), ROWS_PER_BLOCK))

    def scale(self) -> Tensor:
        """Return one over the learned temperature, kept from growing beyond 100 as CLIP does."""
        return self.log_scale.exp().clamp(max=100.0)

    def embed_images(self, features: Tensor) -> Tensor:
        """Embed (B, D) features or (B, H, W, C) maps, float32 → (B, embed_dim), unit length; for order non-negative."""
        return self.normalized(self.image(features if self.inputs is None else self.inputs(features)))

    def embed_sentences(self, sentences: Sentences, mix: Mix | None = None) -> Tensor:
        """Embed B sentences → (B, embed_dim), unit length; for order non-negative.

        mix: makes the features of fewer mixtures of those of the B sentences, and mixtures are embedded in their stead.
        """
        return self.normalized(self.text(sentences, mix))

    def normalized(self, x: Tensor) -> Tensor:
        """What the similarity wants of a branch's (B, embed_dim)."""
        x = F.normalize(x, dim=1)
        return x.abs() if self.order else x  # Vendrov et al., 2016, section 3.2


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


def _lists(sentences: Sentences) -> list[list[int]]:
    return [words.tolist() for words in np.split(sentences.numbers, sentences.starts[1:-1])]
