"""Caption files that are one JSON value: Karpathy's dataset_*.json, COCO's captions_*.json, plain lists of records."""

import re
from pathlib import Path
from typing import Any

from features.datasets.line_files import AGAIN, Source, caption_text, image_id, read_text
from reading import parse_json
from utils import BadInput

# Words for splits that are settled later, because options decide: see features/datasets/readers.py.
RESTVAL = "restval"
TRAIN_OR_VAL = "train or val"

_COCO_NAME = re.compile(r"captions_(train|val)(\d{4})\.json")


def read_json_captions(path: Path, text: str) -> Source:
    """Read any of the JSON kinds, told apart by their keys. Raises BadInput if it is none of them or cut short."""
    value = parse(path, text)
    if isinstance(value, list):
        return read_records(path, value)
    if isinstance(value, dict) and "annotations" in value:
        return read_coco(path, value)
    if isinstance(value, dict) and "images" in value:
        return read_karpathy(path, value)
    if isinstance(value, dict) and "image" in value:
        return read_records(path, [value])
    known = "neither Karpathy's (images with sentences) nor COCO's (images and annotations)"
    raise BadInput(f"{path}: is JSON, but {known}; {AGAIN}")


def parse(path: Path, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise BadInput(f"{path}: not JSON, or cut short ({error}); {AGAIN}") from None


def read_records(path: Path, rows: list[Any]) -> Source:
    """Read a JSON list of {"image": ..., "caption": ... or "captions": [...], "split": ...}."""
    source = Source(path)
    for number, row in enumerate(rows, 1):
        source.add_json(f"entry {number}", row)
    return source


def read_karpathy(path: Path, value: dict[str, Any]) -> Source:
    """Read Karpathy's splits (Karpathy and Li, 2015) in the file's order, that of the vgg_feats.mat beside it too."""
    source = Source(path)
    for number, entry in enumerate(_objects(path, value, "images"), 1):
        where = f"image {number}"
        key = image_id(path, where, entry.get("filename"))
        if key in source.captions:
            raise BadInput(f"{path}: {where}, {key}, stands in it twice; give every image one entry")
        sentences = entry.get("sentences")
        if not isinstance(sentences, list):
            raise BadInput(f"{path}: {where}, {key}, has no list of sentences, so it is not Karpathy's file; {AGAIN}")
        source.captions[key] = [_sentence(path, f"{where}, {key},", sentence) for sentence in sentences]
        word = entry.get("split")
        if word not in ("train", "val", "test", RESTVAL):
            raise BadInput(f"{path}: {where}, {key}, has the split {word!r}; it must be train, restval, val or test")
        source.splits[key] = word
        if entry.get("filepath"):
            source.subfolders[key] = image_id(path, f"filepath of {where}", entry["filepath"])
    return source


def _sentence(path: Path, where: str, sentence: Any) -> str:
    if isinstance(sentence, dict) and "raw" in sentence:
        return caption_text(path, where, sentence["raw"])
    if isinstance(sentence, dict) and isinstance(sentence.get("tokens"), list):
        return " ".join(caption_text(path, where, token) for token in sentence["tokens"])
    raise BadInput(f"{path}: {where} has a sentence without raw text or tokens; {AGAIN}")


def read_coco(path: Path, value: dict[str, Any]) -> Source:
    """Read COCO's captions of one year: train is to be split into train and val, val is test.

    The other one of train and val is read too where it lies beside `path`. A file by itself comes without a split.
    """
    source = Source(path)
    match = _COCO_NAME.fullmatch(path.name)
    if not match:
        return _add_coco(source, path, value)
    train, val = (path.with_name(f"captions_{half}{match[2]}.json") for half in ("train", "val"))
    if not train.is_file() or not val.is_file():
        return _add_coco(source, path, value, f"{match[1]}{match[2]}")
    for half, word in ((train, TRAIN_OR_VAL), (val, "test")):
        content = value if half == path else parse(half, read_text(half))
        _add_coco(source, half, content, half.stem.removeprefix("captions_"), word)
    source.split_note = (
        f"{train.name} is split into train and val by a hash of the image id, {val.name} is test; "
        f"the papers' splits are Karpathy's dataset_coco.json"
    )
    return source


def _add_coco(source: Source, path: Path, value: Any, subfolder: str = "", word: str = "") -> Source:
    names: dict[Any, str] = {}
    for number, entry in enumerate(_objects(path, value, "images"), 1):
        key = image_id(path, f"image {number}", entry.get("file_name"))
        if key in source.captions or _hashable(entry.get("id")) in names:
            raise BadInput(f"{path}: image {number}, {key}, stands in it twice; give every image one id")
        names[_hashable(entry.get("id"))] = key
        source.captions[key] = []
        if word:
            source.splits[key] = word
        if subfolder:
            source.subfolders[key] = subfolder
    strange = []
    for number, annotation in enumerate(_objects(path, value, "annotations"), 1):
        if "caption" not in annotation:
            what = f"annotation {number} has no caption, so it is another of COCO's files"
            raise BadInput(f"{path}: {what}; give captions_train2014.json or its like with `captions`")
        key = names.get(_hashable(annotation.get("image_id")), "")
        if key:
            source.captions[key].append(caption_text(path, f"annotation {number}", annotation["caption"]))
        else:
            strange.append(annotation.get("image_id"))
    if strange:
        what = f"{len(strange):,} annotations name images that are not in it, the first {strange[0]}"
        raise BadInput(f"{path}: {what}; {AGAIN}")
    return source


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | str) else repr(value)


def _objects(path: Path, value: Any, key: str) -> list[dict[str, Any]]:
    """Return the list of objects under `key`. Raises BadInput if there is none."""
    rows = value.get(key) if isinstance(value, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        what = f"has no list of objects named {key}, so it is neither Karpathy's nor COCO's file"
        raise BadInput(f"{path}: {what}; {AGAIN}")
    return rows
