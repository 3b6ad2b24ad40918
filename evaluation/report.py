"""One HTML file that holds a whole comparison: tables, pictures, recipes, and the best and worst queries with images.

Everything is inside the file, styles and photographs too: it can be sent by mail and opened without a network, and its
content policy forbids every request. It follows the reader's light or dark setting and fits a telephone's width.
"""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.plots import TITLES
from features.images.decode import thumbnail
from features.prepared import Split
from metrics.ranks import Ranks, ranks_by_block
from utils import atomic_write

THUMBNAIL = 160  # pixels
Scores = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Table:
    """columns: (group, name) of each; neighbors of one group stand under one heading, "" is no group. The first
    column names the row. best: the (row, column) cells to print bold. rule: the row that stands under a rule.
    """

    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    rule: int | None = None


@dataclass(frozen=True)
class Hit:
    """One answer to a query: its rank, score, and the caption or the id of the image; path: of the photograph."""

    rank: int
    score: float
    text: str
    true: bool
    path: Path | None = None


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
    path: Path | None = None


def find_queries(
    images: Tensor,
    captions: Tensor,
    similarity: Scores,
    split: Split,
    paths: Sequence[Path | None],
    k: int = 5,
    best: int = 4,
    worst: int = 4,
    block: int = 1024,
) -> list[Query]:
    """The best and the worst queries of a split, both directions, each with its top k answers.

    images: (N, D), captions: (M, D) embeddings of the split; paths: (N,) where its photographs lie. Best: the lowest
    rank of the true answer, then the largest lead of its score over every wrong one; worst: the other end of that
    order. Of an image's captions one at most is taken. Ties stand against the model, as in the ranks.
    """
    ranks = ranks_by_block(similarity, images, captions, split.image_of_caption, block)
    leads = _leads(images, captions, similarity, split.image_of_caption, block)
    owner = split.image_of_caption
    queries = []
    for kind, rows in _ends(ranks.text_to_image, leads.text_to_image, owner, best, worst):
        scores = similarity(images, captions[rows.tolist()]).float().cpu().numpy().T
        for row, own_scores in zip(rows.tolist(), scores, strict=True):
            true = np.arange(len(images)) == owner[row]
            hits = _hits(own_scores, true, int(ranks.text_to_image[row]), k, split.images, paths)
            queries.append(Query("text_to_image", kind, split.captions[row], int(ranks.text_to_image[row]), hits))
    everyone = np.arange(len(images))
    for kind, rows in _ends(ranks.image_to_text, leads.image_to_text, everyone, best, worst):
        scores = similarity(images[rows.tolist()], captions).float().cpu().numpy()
        for row, own_scores in zip(rows.tolist(), scores, strict=True):
            rank = int(ranks.image_to_text[row])
            hits = _hits(own_scores, owner == row, rank, k, split.captions, None)
            queries.append(Query("image_to_text", kind, split.images[row], rank, hits, paths[row]))
    return queries


def _leads(images: Tensor, captions: Tensor, similarity: Scores, owner: np.ndarray, block: int) -> Ranks:
    """By how much each query's best true answer outscores its best wrong one, float; laid out like Ranks."""
    owners = torch.from_numpy(owner).to(images.device)
    own = torch.full((len(captions),), -torch.inf)
    wrong = torch.full((len(captions),), -torch.inf)
    image_leads = []
    for start in range(0, len(images), block):
        scores = similarity(images[start : start + block], captions).float()
        others = owners[None, :] != torch.arange(start, start + len(scores), device=images.device)[:, None]
        true_only, wrong_only = scores.masked_fill(others, -torch.inf), scores.masked_fill(~others, -torch.inf)
        image_leads.append((true_only.amax(1) - wrong_only.amax(1)).cpu())
        own = torch.maximum(own, true_only.amax(0).cpu())
        wrong = torch.maximum(wrong, wrong_only.amax(0).cpu())
    return Ranks(torch.cat(image_leads).numpy(), (own - wrong).numpy())


def _ends(
    ranks: np.ndarray, leads: np.ndarray, owner: np.ndarray, best: int, worst: int
) -> list[tuple[str, np.ndarray]]:
    """("best", rows) and ("worst", rows) of the queries, one of each owner and none twice."""
    order = np.lexsort((-leads, ranks))
    _, first = np.unique(owner[order], return_index=True)
    good = order[np.sort(first)][:best]
    rest = order[~np.isin(owner[order], owner[good])][::-1]
    _, first = np.unique(owner[rest], return_index=True)
    return [("best", good), ("worst", rest[np.sort(first)][:worst])]


def _hits(
    scores: np.ndarray, true: np.ndarray, rank: int, k: int, texts: Sequence[str], paths: Sequence[Path | None] | None
) -> tuple[Hit, ...]:
    """The top k of scores (N,), and the first of the `true` (N,) ones, whose rank is `rank`, if it is not there."""
    order = np.lexsort((true, -np.nan_to_num(scores, nan=-np.inf)))  # a true one stands behind its equals
    places = list(range(min(k, len(order))))
    if not true[order[places]].any():
        places.append(int(np.argmax(true[order])))
    found = []
    for place in places:
        row = int(order[place])
        counted = rank if place == places[-1] >= k else place + 1
        path = None if paths is None else paths[row]
        found.append(Hit(counted, float(scores[row]), texts[row], bool(true[row]), path))
    return tuple(found)


def write_report(
    path: Path | str,
    title: str,
    tables: Sequence[Table],
    figures: Mapping[str, bytes],
    recipes: Mapping[str, str],
    queries: Mapping[str, Sequence[Query]],
    notes: Sequence[str] = (),
    among: str = "",
) -> None:
    """Write the whole report into one HTML file.

    figures: title → PNG, as plots.png_of gives it; recipes: name of a row → its TOML; queries: name of a row → what
    find_queries found; among: what those were ranked among; notes: sentences below the tables. Any part may be empty
    and is then left out. Photographs that are missing or cannot be read become a gray box with the image's id.
    """
    parts = {
        "Results": "".join(map(_table, tables)) + "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "Pictures": "".join(_figure(name, png) for name, png in figures.items()),
        "Queries": "".join(_queries(name, found) for name, found in queries.items() if found),
    }
    if among and parts["Queries"]:
        parts["Queries"] = f"<p>{html.escape(among)}</p>{parts['Queries']}"
    parts |= {
        "Recipes": "".join(_recipe(name, text) for name, text in recipes.items()),
    }
    parts = {name: part for name, part in parts.items() if part}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in parts)
    sections = "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>{part}</section>\n' for name, part in parts.items()
    )
    name = html.escape(title)
    with atomic_write(path) as file:
        file.write(PAGE.format(title=name, style=STYLE, links=links, sections=sections))


def _table(table: Table) -> str:
    groups: list[list] = []
    for group, _ in table.columns:
        if groups and groups[-1][0] == group:
            groups[-1][1] += 1
        else:
            groups.append([group, 1])
    above = "".join(
        f'<th colspan="{span}" scope="colgroup">{html.escape(group)}</th>' if group else f'<td colspan="{span}"></td>'
        for group, span in groups
    )
    above = f"<tr>{above}</tr>" if any(group for group, _ in groups) else ""
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for _, name in table.columns)
    body = "".join(
        ('<tr class="ruled">' if row == table.rule else "<tr>")
        + "".join(_cell(text, column, (row, column) in table.best) for column, text in enumerate(cells))
        + "</tr>"
        for row, cells in enumerate(table.rows)
    )
    title = html.escape(table.title)
    return (
        f'<div class="wide" role="region" aria-label="{title}" tabindex="0"><table><caption>{title}</caption>'
        f"<thead>{above}<tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str, column: int, best: bool) -> str:
    text = html.escape(text)
    if column == 0:
        return f'<th scope="row">{text}</th>'
    return f"<td><strong>{text}</strong></td>" if best else f"<td>{text}</td>"


def _figure(title: str, png: bytes) -> str:
    name = html.escape(title)
    return (
        f'<figure><figcaption>{name}</figcaption><div class="wide" role="region" aria-label="{name}" tabindex="0">'
        f'<img class="plot" alt="{name}" src="data:image/png;base64,{_base64(png)}"></div></figure>'
    )


def _recipe(name: str, toml: str) -> str:
    return f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(toml)}</pre></details>"


def _queries(name: str, queries: Sequence[Query]) -> str:
    parts = [f"<h3>{html.escape(name)}</h3>"]
    for direction in ("text_to_image", "image_to_text"):
        for kind in ("best", "worst"):
            found = [query for query in queries if (query.direction, query.kind) == (direction, kind)]
            if found:
                parts.append(f"<h4>{TITLES[direction]}: the {kind}</h4>" + "".join(map(_query, found)))
    return "".join(parts)


def _query(query: Query) -> str:
    text, rank = html.escape(query.text), f'<span class="rank">true one at rank {query.rank:,}</span>'
    if query.direction == "text_to_image":
        hits = "".join(
            f'<li{_mark(hit)}>{_photograph(hit.path, hit.text)}<span class="small">{_rank_and_score(hit)}</span></li>'
            for hit in query.hits
        )
        return f'<article><p class="query">“{text}” {rank}</p><ol class="photographs">{hits}</ol></article>'
    hits = "".join(
        f'<li{_mark(hit)}>{html.escape(hit.text)} <span class="small">{_rank_and_score(hit)}</span></li>'
        for hit in query.hits
    )
    return (
        f'<article class="of-image"><div>{_photograph(query.path, query.text)}</div>'
        f'<div><p class="query">{rank}</p><ol class="captions">{hits}</ol></div></article>'
    )


def _mark(hit: Hit) -> str:
    return ' class="true"' if hit.true else ""


def _rank_and_score(hit: Hit) -> str:
    return f"{'<b>true</b>, ' if hit.true else ''}rank {hit.rank:,}, {hit.score:.3f}"


def _photograph(path: Path | None, image: str) -> str:
    """The photograph as a small JPEG inside the page, or a gray box with its id."""
    small = thumbnail(path, THUMBNAIL)
    name = html.escape(image)
    if small is None:
        return f'<span class="missing">{name}</span>'
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img alt="{name}" title="{name}" {size} src="data:image/jpeg;base64,{_base64(buffer.getvalue())}">'


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><nav aria-label="Parts of the report">{links}</nav></header>
<main>
{sections}</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --quiet: #5c5c5c; --line: #d5d5d5; --gray: #e9e9e9;
  --true: #b34700; --link: #005a9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181b; --quiet: #a8a8a8; --line: #3c4046;
  --gray: #2b2f34; --true: #ff9a4d; --link: #7cc0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem; font: 1rem/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { margin: 2.2rem 0 0.6rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.6rem 0 0.4rem; } h4 { margin: 1.4rem 0 0.3rem; }
nav { display: flex; flex-wrap: wrap; gap: 1.2rem; } a { color: var(--link); padding: 0.3rem 0; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.wide { overflow-x: auto; margin: 0 0 1.4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
caption { text-align: left; padding: 0.3rem 0; color: var(--quiet); }
thead { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); }
tbody { border-bottom: 2px solid var(--ink); } .ruled { border-top: 1px solid var(--ink); }
th, td { padding: 0.25rem 0.6rem; text-align: right; font-weight: normal; }
thead th { color: var(--quiet); } th[scope=colgroup] { text-align: center; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:hover { background: var(--gray); }
figure { margin: 0 0 1.6rem; } figcaption { margin-bottom: 0.4rem; }
.plot { background: #fff; border-radius: 4px; min-width: min(46rem, 180vw); }
article { margin: 0 0 1.4rem; } .query { margin: 0 0 0.4rem; } .rank { color: var(--quiet); white-space: nowrap; }
.of-image { display: flex; flex-wrap: wrap; gap: 0.6rem 1.2rem; } .of-image > div:last-child { flex: 1 1 18rem; }
ol { list-style: none; margin: 0; padding: 0; }
.photographs { display: flex; flex-wrap: wrap; gap: 0.6rem; align-items: flex-end; }
.photographs li { max-width: 100%; border: 4px solid transparent; }
.photographs .true { border-color: var(--true); border-radius: 4px; padding: 2px; }
.captions li { padding: 0.1rem 0 0.1rem 0.6rem; border-left: 4px solid transparent; }
.captions .true { border-color: var(--true); } .true b { color: var(--true); }
.small { font-size: 0.85rem; color: var(--quiet); } .photographs .small { display: block; }
img { display: block; max-width: 100%; height: auto; }
.missing { display: flex; width: 160px; height: 120px; padding: 0.5rem; align-items: center; justify-content: center;
  background: var(--gray); color: var(--quiet); font-size: 0.8rem; }
details { border-bottom: 1px solid var(--line); } summary { padding: 0.5rem 0; cursor: pointer; }
pre { overflow-x: auto; padding: 0.8rem; background: var(--gray); font-size: 0.9rem; white-space: pre-wrap; }
"""
