"""Approximate search among many vectors against exact search: recall@10, times, memory.

    python benchmarks/million_vectors.py 'strong-flickr8k-*-0-*'         1,000,000 vectors around caption embeddings
    python benchmarks/million_vectors.py 'strong-flickr8k-*-0-*' --vectors 20000
    python benchmarks/million_vectors.py --dim 1024 --vectors 20000      uniform on the sphere, for comparison

The generator, from one seed: vector i is the embedding of training caption i modulo their number, plus Gaussian noise
of standard deviation noise / sqrt(dim) in every dimension, made of unit length again; the noise has about the length
`noise`, then, beside an embedding of length 1. Queries are embeddings of test captions, no vector among them, with
noise of the same kind. Uniform vectors, and their queries, are Gaussian of unit length: nothing is near anything else
there, and graphs are known to fail on it.

Vectors and what FAISS makes of them are written below --folder and removed: 4 x vectors x dim bytes
each, 4 GB for a million of 1024; less for ivf_pq.
Peak memory is that of the process, which holds vectors by memory map, and what FAISS makes while it is built.
"""

import argparse
import functools
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from features.prepared import Prepared
from retrieval.approximate import KINDS, Approximate, import_faiss, recall_of
from retrieval.commands import open_run
from retrieval.emoji import unit_rows
from retrieval.index import ROW, Index, Meta, file_name, write_array, write_rows, write_strings
from retrieval.nearest import BLOCK_BYTES, COSINE, exact_nearest
from script import run_script
from utils import BadInput, make_folder

ROWS = 2**14  # vectors made at a time
WARM = 50  # queries before the first that counts
Draw = Callable[[int, int], np.ndarray]  # start and count → rows of unit length


def main() -> None:
    args = arguments()
    if (args.run is None) == (args.dim is None):
        raise BadInput("million_vectors.py: name a run, or --dim for uniform vectors; one of the two")
    import_faiss().omp_set_num_threads(torch.get_num_threads())
    rng = np.random.default_rng(args.seed)
    if args.run is None:
        vectors, queries, dim = uniform(rng, args.dim), uniform(rng, args.dim)(0, args.queries), args.dim
        what = "uniform on the sphere"
    else:
        vectors, queries, what = around_captions(rng, args)
        dim = queries.shape[1]
    print(f"{args.vectors:,} vectors of {dim} dimensions, {what}; seed {args.seed}, {len(queries):,} held-out queries")
    with tempfile.TemporaryDirectory(dir=make_folder(args.folder, "folder")) as folder:
        measure(Path(folder), vectors, args.vectors, queries, args.k, args.search)


def uniform(rng: np.random.Generator, dim: int) -> Draw:
    return lambda start, count: unit_rows(rng.standard_normal((count, dim), np.float32))


def around_captions(rng: np.random.Generator, args: argparse.Namespace) -> tuple[Draw, np.ndarray, str]:
    """The generator of the docstring; its queries; and a line about it."""
    run = open_run(args.run)
    data = Prepared(args.data or run.info.data)

    def captions(split: str) -> np.ndarray:
        return run.embed_sentences([c for row in data.rows if row["split"] == split for c in row["captions"]])

    def noisy(rows: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal(rows.shape, np.float32) * np.float32(args.noise / rows.shape[1] ** 0.5)
        return unit_rows(rows + noise)

    train, test = captions("train"), captions("test")
    queries = noisy(test[rng.permutation(len(test))[: args.queries]])
    what = f"{len(train):,} training captions of {data.name} with noise of length {args.noise:g}"
    return lambda start, count: noisy(train[np.arange(start, start + count) % len(train)]), queries, what


def measure(folder: Path, draw: Draw, count: int, queries: np.ndarray, k: int, kind: str) -> None:
    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, count, ROWS):
            yield draw(start, min(ROWS, count - start))

    files = {column: file_name(column, 1) for column in ("embeddings", "ids", "paths", "files", "approximate")}
    write_rows(folder / files["embeddings"], (count, queries.shape[1]), blocks())
    vectors = np.load(folder / files["embeddings"], mmap_mode="c").view(np.ndarray)
    _, exact = exact_nearest(queries, vectors, k, COSINE)
    report("exact", timed(lambda query: exact_nearest(query, vectors, k, COSINE), queries[:20], warm=2))
    print(f"peak memory so far {peak():.2f} GB, blocks of {BLOCK_BYTES / 2**20:.0f} MiB", flush=True)
    began = time.perf_counter()
    built = Approximate.build(kind, vectors, folder / files["approximate"])
    print(f"{kind} built in {time.perf_counter() - began:,.1f} s; peak memory {peak():.2f} GB", flush=True)
    half = len(queries) // 2
    built.tune(queries[:half], k=k)  # effort is chosen on one half, and measured on the other
    effort, chosen = KINDS[kind].first, built.effort
    del built
    write_index(folder, files, vectors.shape, {"search": kind, "effort": chosen})
    began = time.perf_counter()
    index = Index.open(folder)
    print(f"index opened in {1e3 * (time.perf_counter() - began):.1f} ms")
    assert index.approximate is not None
    while effort <= 2 * chosen:
        nearest = index.approximate.nearest(queries[half:], k, effort)[1]
        name = f"{kind}, effort {effort}: recall@{k} {recall_of(nearest, exact[half:]):.4f}"
        times = timed(functools.partial(index.approximate.nearest, k=k, effort=effort), queries[half:])
        report(name + (" (chosen)" if effort == chosen else ""), times)
        effort *= 2


def write_index(folder: Path, files: dict[str, str], shape: tuple[int, int], approximate: dict[str, Any]) -> None:
    """What search.py index leaves beside vectors and what FAISS has made, for images without files."""
    count, dim = shape
    write_strings(folder / files["ids"], [f"{row:07d}.jpg" for row in range(count)])
    write_strings(folder / files["paths"], [""] * count)
    write_array(folder / files["files"], np.zeros(count, ROW))
    about: dict[str, Any] = dict.fromkeys(("run", "digest", "captions_from", "captions_digest", "known_digest"), "")
    about |= {"generation": 1, "similarity": "cosine", "dim": dim, "images": count, "captions": 0}
    Meta(files=files, packs=[], approximate=approximate, **about).write(folder)


def timed(search: Callable[[np.ndarray], object], queries: np.ndarray, warm: int = WARM) -> np.ndarray:
    """Seconds of every query (Q, dim), one by one, after `warm` that do not count."""
    times = []
    for row in range(-min(warm, len(queries)), len(queries)):
        began = time.perf_counter()
        search(queries[row : row + 1] if row >= 0 else queries[-1 - row : -row])
        times.append(time.perf_counter() - began)
    return np.array(times[-len(queries) :])


def report(name: str, times: np.ndarray) -> None:
    middle, late = np.percentile(times, [50, 95]) * 1e3
    print(f"{name}; one query: median {middle:.2f} ms, 95th percentile {late:.2f} ms", flush=True)


def peak() -> float:
    """Gigabytes; what Linux gives is in KiB, pages of the memory map that are in memory included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="of cosine similarity; named as for search.py")
    parser.add_argument("--data", type=Path, metavar="DIR", help="its prepared folder, if that has moved")
    parser.add_argument("--dim", type=int, metavar="D", help="uniform vectors of so many dimensions instead of a run")
    parser.add_argument("--vectors", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--queries", type=int, default=1000, metavar="M")
    parser.add_argument("--noise", type=float, default=0.5, help="length of the noise beside an embedding's 1")
    parser.add_argument("-k", type=int, default=10, metavar="N")
    parser.add_argument("--search", choices=list(KINDS), default="hnsw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("."), help="where these are written")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
