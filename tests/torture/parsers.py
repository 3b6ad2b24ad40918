"""Every reader of a file that may come from a stranger: what makes a sound file of its kind, and what reads it.

`PARSERS` is the one list: whoever adds a reader adds a line, and tests/torture/test_parsers.py does the rest.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors.numpy
import scipy.io
import torch

from evaluation.arrays import open_array
from evaluation.figures import read_log
from evaluation.judgements import CROWDFLOWER, EXPERT, read_crowdflower, read_expert
from evaluation.pairs import read_pairs
from evaluation.trec import read_qrels, read_run
from features.blocks import Blocks, part_attributes
from features.datasets.clip_retrieval import open_clip_folder
from features.datasets.dataset import Dataset
from features.datasets.dataset import Image as DatasetImage
from features.datasets.precomputed import load_precomputed, read_ids
from features.datasets.readers import read, read_lists
from features.images.files import open_image_file
from features.images.maps import FeatureMaps
from features.images.store import FeatureStore, write_store
from features.images.weights import from_file
from features.prepared import Prepared
from features.text.store import POOLINGS, Key, TextStore, caption_digest, write_text_store
from features.text.vocabulary import Vocabulary, tokenize
from retrieval.build import build_index
from retrieval.searcher import Searcher
from retrieval.sources import read_captions
from settings import read_recipe
from tests.helpers import (
    FakeRun,
    hugging_face,
    karpathy,
    made_up_folder,
    plan_small,
    train_small,
    vsepp,
    write,
    write_clip_folder,
    write_tars,
)
from training.bag import BagRun
from training.bank import read_bank
from training.checkpoint import load_checkpoint
from training.run import Run
from training.trainer import Trainer


@dataclass(frozen=True)
class Parser:
    """make: writes a sound file into an empty folder, and what it needs beside it; returns the file. read: reads it."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]


IDS = [f"{number}.jpg" for number in range(8)]
CAPTIONS = {key: ("a red dog runs", f"view {key}") for key in IDS}
SPLITS = ("train", "train", "val", "test")
DATASET = Dataset(
    "mine",
    tuple(DatasetImage(key, None, SPLITS[n % 4], CAPTIONS[key]) for n, key in enumerate(IDS)),
    source_ids=tuple(IDS),
)
FEATURES = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


# Captions


def text_file(name: str, text: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder / name, text)


def captions_of(name: str, file: str, content: Any) -> Parser:
    return Parser(
        lambda folder: write(folder / file, content),
        lambda path: [
            tokenize(caption)
            for image in read(name, path, None, split_ratio=(1, 1, 1)).images
            for caption in image.captions
        ],
    )


def lines(form: str) -> str:
    """A line for each caption of each image: image, number of the caption, caption, split."""
    return "".join(
        form.format(key, number, caption, SPLITS[row % 4]) + "\n"
        for row, key in enumerate(IDS)
        for number, caption in enumerate(CAPTIONS[key])
    )


def coco() -> dict[str, Any]:
    images = [{"id": number, "file_name": key} for number, key in enumerate(IDS * 5)]
    for number, image in enumerate(images):
        image["file_name"] = f"{number}.jpg"
    return {"images": images, "annotations": [{"image_id": n, "caption": "a dog"} for n in range(len(images))]}


def make_lists(folder: Path) -> Path:
    for split in ("train", "val", "test"):
        write(folder / f"{split}.txt", "".join(key + "\n" for n, key in enumerate(IDS) if SPLITS[n % 4] == split))
    return folder / "train.txt"


# Precomputed features and scores


def precomputed(path: Path) -> object:
    return [block.sum() for block in load_precomputed(path, DATASET).blocks()]


def make_h5(name: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with h5py.File(folder / name, "w") as file:
            file.create_dataset("feats", data=FEATURES, **options)
            if not name.endswith(".mat"):
                file.create_dataset("image", data=IDS, dtype=h5py.string_dtype("utf-8"))
        return folder / name

    return make


def make_npy(folder: Path) -> Path:
    np.save(folder / "feats.npy", FEATURES)
    return folder / "feats.npy"


def make_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "feats.npz", feats=FEATURES, image=np.array(IDS))
    return folder / "feats.npz"


def make_mat(compress: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        more = {"names": np.array(IDS, object), "about": {"layer": "fc7", "cells": np.array([[1, "a"]], object)}}
        scipy.io.savemat(
            folder / "feats.mat", {"feats": FEATURES.T.astype(np.float64), **more}, do_compression=compress
        )
        return folder / "feats.mat"

    return make


def make_safetensors(folder: Path) -> Path:
    safetensors.numpy.save_file({"scores": FEATURES}, folder / "scores.safetensors")
    return folder / "scores.safetensors"


def scores(path: Path) -> object:
    return [block.sum() for _, block in open_array(path, "scores").blocks("scores")]


def part_of(make: Callable[[Path], Any], file: str) -> Callable[[Path], Path]:
    """A file in a folder that something else makes."""

    def made(folder: Path) -> Path:
        make(folder / "made")
        return folder / "made" / file

    return made


def container(name: str, up: int = 0) -> Callable[[Path], object]:
    """Read the dataset in a file, and the images in it."""

    def read_all(path: Path) -> object:
        dataset = read(name, [path, *path.parents][up], None)
        for image in dataset.images:
            assert image.path is not None
            with contextlib.suppress(OSError), open_image_file(image.path) as file:
                file.read()
        return dataset

    return read_all


def make_arrow(folder: Path) -> Path:
    columns = {"split": list(SPLITS) * 3}
    hugging_face(folder, range(12), **columns).save_to_disk(folder / "made")
    return next((folder / "made").glob("*.arrow"))


def make_parquet(folder: Path) -> Path:
    columns = {"split": list(SPLITS) * 3}
    hugging_face(folder, range(12), **columns).to_parquet(folder / "all.parquet")
    return folder / "all.parquet"


# What the project writes itself


def make_store(folder: Path) -> Path:
    about: dict[str, str | int] = {
        "backbone": "one",
        "layer": "precomputed",
        "digest": "d",
        "transform": "",
        "weights": "",
        "map": 0,
    }
    write_store(folder / "one.h5", IDS, (6,), "float32", about, [FEATURES])
    return folder / "one.h5"


def make_map_store(folder: Path) -> Path:
    write_store(folder / "map.h5", IDS, (2, 2, 6), "float16", {"digest": "d"}, [np.ones((8, 2, 2, 6), np.float16)])
    return folder / "map.h5"


def read_map_store(path: Path) -> object:
    store = FeatureStore.open(path)
    return FeatureMaps(store, store.rows(IDS))[:8].sum() + FeatureMaps(store, store.rows(IDS), memory=0)[:8].sum()


def make_text_store(folder: Path) -> Path:
    keys = [Key(key, n, caption_digest(c)) for key in IDS for n, c in enumerate(CAPTIONS[key])]
    rows = {pooling: [np.ones((len(keys), 4), np.float16)] for pooling in POOLINGS}
    about: dict[str, str | int] = {"encoder": "one", "digest": "d", "size": 4, "longest": 9}
    write_text_store(folder / "one.text.h5", keys, about, dict.fromkeys(POOLINGS, "float16"), rows)
    return folder / "one.text.h5"


def read_text_store(path: Path) -> object:
    store = TextStore.open(path)
    return [store.read_keys(store.keys, pooling).sum() for pooling in store.poolings]


def prepared(path: Path) -> object:
    data = Prepared(path.parent)
    return [data.split(split, data.stores()) for split in ("train", "val", "test")], repr(data), data.digest()


def make_blocks(folder: Path) -> Path:
    Blocks(folder).write(IDS, features=FEATURES)
    return folder / "block-000000.npz"


def read_blocks(path: Path) -> object:
    part_attributes(path.parent)
    blocks = Blocks(path.parent)
    return [blocks.row(key, "features") for key in blocks.done]


def make_run(file: str, **changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        train_small(folder, training__epochs=1, embed_dim=4, text__word_dim=4, **changes)
        return folder / file

    return make


def read_run_folder(kind: type[Run]) -> Callable[[Path], object]:
    def read_all(path: Path) -> object:
        run = kind.open(path.parent)
        rows = run.embed_features(np.ones((2, 12), np.float32)), run.embed_sentences(["a red dog"], check=False)
        return rows, repr(run), run.digest(), run.result(), read_bank(path.parent), read_log(path.parent)

    return read_all


def resume(path: Path) -> object:
    plan, data = plan_small(path.parent, training__epochs=1, embed_dim=4, text__word_dim=4)
    trainer = Trainer(plan, data, lambda *said: None, progress=False)
    return load_checkpoint(path, trainer.model, trainer.optimizer)


def make_index(file: str, approximate: str = "") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        run = FakeRun(folder)
        build_index(run, [run.prepare(folder, 12)], folder / "index", search=approximate or None)
        return folder / "index" / file

    return make


def search_index(path: Path) -> object:
    searcher = Searcher.open(path.parent, FakeRun(path.parent.parent))
    index = searcher.index
    answers = [searcher.ask("a red dog", k=20), searcher.captions_of(index.embeddings[:1, : index.meta.dim], 5)]
    facts = [(searcher.path(image), searcher.thumbnail(image)) for image in list(index.ids)]
    return repr(searcher), answers, facts, [searcher.similar_to(image, 3) for image in list(index.ids)[:2]]


def make_weights(folder: Path) -> Path:
    torch.save({"layer.weight": torch.ones(4, 4), "layer.bias": torch.ones(4)}, folder / "weights.pth")
    return folder / "weights.pth"


# A line of each kind; what a name says behind its last full stop is the kind of the file.

PARSERS = {
    "flickr8k.token": captions_of("flickr8k", "Flickr8k.token.txt", lines("{0}#{1}\t{2}") * 4),
    "flickr30k.pipes": captions_of(
        "flickr30k", "results.csv", "image_name| comment_number| comment\n" + lines("{0}| {1}| {2}")
    ),
    "kaggle.commas": captions_of("flickr8k", "captions.txt", "image,caption\n" + lines("{0},{2}")),
    "folder.csv": captions_of("folder", "captions.csv", "image,caption,split\n" + lines('{0},"{2}",{3}')),
    "folder.tsv": captions_of("folder", "captions.tsv", "image\tcaption\tsplit\n" + lines("{0}\t{2}\t{3}")),
    "folder.jsonl": captions_of(
        "folder", "captions.jsonl", lines('{{"image": "{0}", "caption": "{2}", "n": {1}, "split": "{3}"}}')
    ),
    "records.json": captions_of(
        "folder",
        "captions.json",
        [{"image": key, "captions": ["a", "b"], "split": SPLITS[n % 4]} for n, key in enumerate(IDS)],
    ),
    "karpathy.json": captions_of("flickr8k", "dataset_flickr8k.json", karpathy()),
    "coco.json": captions_of("coco", "captions_train2014.json", coco()),
    "splits.txt": Parser(make_lists, lambda path: read_lists(path.parent)),
    "ids.txt": Parser(text_file("ids.txt", "\n".join(IDS)), read_ids),
    "ids.json": Parser(text_file("ids.json", json.dumps(IDS)), read_ids),
    "index_captions.txt": Parser(text_file("captions.txt", "a red dog\nzwei Hunde\n"), read_captions),
    "vsepp.txt": Parser(part_of(vsepp, "train_caps.txt"), lambda path: read("folder", path.parent, None)),
    "vsepp.npy": Parser(
        part_of(vsepp, "train_ims.npy"), lambda path: load_precomputed(path.parent, read("folder", path.parent, None))
    ),
    "clip_retrieval.parquet": Parser(
        part_of(write_clip_folder, "metadata/metadata_0.parquet"),
        lambda path: open_clip_folder(path.parents[1]).source(),
    ),
    "clip_retrieval.npy": Parser(
        part_of(write_clip_folder, "img_emb/img_emb_0.npy"), lambda path: open_clip_folder(path.parents[1]).source()
    ),
    "webdataset.tar": Parser(part_of(write_tars, "00000.tar"), container("webdataset", 1)),
    "huggingface.arrow": Parser(make_arrow, container("huggingface", 1)),
    "huggingface.json": Parser(lambda folder: make_arrow(folder).with_name("state.json"), container("huggingface", 1)),
    "huggingface.parquet": Parser(make_parquet, container("huggingface")),
    # features and scores of somebody else
    "features.npy": Parser(make_npy, precomputed),
    "features.npz": Parser(make_npz, precomputed),
    "features.h5": Parser(make_h5("feats.h5"), precomputed),
    "features_packed.h5": Parser(make_h5("feats.h5", compression="gzip", shuffle=True, chunks=(4, 6)), precomputed),
    "features73.mat": Parser(make_h5("feats.mat"), precomputed),
    "features5.mat": Parser(make_mat(False), precomputed),
    "features5_packed.mat": Parser(make_mat(True), precomputed),
    "scores.npy": Parser(make_npy, scores),
    "scores.npz": Parser(make_npz, scores),
    "scores.h5": Parser(make_h5("feats.h5"), scores),
    "scores.safetensors": Parser(make_safetensors, scores),
    "weights.pth": Parser(make_weights, lambda path: from_file("one", path)),
    "pairs.csv": Parser(
        text_file("pairs.csv", "image,caption\n" + lines("{0},{0}#{1}")), lambda path: read_pairs([path])
    ),
    "pairs.jsonl": Parser(
        text_file("pairs.jsonl", lines('{{"image": "{0}", "caption": {1}}}')), lambda path: read_pairs([path])
    ),
    "trec.qrels": Parser(text_file("a.qrels", lines("{0} 0 {0}#{1} 1")), read_qrels),
    "trec.run": Parser(text_file("a.run", lines("{0} Q0 {0}#{1} 1 0.5 me")), read_run),
    "expert.txt": Parser(text_file(EXPERT, lines("{0}\t{0}#{1}\t1\t2\t3")), lambda path: read_expert(path.parent)),
    "crowdflower.txt": Parser(
        text_file(CROWDFLOWER, lines("{0}\t{0}#{1}\t0.5\t2\t2")), lambda path: read_crowdflower(path.parent)
    ),
    # what the project writes itself
    "prepared_captions.jsonl": Parser(part_of(made_up_folder, "captions.jsonl"), prepared),
    "prepared_dataset.json": Parser(part_of(made_up_folder, "dataset.json"), prepared),
    "prepared_vocabulary.json": Parser(part_of(made_up_folder, "vocabulary.json"), lambda path: Vocabulary.load(path)),
    "store.h5": Parser(make_store, lambda path: FeatureStore.open(path).read(range(8))),
    "map_store.h5": Parser(make_map_store, read_map_store),
    "text_store.h5": Parser(make_text_store, read_text_store),
    "block.npz": Parser(make_blocks, read_blocks),
    "recipe.toml": Parser(make_run("recipe.toml"), lambda path: read_recipe(str(path))),
    "run_recipe.toml": Parser(make_run("recipe.toml"), read_run_folder(Run)),
    "run_model.safetensors": Parser(make_run("model.safetensors"), read_run_folder(Run)),
    "bag_model.safetensors": Parser(make_run("model.safetensors", text__branch="onehot"), read_run_folder(BagRun)),
    "run_vocabulary.json": Parser(make_run("vocabulary.json"), read_run_folder(Run)),
    "run_bank.safetensors": Parser(make_run("bank.safetensors"), read_run_folder(Run)),
    "run_log.jsonl": Parser(make_run("log.jsonl"), read_run_folder(Run)),
    "run_result.json": Parser(make_run("result.json"), read_run_folder(Run)),
    "checkpoint.pt": Parser(make_run("last.pt"), resume),
    "index_meta.json": Parser(make_index("meta.json"), search_index),
    "index_ids.bin": Parser(make_index("ids-000001.bin"), search_index),
    "index_paths.bin": Parser(make_index("paths-000001.bin"), search_index),
    "index_files.npy": Parser(make_index("files-000001.npy"), search_index),
    "index_known.bin": Parser(make_index("known-000001.bin"), search_index),
    "index_known_rows.npy": Parser(make_index("known_rows-000001.npy"), search_index),
    "index_embeddings.npy": Parser(make_index("embeddings-000001.npy"), search_index),
    "index_captions.bin": Parser(make_index("captions-000001.bin"), search_index),
    "index_graph.faiss": Parser(make_index("approximate-000001.faiss", "hnsw"), search_index),
}
