"""Prepare a dataset: features of its images, captions and vocabulary, features of its sentences, in one folder."""

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from features.blocks import end_work, take_work
from features.datasets.clip_retrieval import open_clip_folder
from features.datasets.dataset import SPLITS, Dataset, check_on_disk, is_clip_retrieval, note_duplicates
from features.datasets.precomputed import load_precomputed
from features.datasets.readers import read
from features.datasets.scenes import scenes
from features.distributed import joined, rank
from features.images.store import FeatureStore, store_name, write_store
from features.options import CAPTIONS, DEFAULT_BACKBONE, DRAWN, VOCABULARY, PrepOptions, check_sources, source_of
from features.prepared import Prepared, write_prepared
from features.text.hub import is_dual, text_store_name
from features.text.store import (
    PRECOMPUTED,
    PROJECTED,
    SUFFIX,
    TextStore,
    encode_share,
    keys_of,
    update_text_store,
    write_text_store,
)
from features.text.vocabulary import Vocabulary, make_stemmer
from reading import read_jsonl
from utils import BadInput, lock_folder, log, make_folder, warn

if TYPE_CHECKING:
    from features.dual_encoders import DualSentences
    from features.images.backbones import Backbone
    from features.text.encoders import SentenceEncoder

PATIENCE = timedelta(days=1)  # how long processes wait for the first one, which reads the dataset and writes the stores


def prepare(options: PrepOptions) -> Prepared:
    """Bring the prepared folder up to what `options` ask for; what is done is not done again.

    Of several processes (torchrun) the first one does so, and all of them compute features. Raises BadInput for all
    that a person can mend.

        options = resolve_options({"dataset": "flickr8k", "images": "Images", "captions": "captions.txt"})
        data = prepare(options)
        data.split("train", data.stores())
    """
    with joined(PATIENCE):
        if rank():
            compute_shares(options)
            return Prepared(options.folder)
        data = write_folder(options)
        end_work()
        return data


def compute_shares(options: PrepOptions) -> None:
    """Compute what the first process hands out, and write nothing but blocks of features."""
    images = {f"{b.store}.h5": b for b in (load_backbones(options) if extracts(options) else [])}
    sentences = {f"{text_store_name(e.name)}{SUFFIX}": e for e in load_encoders(options.text_encoder)}
    for work in take_work():
        if work.file in sentences:
            encode_share(work, sentences[work.file])
        else:
            from features.images.extract import extract_share

            extract_share(work, images[work.file], options.batch_size, options.workers)


def extracts(options: PrepOptions) -> bool:
    """Return whether backbones are to see images: features are asked for, and do not come precomputed."""
    return options.reads_captions and options.makes_features and options.features_file is None


def write_folder(options: PrepOptions) -> Prepared:
    """Write captions, vocabulary and features."""
    if options.remembered:
        log(f"remembered: {options.remembered}")
    if options.reads_captions:
        check_sources(options)
    folder = make_folder(options.folder, "data")
    encoders = load_encoders(options.text_encoder)  # before the dataset is read or drawn: a typo is told at once
    with lock_folder(folder):
        if options.reads_captions:
            prepare_images(options)
        data = Prepared(folder)
        for encoder in encoders:
            path = folder / f"{text_store_name(encoder.name)}{SUFFIX}"
            count = update_text_store(
                path,
                data.rows,
                encoder,
                fresh=options.fresh,
                progress=True,
                engine=options.engine,
                precision=options.precision,
            )
            log(f"{path}: {sum(len(row['captions']) for row in data.rows):,} captions, {count:,} of them computed")
    return data


def prepare_images(options: PrepOptions) -> None:
    """Write captions, vocabulary and, unless sentence features alone are asked for, the features of the images."""
    make_stemmer(options.language)
    backbones = load_backbones(options) if extracts(options) else []
    dataset, images = read_dataset(options)
    check_replaced(options, dataset, images)
    for note in dataset.notes:
        log(note)
    log(f"{options.dataset}: " + ", ".join(f"{dataset.count(split):,} {split}" for split in SPLITS) + " images")
    if not options.makes_features:
        dataset = without_unknown(dataset, options.folder)
    elif options.features_file is not None:
        store_precomputed(options, dataset)
        store_sentences(options, dataset)
    else:
        dataset = note_duplicates(extract_features(options, dataset, backbones))
    write_captions(options, dataset, images)


def load_encoders(names: Sequence[str]) -> list["SentenceEncoder | DualSentences"]:
    """Load the text encoders asked for."""
    if not names:
        return []
    from features.dual_encoders import load_sentence_side  # takes torch along
    from features.text.encoders import load_sentence_encoder

    return [load_sentence_side(name) if is_dual(name) else load_sentence_encoder(name) for name in names]


def load_backbones(options: PrepOptions) -> list["Backbone"]:
    """Load the backbones asked for."""
    from features.images.backbones import load

    names = options.backbone or (DEFAULT_BACKBONE,)
    same = {key: getattr(options, key) for key in ("layer", "weights", "map", "crops", "views", "size")}
    return [load(name, **same) for name in names]


def read_dataset(options: PrepOptions) -> tuple[Dataset, Path | None]:
    """Read or draw the dataset; with it the folder of its images, None where features come precomputed."""
    if options.dataset == DRAWN:
        return scenes(options.folder / "images"), options.folder / "images"
    assert options.captions is not None  # check_sources saw to it
    dataset = read(
        options.dataset, options.captions, options.images, options.splits, options.restval, options.split_ratio
    )
    if options.images:
        check_on_disk(dataset.images, options.images, options.skip_unreadable)
    return dataset, options.images


def check_replaced(options: PrepOptions, dataset: Dataset, images: Path | None) -> None:
    """Raise BadInput if the folder holds mostly other images, which these would replace, unless `fresh` says so.

    An image is the same if its id is, and the folder of the images or its captions are.
    """
    try:
        data = Prepared(options.folder)
    except BadInput:  # there is none, or it is damaged
        return
    captions = {image.id: list(image.captions) for image in dataset.images}
    moved = images is None or data.images_folder != images.resolve()
    kept = sum(r["image"] in captions and not (moved and r["captions"] != captions[r["image"]]) for r in data.rows)
    if 2 * kept < len(data.rows) and not options.fresh:
        where = f" from {data.images_folder}" if data.images_folder else ""
        raise BadInput(
            f"{options.folder}: holds {len(data.rows):,} other images{where}, whose captions and features would be "
            f"lost; give these a folder of their own with `name`, or replace those with `fresh`"
        )


def extract_features(options: PrepOptions, dataset: Dataset, backbones: list["Backbone"]) -> Dataset:
    """Bring a store for each backbone up to date; return the dataset without images that cannot be read.

    Raises BadInput if there are such images and `skip_unreadable` does not say to go on without them.
    """
    from features.images.extract import extract

    unreadable: dict[str, str] = {}
    for backbone in backbones:
        unreadable |= extract(
            dataset.images,
            backbone,
            options.folder / f"{backbone.store}.h5",
            batch=options.batch_size,
            workers=options.workers,
            dtype=options.dtype or ("float16" if options.map or options.views > 1 else "float32"),
            skip_unreadable=options.skip_unreadable,
            fresh=options.fresh,
            engine=options.engine,
            precision=options.precision,
        )
    if not unreadable:
        return dataset
    for image, reason in unreadable.items():
        warn(f"cannot be read: {image}: {reason}")
    if not options.skip_unreadable:
        remedy = "mend them and repeat the command (without `fresh`), or go on without them with `skip_unreadable`"
        raise BadInput(f"{len(unreadable):,} images cannot be read; all others are kept: {remedy}")
    warn(f"{len(unreadable):,} images that cannot be read left out")
    return without(dataset, unreadable, "that cannot be read")


def store_precomputed(options: PrepOptions, dataset: Dataset) -> None:
    """Turn precomputed features into a store. Raises BadInput if there is one of another file under its name."""
    file = options.features_file
    assert file is not None
    name = features_name(options, file)
    path = options.folder / f"{name}.h5"
    precomputed = load_precomputed(file, dataset, options.ids)
    for note in precomputed.notes:
        log(note)
    if path.exists() and not options.fresh:
        store = FeatureStore.open(path)
        if store.attributes.get("digest") != precomputed.digest:
            raise BadInput(f"{path}: was made from another file than {file}; repeat with `fresh` to replace it")
        if store.ids == precomputed.ids:
            return
    attributes: dict[str, str | int] = dict(precomputed.about) or {
        "backbone": name,
        "layer": "precomputed",
        "digest": precomputed.digest,
        "transform": "precomputed",
        "weights": f"features of {file.name}",
        "map": int(len(precomputed.shape) == 3),
        "crops": options.crops,
    }
    write_store(path, precomputed.ids, precomputed.shape, precomputed.dtype, attributes, precomputed.blocks())


def store_sentences(options: PrepOptions, dataset: Dataset) -> None:
    """Turn the sentence features of clip-retrieval's folder, if it has them, into a store under the same name."""
    folder, file = options.captions, options.features_file
    if folder is None or file != folder or not is_clip_retrieval(folder):
        return
    clip = open_clip_folder(folder)
    if not clip.texts:
        return
    name = f"{PRECOMPUTED}{features_name(options, folder)}"
    path = options.folder / f"{text_store_name(name)}{SUFFIX}"
    keys = keys_of([{"image": image.id, "captions": image.captions} for image in dataset.images])
    images = FeatureStore.open(options.folder / f"{features_name(options, folder)}.h5")
    attributes = {"encoder": name, "digest": images.attributes["digest"], "size": clip.texts[0].shape[1], "longest": 0}
    if path.exists() and not options.fresh:
        store = TextStore.open(path)
        if store.keys == keys and store.attributes["digest"] == attributes["digest"]:
            return
    rows = {PROJECTED: clip.sentence_features(dataset)}
    write_text_store(path, keys, attributes, {PROJECTED: "float16"}, rows)
    log(f"{path}: {len(keys):,} captions; take them with train.py and `text.encoder`={name}")


def features_name(options: PrepOptions, file: Path) -> str:
    """Return the name of the store of precomputed features."""
    return store_name((options.backbone or (file.resolve().stem,))[0], None, False, options.crops)


def without_unknown(dataset: Dataset, folder: Path) -> Dataset:
    """Leave out images that no store has features of: such as could not be read when they were made."""
    stores = [FeatureStore.open(path) for path in folder.glob("*.h5") if not path.name.endswith(SUFFIX)]
    unknown = {image.id for image in dataset.images if not any(image.id in store for store in stores)}
    if not stores or not unknown:
        return dataset
    warn(f"{len(unknown):,} images without features left out, the first {min(unknown)}; `backbone` makes them")
    return without(dataset, unknown, "without features")


def without(dataset: Dataset, ids: Collection[str], why: str) -> Dataset:
    """Leave out images, counted in a note. Raises BadInput if a split has no other."""
    kept = tuple(image for image in dataset.images if image.id not in ids)
    notes = (*dataset.notes, f"{len(dataset.images) - len(kept):,} images {why} left out")
    for split in SPLITS:
        if not any(image.split == split for image in kept):
            raise BadInput(f"of the {split} split there are only images {why}; mend them, or point `images` elsewhere")
    return replace(dataset, images=kept, notes=notes)


def write_captions(options: PrepOptions, dataset: Dataset, images: Path | None) -> None:
    """Write captions.jsonl, dataset.json and vocabulary.json, which is built again only if it must be."""
    folder, vocabulary = options.folder, None
    if not options.fresh and same_rows(folder, dataset) and (folder / VOCABULARY).is_file():
        with contextlib.suppress(BadInput):  # damaged, or of another version: built again
            vocabulary = Vocabulary.load(folder / VOCABULARY)
    if vocabulary is None or vocabulary.language != options.language:
        captions = [caption for image in dataset.images if image.split == "train" for caption in image.captions]
        vocabulary = Vocabulary.build(captions, options.language, progress=True)
        log(f"{len(captions):,} training captions, {len(vocabulary.counts):,} words, stems: {options.language}")
    write_prepared(folder, dataset, images, vocabulary, source_of(options))  # always: sources may have moved


def same_rows(folder: Path, dataset: Dataset) -> bool:
    """Return whether captions.jsonl of `folder` already says what `dataset` says."""
    try:
        rows = [(row["image"], row["split"], tuple(row["captions"])) for row in read_jsonl(folder / CAPTIONS, "")]
        return rows == [(image.id, image.split, image.captions) for image in dataset.images]
    except (BadInput, KeyError, TypeError):
        return False
