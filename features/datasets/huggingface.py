"""Datasets as Hugging Face's `datasets` saves them, and Parquet files of them: images stay where they lie.

Nothing is loaded by `datasets`: no script, no builder and no network; pyarrow reads the tables.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from features.datasets.json_files import RESTVAL, TRAIN_OR_VAL
from features.datasets.line_files import CAPTION_COLUMNS, SPLIT_WORDS, Source
from features.images.tables import ARROW, PARQUET, Block, image_column, row_name, table_blocks, table_schema
from features.progress import progress_bar
from reading import read_json
from utils import BadInput

DICT, STATE = "dataset_dict.json", "state.json"
AGAIN = "save it again with save_to_disk"
_SHARD = re.compile(r"([A-Za-z]+)-\d+-of-\d+.*")  # train-00000-of-00002.parquet, as the hub has them


def read_huggingface(images: Path) -> Source:
    """Read a column of images, one of captions (a text or a list of texts each), and perhaps one called `split`.

    images: what save_to_disk has written, of a Dataset or a DatasetDict; a Parquet file; or a folder of them. Without a
    column, the names of the dict or of the files (`train-00000-of-00002.parquet`) are the splits; train is divided if
    there is no val. An image's id is its file's path below the folder, the number of its row, and what it was called.
    Raises BadInput if there is no table, no such column, or one is damaged.
    """
    source = Source(images)
    files = find_tables(images)
    root = images if images.is_dir() else images.parent
    names = {split for split, _ in files}
    without: list[str] = []
    for split, file in progress_bar(files, "read tables", unit=" files", delay=2, leave=False):
        halved = SPLIT_WORDS.get(split) == "train" and not any(SPLIT_WORDS.get(name) == "val" for name in names)
        word = "" if len(names) == 1 else TRAIN_OR_VAL if halved else split
        without += _add_table(source, file, file.relative_to(root).as_posix(), word)
    if without:
        source.notes.append(f"{len(without):,} rows without an image left out, the first {without[0]}")
    return source


def find_tables(images: Path) -> list[tuple[str, Path]]:
    """Return the tables in a folder, or the one named, each with its split, "" where that is not said."""
    if (images / DICT).is_file():
        names = _names(images / DICT, "splits")
        return [(name, file) for name in names for _, file in find_tables(images / name)]
    if (images / STATE).is_file():
        return [("", images / name) for name in _names(images / STATE, "_data_files")]
    if images.is_dir():
        files = sorted(path for path in images.rglob(f"*{PARQUET}") if not path.name.startswith("."))
    else:
        files = [images] if images.suffix.lower() in (ARROW, PARQUET) else []
    if not files:
        what = "holds neither what save_to_disk writes nor Parquet files"
        raise BadInput(f"{images}: {what}; name the folder, or a file of it, with `images`")
    return [(_split_of(path), path) for path in files]


def _split_of(path: Path) -> str:
    match = _SHARD.fullmatch(path.name)
    return match[1].casefold() if match and match[1].casefold() in SPLIT_WORDS else ""


def _names(path: Path, key: str) -> list[str]:
    """The names that a JSON file lists of what lies beside it. Raises BadInput for one that leads elsewhere."""
    value = read_json(path, AGAIN)
    rows = value.get(key) if isinstance(value, dict) else None
    rows = rows if isinstance(rows, list) else []
    names: list[Any] = [row.get("filename") if isinstance(row, dict) else row for row in rows]
    if not names or not all(isinstance(name, str) and Path(name).name == name != ".." for name in names):
        raise BadInput(f"{path}: does not list {key} beside it; {AGAIN}")
    return names


def _add_table(source: Source, file: Path, name: str, split: str) -> Iterator[str]:
    """Add the rows of a table; yield the names of those without an image."""
    schema = table_schema(file)
    image = image_column(schema)
    known = {column.casefold(): column for column in schema.names}
    caption = next((known[word] for word in CAPTION_COLUMNS if word in known and known[word] != image), None)
    if image is None or caption is None:
        what = f"has the columns {', '.join(schema.names)[:200]}"
        raise BadInput(f"{file}: {what}; it needs one of images, and one called {' or '.join(CAPTION_COLUMNS)}")
    columns = [caption, *([known["split"]] if "split" in known else [])]
    for block in table_blocks(file.absolute(), image, columns):
        for i, file_of_row in enumerate(block.images):
            key = f"{name}/{row_name(block, i)}"
            if file_of_row is None:
                yield key
                continue
            _add_row(source, key, block, i, columns, split)
            source.files[key] = file_of_row


def _add_row(source: Source, key: str, block: Block, i: int, columns: list[str], split: str) -> None:
    captions: Any = block.values[columns[0]][i]
    word = block.values[columns[1]][i] if columns[1:] else split
    row = {"image": key, "captions": [] if captions is None else captions}
    if word in (RESTVAL, TRAIN_OR_VAL):  # settled later, because options decide
        source.add_json(key, row)
        source.splits[key] = word
    else:
        source.add_json(key, row | {"split": word})
