"""Webdataset tars as img2dataset writes them: KEY.jpg, KEY.txt and KEY.json together; images stay where they lie."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from features.datasets.line_files import Source
from features.images import tars
from features.images.decode import IMAGE_SUFFIXES
from features.images.tars import Member
from features.progress import progress_bar
from reading import parse_json
from utils import BadInput

MAX_TEXT_BYTES = 2**20  # of a caption or a JSON object
MAX_TARS = 100_000  # of a range in a pattern
_KEY = re.compile(r"((?:.*/)?[^./]+)\.(.+)", re.DOTALL)  # webdataset's own: an ending begins at the first full stop
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def read_webdataset(images: Path) -> Source:
    """Read samples of a key each: an image, and its captions and split from KEY.json, or its caption from KEY.txt.

    images: a tar, a folder of them, or a pattern such as shards/{00000..00099}.tar or shards/*.tar. An image's id is
    the tar's path below the folder that holds all of them, and its name there. KEY.json may have `caption` or
    `captions`, a text or a list of texts, and `split`. What cannot be read of a sample is left out and noted. Raises
    BadInput if there is no tar, or one is damaged or cut short.
    """
    source = Source(images)
    files = [Path(os.path.abspath(path)) for path in find_tars(images)]
    root = os.path.abspath(images) if images.is_dir() else os.path.commonpath([file.parent for file in files])
    left_out: list[str] = []
    for file in progress_bar(files, "read tars", unit=" tars", delay=2, leave=False):
        name = file.relative_to(root).as_posix()
        for _, group in groupby(tars.members(file), lambda member: _split(member.name)[0]):
            left_out += [f"{name}/{member} ({reason})" for member, reason in _add_sample(source, name, list(group))]
    if left_out:
        source.notes.append(f"{len(left_out):,} files in tars left out, the first {left_out[0]}")
        if not any(source.captions.values()):
            raise BadInput(f"{images}: holds no image with a caption ({source.notes[0]}); make the tars again")
    return source


def find_tars(images: Path) -> list[Path]:
    """Return the tars in a folder, of a pattern, or the one named, sorted. Raises BadInput if there is none.

    >>> find_tars(Path("no such folder/{00..01}.tar"))
    Traceback (most recent call last):
    ...
    utils.BadInput: no such folder/{00..01}.tar: names no tar; name a tar, a folder of tars or a pattern with `images`
    """
    if images.is_dir():
        files = [path for path in images.rglob(f"*{tars.SUFFIX}") if not path.name.startswith(".")]
    elif images.is_file():
        files = [images]
    else:
        files = [Path(path) for pattern in _expanded(str(images)) for path in glob.glob(pattern)]
    files = sorted(path for path in set(files) if path.is_file())
    if not files:
        raise BadInput(f"{images}: names no tar; name a tar, a folder of tars or a pattern with `images`")
    return files


def _expanded(pattern: str) -> Iterator[str]:
    """Yield a pattern with each number of its ranges, {00000..00099}, put in."""
    match = _RANGE.search(pattern)
    if not match:
        yield pattern
        return
    if int(match[2]) - int(match[1]) > MAX_TARS:
        raise BadInput(f"{pattern}: {match[0]} are more than {MAX_TARS:,} tars; write a * in its place with `images`")
    for number in range(int(match[1]), int(match[2]) + 1):
        yield from _expanded(f"{pattern[: match.start()]}{number:0{len(match[1])}}{pattern[match.end() :]}")


def _split(name: str) -> tuple[str, str]:
    match = _KEY.fullmatch(name)
    return (match[1], match[2].casefold()) if match else (name, "")


def _add_sample(source: Source, shard: str, group: Sequence[Member]) -> Iterator[tuple[str, str]]:
    """Add the image of the members of one key; yield (name, reason) of what is left out."""
    for member in group:
        suffix = Path(member.name).suffix.casefold()
        if suffix in IMAGE_SUFFIXES and f".{_split(member.name)[1]}" != suffix:
            yield member.name, "its ending begins at the first full stop, as webdataset has it, and is no image's"
    parts = {ending: member for member in group if (ending := _split(member.name)[1])}
    image = next((ending for ending in parts if f".{ending}" in IMAGE_SUFFIXES), None)
    if image is None:
        apart = [parts[ending].name for ending in ("json", "txt") if ending in parts]
        yield from ((name, "no image of its key stands beside it, as in webdataset's tars") for name in apart)
        return
    wanted = [parts[ending] for ending in (image, "json", "txt") if ending in parts]
    bad = [(member.name, member.reason) for member in wanted if member.span is None]
    if bad:
        yield from bad
        return
    try:
        texts = {ending: _text(parts[ending]) for ending in ("json", "txt") if ending in parts}
        row = parse_json(texts.get("json", "{}"))
        if not isinstance(row, dict):
            raise ValueError("its JSON is no object")
    except (OSError, ValueError) as error:
        yield parts[image].name, f"{' '.join(str(error).split()) or 'its JSON cannot be read'}"
        return
    key, where = f"{shard}/{parts[image].name}", f"{shard}, {parts[image].name},"
    if key in source.captions:
        yield parts[image].name, "its name stands in the tar twice"
        return
    source.add_json(where, {"image": key, "captions": _captions(row, texts), "split": row.get("split")})
    span = parts[image].span
    assert span is not None
    source.files[key] = span


def _text(member: Member) -> str:
    assert member.span is not None
    if member.span.length > MAX_TEXT_BYTES:
        raise OSError(f"{member.name} has {member.span.length:,} bytes, too many for a caption")
    return member.span.read().decode("utf-8-sig")


def _captions(row: dict[str, Any], texts: dict[str, str]) -> list[Any]:
    """The captions of a JSON object; the text beside it where that has none."""
    captions = row.get("captions") or row.get("caption")
    if not captions:
        return [texts["txt"]] if "txt" in texts else []
    return captions if isinstance(captions, list) else [captions]
