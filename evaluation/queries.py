"""The best and the worst queries of a run, with their answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluation.gallery import Gallery
from metrics.ranks import Ranks, ranks_by_block
from metrics.similarity import Scores

IMAGES_PER_BLOCK = 1024  # images scored at a time


@dataclass(frozen=True)
class Hit:
    """One answer to a query: its rank, score, and the caption or the id of the image."""

    rank: int
    score: float
    text: str
    true: bool


@dataclass(frozen=True)
class Query:
    """A query and its answers, best first; where the first true one is not among the top ones, it stands last.

    direction: "text_to_image" or "image_to_text"; text: the caption or the id of the image; rank: of the first true
    answer; kind: "best" or "worst".
    """

    direction: str
    kind: str
    text: str
    rank: int
    hits: tuple[Hit, ...]


def find_queries(
    images: Tensor,
    captions: Tensor,
    similarity: Scores,
    gallery: Gallery,
    k: int = 5,
    count: int = 4,
) -> list[Query]:
    """Find the best and the worst `count` queries of a gallery, both directions, each with its top k answers.

    images: (N, D), captions: (M, D) embeddings of the gallery, whose captions belong to one image each. Best: the
    lowest rank of the true answer, then the largest lead of its score over every wrong one; worst: the other end of
    that order. Of an image's captions one at most is taken. Ties stand against the model, as in the ranks.
    """
    image_of_caption = gallery.image_of_caption
    ranks = ranks_by_block(similarity, images, captions, image_of_caption, IMAGES_PER_BLOCK)
    leads = _leads(images, captions, similarity, image_of_caption)
    queries = []
    for kind, rows in _ends(ranks.text_to_image, leads.text_to_image, image_of_caption, count):
        scores = similarity(images, captions[rows.tolist()]).float().cpu().numpy().T
        for row, row_scores in zip(rows.tolist(), scores, strict=True):
            true = np.arange(len(images)) == image_of_caption[row]
            hits = _hits(row_scores, true, int(ranks.text_to_image[row]), k, gallery.images)
            queries.append(Query("text_to_image", kind, gallery.captions[row], int(ranks.text_to_image[row]), hits))
    for kind, rows in _ends(ranks.image_to_text, leads.image_to_text, np.arange(len(images)), count):
        scores = similarity(images[rows.tolist()], captions).float().cpu().numpy()
        for row, row_scores in zip(rows.tolist(), scores, strict=True):
            rank = int(ranks.image_to_text[row])
            hits = _hits(row_scores, image_of_caption == row, rank, k, gallery.captions)
            queries.append(Query("image_to_text", kind, gallery.images[row], rank, hits))
    return queries


def _leads(images: Tensor, captions: Tensor, similarity: Scores, image_of_caption: np.ndarray) -> Ranks:
    """Return by how much each query's best true answer outscores its best wrong one, float; laid out like Ranks."""
    image_rows = torch.from_numpy(image_of_caption).to(images.device)
    true = torch.full((len(captions),), -torch.inf)
    wrong = torch.full((len(captions),), -torch.inf)
    image_leads = []
    for start in range(0, len(images), IMAGES_PER_BLOCK):
        scores = similarity(images[start : start + IMAGES_PER_BLOCK], captions).float()
        others = image_rows[None, :] != torch.arange(start, start + len(scores), device=images.device)[:, None]
        true_only, wrong_only = scores.masked_fill(others, -torch.inf), scores.masked_fill(~others, -torch.inf)
        image_leads.append((true_only.amax(1) - wrong_only.amax(1)).cpu())
        true = torch.maximum(true, true_only.amax(0).cpu())
        wrong = torch.maximum(wrong, wrong_only.amax(0).cpu())
    return Ranks(torch.cat(image_leads).numpy(), (true - wrong).numpy())


def _ends(ranks: np.ndarray, leads: np.ndarray, image_of_query: np.ndarray, count: int) -> list[tuple[str, np.ndarray]]:
    """Return ("best", rows) and ("worst", rows) of the queries, one of each image and none twice; no empty ones."""
    order = np.lexsort((-leads, ranks))
    _, first = np.unique(image_of_query[order], return_index=True)
    good = order[np.sort(first)][:count]
    rest = order[~np.isin(image_of_query[order], image_of_query[good])][::-1]
    _, first = np.unique(image_of_query[rest], return_index=True)
    ends = [("best", good), ("worst", rest[np.sort(first)][:count])]
    return [(kind, rows) for kind, rows in ends if len(rows)]


def _hits(scores: np.ndarray, true: np.ndarray, rank: int, k: int, texts: Sequence[str]) -> tuple[Hit, ...]:
    """Return the top k of scores (N,), and the first of the `true` (N,) ones, of rank `rank`, if it is not there."""
    order = np.lexsort((true, -np.nan_to_num(scores, nan=-np.inf)))  # a true one stands behind its equals
    positions = list(range(min(k, len(order))))
    if not true[order[positions]].any():
        positions.append(int(np.argmax(true[order])))
    hits = []
    for position in positions:
        row = int(order[position])
        counted = rank if position == positions[-1] >= k else position + 1
        hits.append(Hit(counted, float(scores[row]), texts[row], bool(true[row])))
    return tuple(hits)
