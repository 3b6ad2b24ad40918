"""Images in tables: a column of bytes in Arrow files, as `datasets` saves them, or in Parquet files; read in blocks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.images.files import Cell, ImageFile, Span
from features.parquet import ROWS_PER_BLOCK, damaged, import_arrow
from reading import parse_json
from utils import BadInput

ARROW, PARQUET = ".arrow", ".parquet"
NAMES = ("image", "img", "jpg", "png")  # of a column of bytes that nothing else says to hold images


@dataclass(frozen=True)
class Block:
    """Rows of a table from `start` on. names: what each image was called, "" if that is not said. values: by column."""

    start: int
    images: list[ImageFile | None]
    names: list[str]
    values: dict[str, list[Any]]


def table_schema(path: Path) -> Any:
    """Return the schema of an Arrow stream or a Parquet file. Raises BadInput if it is none, or cut short."""
    arrow, parquet = import_arrow("ipc", path), import_arrow("parquet", path)
    try:
        if path.suffix.lower() == PARQUET:
            schema = parquet.read_schema(path)
        else:
            with import_arrow("lib", path).memory_map(str(path)) as file:
                schema = arrow.open_stream(file).schema
        list(schema.names)  # decoded only now, and perhaps no UTF-8
        return schema
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        raise damaged(path, error) from None


def image_column(schema: Any) -> str | None:
    """Return the column of images: the one that `datasets` says so of, or of bytes with a usual name; None without."""
    types = import_arrow("types", Path())

    def has_bytes(name: str) -> bool:
        kind = schema.field(name).type
        kind = kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        return types.is_binary(kind) or types.is_large_binary(kind)

    columns = [name for name in dict.fromkeys(schema.names) if schema.names.count(name) == 1 and has_bytes(name)]
    try:
        features = parse_json(schema.metadata[b"huggingface"])["info"]["features"]
        named = [name for name in columns if features[name]["_type"] == "Image"]
    except (TypeError, KeyError, ValueError):  # not written by `datasets`
        named = []
    usual = [name for name in columns if name.casefold() in NAMES or types.is_struct(schema.field(name).type)]
    return next(iter([*named, *usual]), None)


def table_blocks(path: Path, image: str, columns: Sequence[str]) -> Iterator[Block]:
    """Yield the rows of a table: where the images of column `image` lie, and the values of other columns.

    Raises BadInput, after what comes before, if the file is damaged or cut short.
    """
    try:
        yield from (_of_parquet if path.suffix.lower() == PARQUET else _of_arrow)(path, image, columns)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None


def _of_arrow(path: Path, image: str, columns: Sequence[str]) -> Iterator[Block]:
    with import_arrow("lib", path).memory_map(str(path)) as file:
        whole, start = file.read_buffer(file.size()), 0
        for batch in import_arrow("ipc", path).open_stream(whole):
            batch.validate(full=True)  # a stranger's offsets may point anywhere
            column = batch.column(image)
            names = [""] * len(batch)
            if hasattr(column, "field"):
                if column.type.get_field_index("path") >= 0:
                    names = [str(name or "") for name in column.field("path").to_pylist()]
                column = column.field("bytes")
            spans = _spans(path, column, whole)
            yield Block(start, spans, names, {name: batch.column(name).to_pylist() for name in columns})
            start += len(batch)


def _spans(path: Path, column: Any, whole: Any) -> list[ImageFile | None]:
    """Where in the file each value of a column of bytes lies; None where it is null."""
    _, offsets, data = column.buffers()
    if data is None or not data.size:
        return [None] * len(column)
    begin = data.address - whole.address
    if not 0 <= begin <= whole.size - data.size:
        raise BadInput(f"{path}: is compressed, so that no image in it can be read by itself; save it again without")
    kind = np.int64 if str(column.type) == "large_binary" else np.int32
    ends = np.frombuffer(offsets, kind, len(column) + 1, column.offset * np.dtype(kind).itemsize).tolist()
    valid = column.is_valid().to_pylist()
    return [
        Span(path, begin + start, end - start) if is_valid else None
        for start, end, is_valid in zip(ends[:-1], ends[1:], valid, strict=True)
    ]


def _of_parquet(path: Path, image: str, columns: Sequence[str]) -> Iterator[Block]:
    """Only the names of the images are read here, not their bytes."""
    kind, start = table_schema(path).field(image).type, 0
    in_struct = import_arrow("types", path).is_struct(kind)
    with_names = in_struct and kind.get_field_index("path") >= 0
    cells = f"{image}.bytes" if in_struct else image
    with import_arrow("parquet", path).ParquetFile(path, memory_map=True, pre_buffer=False) as file:
        wanted = [*columns, *([f"{image}.path"] if with_names else [])]
        for batch in file.iter_batches(ROWS_PER_BLOCK, columns=wanted) if wanted else _bare(file.metadata.num_rows):
            images: list[ImageFile | None] = [Cell(path, cells, start + row) for row in range(len(batch))]
            names = [""] * len(batch)
            if with_names:
                names = [str(name or "") for name in batch.column(image).field("path").to_pylist()]
            yield Block(start, images, names, {name: batch.column(name).to_pylist() for name in columns})
            start += len(batch)


def _bare(count: int) -> Iterator[Any]:
    """Blocks of rows of which nothing is wanted but that they are there."""
    for start in range(0, count, ROWS_PER_BLOCK):
        yield range(start, min(start + ROWS_PER_BLOCK, count))


def table_images(path: Path) -> Iterator[tuple[str, ImageFile | None]]:
    """Yield a name for each row, and where its image lies, None where it has no bytes.

    Raises BadInput if there is no column of images, or, after what comes before, the file is damaged.
    """
    image = image_column(table_schema(path))
    if image is None:
        raise BadInput(f"{path}: has no column of images; leave it out")
    for block in table_blocks(path, image, []):
        yield from ((row_name(block, i), file) for i, file in enumerate(block.images))


def row_name(block: Block, i: int) -> str:
    """Return the name of row i of a block: its number in the table, and what its image was called.

    >>> row_name(Block(1000, [None], ["photos/a.jpg"], {}), 0), row_name(Block(1000, [None], [""], {}), 0)
    ('1000/a.jpg', '1000')
    """
    name = block.names[i].replace("\\", "/").rpartition("/")[2]
    return f"{block.start + i}/{name}" if name.isprintable() and name.strip(" .") else f"{block.start + i}"
