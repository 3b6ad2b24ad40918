"""The model of a run: made anew by its seed, and images and sentences through it in blocks."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from features.device import default_device
from features.images.views import Features
from features.text.sentences import sentence_encoder
from features.text.vocabulary import Sentences, Vocabulary, WordIndex
from model import InputDims, TwoBranch
from settings import Settings
from training.run import AGAIN, RunInfo
from utils import BadInput

ROWS_PER_BATCH = 1000  # images or sentences embedded at a time; of maps, as many as
BATCH_BYTES = 2**26  # bytes hold;
SENTENCES_PER_BATCH = 64  # sentences through a transformer
MAX_PARAMETERS = 2**31  # of a model


def new_model(settings: Settings, info: RunInfo, vocabulary: Vocabulary, weights: Path | None = None) -> TwoBranch:
    """Make a model whose first weights depend on the seed alone; a transformer that is trained too has its own.

    weights: the file that its own will be read from. Raises BadInput, before the model takes memory, if it has more
    than MAX_PARAMETERS, or than that file can hold.
    """
    num_words = len(WordIndex(vocabulary, settings.text.stem, settings.text.min_count))
    dims = InputDims(sum(info.sizes), num_words, info.grid, info.sizes, info.encoder_size)
    if settings.text.finetune:
        encoder = sentence_encoder(settings.text.encoder)
        module = copy.deepcopy(encoder.module).requires_grad_(True)
        dims = replace(dims, transformer=module, padding=encoder.padding)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in TwoBranch(settings, dims).parameters())
    held = weights.stat().st_size if weights and weights.is_file() else 0
    if weights and count > held:  # a parameter takes a byte at least
        raise BadInput(f"{weights}: cut short, or not the weights of this recipe ({count:,} parameters); {AGAIN}")
    if count > MAX_PARAMETERS:
        raise BadInput(
            f"these settings make a model of {count:,} parameters, where there may be {MAX_PARAMETERS:,}; make its "
            f"branches narrower"
        )
    torch.manual_seed(info.seed)
    return TwoBranch(settings, dims).to(default_device())


@torch.inference_mode()
def embed_features(model: TwoBranch, features: Features) -> Tensor:
    """Embed (N, D) float32, maps or the mean of views → (N, embed_dim) on the model's device, in blocks.

    The model is in eval mode.
    """
    height = max(1, min(ROWS_PER_BATCH, BATCH_BYTES // (4 * math.prod(features.shape[1:]))))
    blocks = (features[start : start + height] for start in range(0, len(features), height))
    parts = [model.embed_images(torch.from_numpy(np.ascontiguousarray(block)).to(default_device())) for block in blocks]
    return torch.cat(parts) if parts else torch.empty(0, 0)


@torch.inference_mode()
def embed_sentences(model: TwoBranch, sentences: Sentences) -> Tensor:
    """Embed N sentences → (N, embed_dim) on the model's device, like lengths together. The model is in eval mode."""
    lengths = (sentences.tokens or sentences).lengths
    order = np.argsort(lengths, kind="stable")
    height = ROWS_PER_BATCH if sentences.tokens is None else SENTENCES_PER_BATCH
    parts = [model.embed_sentences(sentences.take(order[i : i + height])) for i in range(0, len(order), height)]
    if not parts:
        return torch.empty(0, 0)
    embedded = torch.cat(parts)
    return embedded[torch.from_numpy(np.argsort(order)).to(embedded.device)]
