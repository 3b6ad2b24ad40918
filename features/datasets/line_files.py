"""Caption files that have one caption a line: tokens, pipes, Kaggle's commas, tables, JSON lines."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.images.files import ImageFile
from reading import open_regular, parse_json
from utils import BadInput

AGAIN = "get the file again, or check that `captions` names the right one"

IMAGE_COLUMNS = ("image", "filename", "file", "file_name", "image_name")
CAPTION_COLUMNS = ("caption", "captions", "sentence", "text", "comment")
SPLIT_WORDS = {"train": "train", "val": "val", "test": "test", "validation": "val", "valid": "val", "dev": "val"}

# How files begin that people hand over in place of text.
_POINT = "point `captions` to the text file that holds the captions"
BEGINNINGS = {
    b"\xff\xd8": f"a JPEG image; {_POINT}",
    b"\x89PNG": f"a PNG image; {_POINT}",
    b"PK\x03\x04": "a spreadsheet or a zip archive; save the sheet as CSV in UTF-8, or unpack the archive first",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"%PDF": f"a PDF; {_POINT}",
    b"\x89HDF": f"an HDF5 file of features; {_POINT}",
    b"\x93NUMPY": f"a numpy array; {_POINT}",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}

_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # cannot be written as UTF-8
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_TOKEN_ID = re.compile(r"(.+)#\d+")


@dataclass
class Source:
    """What the caption file `path` says by itself, before splits are settled; every dict has image ids for keys.

    splits: of every image, or empty. subfolders: where an image lies within the image folder.
    files: where it lies, if inside a file with others.
    split_note: logged only if these splits are the ones that are used.
    """

    path: Path
    captions: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    subfolders: dict[str, str] = field(default_factory=dict)
    files: dict[str, ImageFile] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    split_note: str = ""

    def add(self, where: str, image: Any, captions: list[Any], split: str = "") -> None:
        """Add captions of one image and its split (blank: not said here). Raises BadInput that names `where`."""
        key = image_id(self.path, where, image)
        self.captions.setdefault(key, []).extend(caption_text(self.path, where, caption) for caption in captions)
        split = split.strip().casefold()
        if not split:
            return
        if split not in SPLIT_WORDS:
            raise BadInput(f"{self.path}: {where} has the split {split!r}; it must be train, val or test")
        earlier = self.splits.setdefault(key, SPLIT_WORDS[split])
        if earlier != SPLIT_WORDS[split]:
            what = f"puts {key} into {split}, an earlier one into {earlier}; keep it in one split"
            raise BadInput(f"{self.path}: {where} {what}")

    def add_json(self, where: str, row: Any) -> None:
        """Add one JSON object with an image, its caption or captions, and perhaps a split."""
        if not isinstance(row, dict):
            example = '{"image": "a.jpg", "caption": "..."}'
            raise BadInput(f"{self.path}: {where} is not an object like {example}; mend that line")
        row = {str(key).casefold(): value for key, value in row.items()}
        image = next((row[name] for name in IMAGE_COLUMNS if name in row), None)
        captions = next((row[name] for name in CAPTION_COLUMNS if name in row), None)
        if captions is None:
            raise BadInput(f'{self.path}: {where} has no "caption" or "captions"; give every image its captions')
        split = row.get("split") or ""
        if not isinstance(split, str):
            raise BadInput(f"{self.path}: {where} has a split that is not text; it must be train, val or test")
        self.add(where, image, captions if isinstance(captions, list) else [captions], split)

    def with_all_splits(self) -> "Source":
        """Return the source itself. Raises BadInput if some images have a split and some have none."""
        without = [key for key in self.captions if key not in self.splits]
        if self.splits and without:
            what = f"{len(without):,} images have no split while others have one, the first {without[0]}"
            raise BadInput(
                f"{self.path}: {what}; give all of them one, or none (`split_ratio` draws them), or three lists by "
                f"`splits`"
            )
        return self


def read_text(path: Path) -> str:
    """Read a text file without its byte order mark. Raises BadInput if it is missing, empty, binary or not UTF-8."""
    try:
        with open_regular(path) as file:
            raw = file.read()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; check the path given") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a folder, not a file; name the file in it") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check that you may read it") from None
    for beginning, kind in BEGINNINGS.items():
        if raw.startswith(beginning):
            raise BadInput(f"{path}: is {kind}")
    if b"\0" in raw[:4096]:
        raise BadInput(f"{path}: is a binary file, not text; {AGAIN}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)  # the decoder does not count the mark
        line = raw.count(b"\n", 0, start) + 1
        raise BadInput(f"{path}: line {line} is not UTF-8 text (byte {start}); save it as UTF-8") from None
    if not text.strip():
        raise BadInput(f"{path}: is empty; {AGAIN}")
    return text


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1.

    Only ends of line count: str.splitlines would also cut at U+2028 and its like, which may stand in a caption.
    """
    text = text.replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    for number, match in enumerate(_LINE.finditer(text), 1):  # one at a time: a list of them may be 20 times the text
        if match[0].strip():
            yield number, match[0].rstrip("\n")


def image_id(path: Path, where: str, text: Any) -> str:
    """Return `text` as an image id: a path within the image folder. Raises BadInput that names `where`."""
    where = f"{path}: {where}"
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"{where} names no image; give every caption the file name of its image")
    text = text.strip()
    parts = text.replace("\\", "/").split("/")
    if _ABSOLUTE.match(text) or ".." in parts:
        raise BadInput(f"{where} names the image {text!r}, outside the image folder; name images relative to `images`")
    if _CONTROL.search(text) or _SURROGATE.search(text) or max(len(part.encode()) for part in parts) > 255:
        raise BadInput(f"{where} names the image {text[:60]!r}, which cannot be a file name; mend that name")
    text = "/".join(part for part in text.split("/") if part not in (".", ""))
    if not text:
        raise BadInput(f"{where} names a folder, not an image; give every caption the file name of its image")
    return text


def caption_text(path: Path, where: str, caption: Any) -> str:
    """Return `caption` if it is text that can be written as UTF-8. Raises BadInput that names `where`."""
    if not isinstance(caption, str):
        raise BadInput(f"{path}: {where} has a caption that is not text; write captions as strings")
    if _SURROGATE.search(caption):
        raise BadInput(f"{path}: {where} has a caption with half a character (a lone surrogate); save it as UTF-8")
    return caption


def unquoted(value: str) -> str:
    """Return a field without its quotes if it is properly quoted as CSV, else as it stands.

    >>> unquoted('"a ""big"" dog"'), unquoted('"a" or "b"')
    ('a "big" dog', '"a" or "b"')
    """
    value = value.strip()
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    inner = value[1:-1].replace('""', "\0")
    return value if '"' in inner else inner.replace("\0", '"')


def columns_of(line: str, delimiter: str) -> list[str]:
    """Return the column names of a header line, in small letters."""
    return [unquoted(name).strip().casefold() for name in line.split(delimiter)]


def is_token(line: str) -> bool:
    """Return whether a line looks like `image.jpg#0<TAB>caption`."""
    key, tab, _ = line.partition("\t")
    return bool(tab and _TOKEN_ID.fullmatch(key.strip()))


def read_tokens(path: Path, text: str) -> Source:
    """Read Flickr8k.token.txt or Flickr30k's results_20130124.token: `image.jpg#0<TAB>caption`."""
    source = Source(path)
    for number, line in numbered_lines(text):
        key, tab, caption = line.partition("\t")
        match = _TOKEN_ID.fullmatch(key.strip())
        if not tab or not match:
            raise _damaged(path, number, "is not `image.jpg#0<TAB>caption`")
        source.add(f"line {number}", match[1], [caption])
    return source


def _damaged(path: Path, number: int, what: str) -> BadInput:
    return BadInput(f"{path}: line {number} {what}: the file is damaged, cut short or of another kind; {AGAIN}")


def read_numbered(path: Path, text: str) -> Source:
    """Read `image_name| comment_number| comment`, with a header: Flickr30k's results.csv, and the same with commas.

    The published file has a line without its second separator (`2199200615.jpg| 4   A dog ...`): it is read and noted.
    """
    (_, header), *lines = numbered_lines(text)
    separator = numbered_separator(header) or "|"
    whole = re.compile(rf"\s*\d+\s*{re.escape(separator)}(.*)", re.DOTALL)
    broken = re.compile(r"\s*\d+\s+(.+)", re.DOTALL)
    source, mended = Source(path), []
    for number, line in lines:
        name, _, rest = line.partition(separator)
        if match := whole.fullmatch(rest):
            caption = unquoted(match[1]) if separator == "," else match[1]
        elif match := broken.fullmatch(rest):
            caption = match[1].rstrip().removesuffix(separator)
            mended.append(number)
        else:
            raise _damaged(path, number, f"is not `image{separator} number{separator} caption`")
        source.add(f"line {number}", name, [caption])
    if mended:
        source.notes.append(f"{len(mended):,} lines without their second {separator!r} mended, the first {mended[0]}")
    return source


def numbered_separator(header: str) -> str:
    """Return the separator of a header `image_name, comment_number, comment`, or nothing if it is another header."""
    for separator in "|,":
        columns = columns_of(header, separator)
        if len(columns) == 3 and columns[0] in IMAGE_COLUMNS and columns[1] == "comment_number":
            return separator
    return ""


def read_kaggle(path: Path, text: str) -> Source:
    """Read Kaggle's captions.txt: `image,caption` with a header; all after the first comma is caption."""
    source = Source(path)
    for number, line in list(numbered_lines(text))[1:]:
        name, comma, caption = line.partition(",")
        if not comma:
            raise _damaged(path, number, "has no comma between image and caption")
        source.add(f"line {number}", unquoted(name), [unquoted(caption)])
    return source


def table_delimiter(header: str) -> str:
    """Return the delimiter under which a header has an image and a caption column, or nothing."""
    for delimiter in "\t,;":
        columns = columns_of(header, delimiter)
        if set(columns) & set(IMAGE_COLUMNS) and set(columns) & set(CAPTION_COLUMNS):
            return delimiter
    return ""


def read_table(path: Path, text: str) -> Source:
    """Read CSV (comma or semicolon) or TSV with a header: image, caption and optional split; several rows an image."""
    header = next(numbered_lines(text))[1]
    delimiter = table_delimiter(header)
    if not delimiter:
        needed = "it needs a header with an image and a caption column (image,caption or image,caption,split)"
        raise BadInput(f"{path}: line 1 names the columns {header.strip()[:80]!r}; {needed}")
    columns = columns_of(header, delimiter)
    image, caption = (
        next(columns.index(name) for name in known if name in columns) for known in (IMAGE_COLUMNS, CAPTION_COLUMNS)
    )
    split = columns.index("split") if "split" in columns else None
    source = Source(path)
    rows = _tsv_rows(text) if delimiter == "\t" else _csv_rows(path, text, delimiter)
    next(rows)
    for number, row in rows:
        if len(row) < len(columns):
            raise _damaged(path, number, f"has {len(row)} of {len(columns)} columns")
        if any(cell.strip() for cell in row[len(columns) :]):
            what = f"has {len(row)} columns where the header has {len(columns)}"
            raise BadInput(f"{path}: line {number} {what}; put quotes around captions that hold the delimiter")
        source.add(f"line {number}", row[image], [row[caption]], row[split] if split is not None else "")
    return source


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    # TSV seldom quotes: a caption that begins with a quotation mark must not swallow the lines after it.
    for number, line in numbered_lines(text):
        yield number, [unquoted(cell) for cell in line.split("\t")]


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        reason = f"is not proper CSV ({error}); close its quotes, and double quotes inside"
        raise BadInput(f"{path}: line {reader.line_num} {reason}") from None


def read_json_lines(path: Path, text: str) -> Source:
    """Read JSON lines: {"image": ..., "caption": "..." or "captions": [...], "split": ... if there are splits}."""
    source = Source(path)
    for number, line in numbered_lines(text):
        try:
            row = parse_json(line)
        except ValueError as error:
            reason = str(error).removeprefix("line 1: ")
            raise BadInput(f"{path}: line {number} is not JSON, or cut short ({reason}); {AGAIN}") from None
        source.add_json(f"line {number}", row)
    return source
