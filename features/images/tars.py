"""What lies in a tar, and where: its headers are read, nothing is unpacked, and no name in it is ever a path."""

import io
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from features.images.files import Span
from utils import BadInput

SUFFIX = ".tar"
HEADER_BYTES = 512  # of a header, and of the blocks that everything in a tar fills up
MAX_HEADER_BYTES = 2**20  # of a long name or an extended header: a hostile one may announce more than the memory holds
END = bytes(HEADER_BYTES)
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name, and where its bytes lie; or why it is left out (`span` is None)."""

    name: str
    span: Span | None
    reason: str = ""


class _Headers(io.FileIO):
    """A file of which no more is read at a time than a header can be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header of impossible size")
        return super().read(size)


def members(path: Path) -> Iterator[Member]:
    """Yield the files in a tar, in order; folders are passed over.

    Links, devices and files whose names lead out of a folder come with the reason why they are left out. Raises
    BadInput, after what comes before, if the tar is cut short, damaged, compressed or none.
    """
    try:
        with _Headers(path) as file:
            yield from _members(path, file)
    except (tarfile.TarError, RecursionError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise BadInput(f"{path}: not a tar, or damaged ({reason}); get it again, or leave it out") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check it, or leave it out") from None


def _members(path: Path, file: _Headers) -> Iterator[Member]:
    size, start = file.seek(0, io.SEEK_END), -1
    file.seek(0)
    beginning = file.read(8)
    for mark, kind in COMPRESSED.items():
        if beginning.startswith(mark):
            raise BadInput(f"{path}: is compressed with {kind}, so that nothing in it can be read by itself; unpack it")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            if info.size < 0 or not start < info.offset_data <= tar.offset:
                raise tarfile.ReadError("a file of impossible size")
            start = info.offset_data
            if start + info.size > size:
                raise BadInput(f"{path}: cut short within {info.name[:100]!r}; get it again, or leave it out")
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            if not info.isdir():
                name, reason = posixpath.normpath(info.name), _why_not(info)
                yield Member(name, None if reason else Span(path, start, info.size), reason)
        file.seek(tar.offset)
        if file.read(HEADER_BYTES) != END:  # where a header is damaged or missing, tarfile simply stops
            what = "cut short: it has no end" if tar.offset >= size else f"damaged at byte {tar.offset:,}"
            raise BadInput(f"{path}: {what}; get it again, or leave it out")


def _why_not(info: tarfile.TarInfo) -> str:
    if not info.isreg():
        return "a link or a device, not a file"
    if info.issparse():
        return "a sparse file, whose bytes do not lie together"
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return "its name leads out of the tar"
    return "" if info.name.isprintable() else "its name has characters that no file name should"
