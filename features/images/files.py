"""Where an image lies: in a file of its own, or inside a larger one, where it is read and never unpacked.

Whatever takes an image takes either, an `ImageFile`. As text (captions.jsonl, an index, JSON lines) a `Span` is the
path of its file with the bytes behind it, a `Cell` with column and row.
"""

import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from features.parquet import read_cell

MAX_IMAGE_BYTES = 2**28  # of an image inside a file: more is not read into memory
_CELL = re.compile(r"(.+)#column=(.+)&row=(\d{1,18})", re.DOTALL)
_SPAN = re.compile(r"(.+)#bytes=(\d{1,18})\+(\d{1,18})", re.DOTALL)


@dataclass(frozen=True)
class Span:
    """An image that is `length` bytes of `file`, from byte `start` on.

    >>> str(Span(Path("00000.tar"), 512, 10_233))
    '00000.tar#bytes=512+10233'
    """

    file: Path
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.file}#bytes={self.start}+{self.length}"

    def read(self) -> bytes:
        """Read its bytes. Raises OSError if that cannot be done, they are too many, or the file ends before them."""
        if self.length > MAX_IMAGE_BYTES:
            raise OSError(f"{self.length:,} bytes are too many for an image")
        with open(self.file, "rb") as file:
            data = os.pread(file.fileno(), self.length, self.start)
        if len(data) < self.length:
            raise OSError(f"{self.file.name} ends before it")
        return data


@dataclass(frozen=True)
class Cell:
    """An image that is the bytes in a row, counted from 0, of a column of a Parquet file.

    >>> str(Cell(Path("train-00000-of-00001.parquet"), "image.bytes", 17))
    'train-00000-of-00001.parquet#column=image.bytes&row=17'
    """

    file: Path
    column: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}#column={self.column}&row={self.row}"

    def read(self) -> bytes:
        """Read its bytes. Raises OSError if that cannot be done, or the file has a path in their place."""
        data = read_cell(self.file, self.column, self.row)
        if data is None:
            raise OSError("its bytes are not in the file, only its path may be")
        return data


ImageFile = Path | Span | Cell


def image_file(text: str) -> ImageFile:
    """Return the image file that was written as `text`.

    >>> image_file("a/00000.tar#bytes=512+10233").length, image_file("a/b.jpg").name
    (10233, 'b.jpg')
    """
    if match := _SPAN.fullmatch(text):
        return Span(Path(match[1]), int(match[2]), int(match[3]))
    match = _CELL.fullmatch(text)
    return Cell(Path(match[1]), match[2], int(match[3])) if match else Path(text)


def file_on_disk(image: ImageFile) -> Path:
    """Return the file that an image is, or lies in: what can be missing, or change."""
    return image if isinstance(image, Path) else image.file


def size_of(image: ImageFile) -> int:
    """Return the bytes of an image, or of the Parquet file that it lies in. Raises OSError if its file is missing."""
    return image.length if isinstance(image, Span) else os.stat(file_on_disk(image)).st_size


def open_image_file(image: ImageFile) -> IO[bytes]:
    """Open the bytes of an image. Raises OSError if that cannot be done, or it is a folder, a pipe or the like."""
    mode = os.stat(file_on_disk(image)).st_mode
    if not stat.S_ISREG(mode):  # a pipe would be waited for, for ever
        raise OSError("a folder, not a file" if stat.S_ISDIR(mode) else "a pipe or a device, not a file")
    return open(image, "rb") if isinstance(image, Path) else io.BytesIO(image.read())
