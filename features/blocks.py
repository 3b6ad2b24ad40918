"""Finished blocks of rows: what is computed is not computed again after a kill, nor by a run that goes on."""

import contextlib
import functools
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.distributed import deal, from_first, rank, size
from features.npz import read_npz
from reading import read_json
from utils import LOCK, BadInput, atomic_write, lock_folder, make_folder, write_json

META = "meta.json"
AUTO, TORCH, OPENVINO = "auto", "torch", "openvino"  # engines, which features.engines has
FLOAT32, BFLOAT16 = "float32", "bfloat16"  # in which they compute
MADE_WITH = {"engine": TORCH, "precision": FLOAT32}  # rows that do not say so
CACHED_COLUMNS = 4  # of finished blocks, kept in memory while they are read
# what np.load makes of a damaged file
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Identity:
    """What rows are made with. attributes: all that is written down of it; keys: rows that differ in one do not mix."""

    attributes: Mapping[str, str | int]
    keys: tuple[str, ...]
    remedy: str

    def check(self, path: Path, made_with: Mapping[str, Any]) -> None:
        """Make sure that rows of `path`, made with these attributes, mix with ours; raises BadInput if they do not."""
        maker = made_with.get("encoder") or made_with.get("backbone")
        for key in self.keys:
            was, now = made_with.get(key, MADE_WITH.get(key)), self.attributes[key]
            if was != now:
                what = "other weights" if key == "digest" else f"another {key}"
                values = f"{str(was)[:60]}, not {str(now)[:60]}"
                raise BadInput(f"{path}: was made by {maker} with {what} ({values}); {self.remedy}")


def part_attributes(part: Path) -> dict[str, Any]:
    """Return what the blocks in a folder are made with; nothing if there are none."""
    return read_json(part / META, "repeat with `fresh`") if (part / META).exists() else {}


def as_before(engine: str, precision: str | None, earlier: Mapping[str, Any]) -> tuple[str, str]:
    """Return engine and precision with which to go on from rows made with `earlier`, empty if there are none.

    >>> as_before("auto", None, {}), as_before("auto", None, {"engine": "openvino"}), as_before("torch", None, {})
    (('auto', 'float32'), ('openvino', 'float32'), ('torch', 'float32'))
    """
    made_with = {**MADE_WITH, **earlier} if earlier else {"engine": AUTO, "precision": FLOAT32}
    return made_with["engine"] if engine == AUTO else engine, precision or made_with["precision"]


@contextlib.contextmanager
def lock_part(path: Path, fresh: bool = False) -> Iterator[Path]:
    """Hold `path`.part, the folder of blocks of a file under way, which goes if it is left empty.

    fresh: throw away both first.
    Raises BadInput if another program is at work in it, or a symbolic link stands in its place.
    """
    part = path.with_name(f"{path.name}.part")
    refuse_link(part)
    try:
        with lock_folder(make_folder(part, "data")):
            if fresh:
                path.unlink(missing_ok=True)
                clear(part)
            yield part
    finally:
        with contextlib.suppress(OSError):
            part.rmdir()  # if no block, and nobody's lock, is left in it


def refuse_link(folder: Path) -> None:
    """Make sure that nothing is written or deleted through a symbolic link in place of `folder`."""
    if folder.is_symlink():
        raise BadInput(f"{folder}: is a symbolic link in place of a folder; remove it and repeat the command")


def clear(folder: Path) -> None:
    """Remove what is in a folder, following no link, but for the note of who is at work in it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


class Blocks:
    """Rows that are done, in blocks of a folder, joined by a key of theirs; each block is a file written whole.

    A block holds the key of each row, and arrays with a row for each key. One that cannot be read is done again.
    work: names what several processes do together, whose blocks are told apart by it, see `Work`.
    Raises BadInput if the blocks there are of another identity.
    """

    def __init__(self, folder: Path, identity: Identity | None = None, work: str = ""):
        self.folder, self.number, self.work = folder, 0, work
        self.done: dict[str, tuple[Path, int]] = {}  # key → its block and its row there
        self._column = functools.lru_cache(maxsize=CACHED_COLUMNS)(_read_column)
        if identity is not None and (made_with := part_attributes(folder)):
            identity.check(folder, made_with)
        elif identity is not None:
            write_json(folder / META, dict(identity.attributes))
        self._scan()

    def scan_others(self) -> None:
        """See what other processes have written, where several work together."""
        if self.work:
            self._scan()

    def _scan(self) -> None:
        for file in sorted(self.folder.glob("block-*.npz")):
            try:
                keys = _read_column(file, "key").tolist()
            except DAMAGED:
                file.unlink()
                continue
            self.number = int(file.stem.split("-")[1]) + 1
            self.done.update((key, (file, row)) for row, key in enumerate(keys))

    def __contains__(self, key: str) -> bool:
        return key in self.done

    def missing(self, keys: Sequence[str], size: int) -> list[list[int]]:
        """Return the positions of `keys` that no block has, in groups of which none reaches over a multiple of `size`.

        So what is computed together does not depend on where a run was interrupted.
        """
        starts = range(0, len(keys), size)
        groups = ([i for i in range(start, min(start + size, len(keys))) if keys[i] not in self] for start in starts)
        return [group for group in groups if group]

    def write(self, keys: Sequence[str], **arrays: np.ndarray) -> None:
        """Write a block: a row of each array for each key."""
        writer = f"-{self.work}-{rank()}" if self.work else ""
        file = self.folder / f"block-{self.number:06d}{writer}.npz"
        with atomic_write(file, "wb") as stream:
            np.savez(stream, key=np.array(keys), **arrays)  # type: ignore[arg-type]
        self.number += 1
        self.done.update((key, (file, row)) for row, key in enumerate(keys))

    def deal(self, groups: list[list[int]], others: Callable[[int], object]) -> Iterator[Sequence[int]]:
        """Yield those of `groups` that this process is to write; others: hears how many rows were left to others."""
        return deal(groups, self.work, others)

    def row(self, key: str, name: str) -> Any:
        """Read the row of `key` in the array `name`. Raises BadInput if its block is damaged; then it is done again."""
        file, row = self.done[key]
        try:
            return self._column(file, name)[row]
        except DAMAGED as error:
            file.unlink(missing_ok=True)
            raise BadInput(f"{file}: is damaged ({error}); repeat the command, which does its rows again") from error

    def assemble(
        self, keys: Sequence[str], name: str, row: np.dtype, size: int, earlier: Callable[[list[int]], np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yield the rows of `keys` in the array `name`, `size` at a time.

        row: type of a row, such as np.dtype((np.float16, (384,))). earlier: gives the rows at positions of `keys` that
        no block has.
        """
        for start in range(0, len(keys), size):
            group = keys[start : start + size]
            rows = np.empty(len(group), row)
            others = [i for i, key in enumerate(group) if key not in self]
            if others:
                rows[others] = earlier([start + i for i in others])
            for i in sorted((i for i, key in enumerate(group) if key in self), key=lambda i: self.done[group[i]]):
                rows[i] = self.row(group[i], name)  # a block after the other
            yield rows


@dataclass(frozen=True)
class Work:
    """Rows of a store that several processes compute together, as the first one hands it out to the others.

    file: the store's name; part: the folder of its blocks; name: unlike that of any other work; attributes: what the
    rows are made with; keys, sources: of each row, and what it is made of; groups: positions of those to be computed.
    """

    file: str
    part: str
    name: str
    attributes: dict[str, str | int]
    keys: list[str]
    sources: list[str]
    groups: list[list[int]]

    def blocks(self) -> Blocks:
        """Open the blocks, to write some more."""
        return Blocks(Path(self.part), work=self.name)


def hand_out(
    file: str,
    blocks: Blocks,
    identity: Identity,
    keys: Sequence[str],
    sources: Iterable[str],
    groups: list[list[int]],
) -> None:
    """Tell the other processes, if there are any, what is to be done in `blocks`; they `take_work`."""
    if size() > 1:
        blocks.work = secrets.token_hex(4)
        part, attributes = str(blocks.folder), dict(identity.attributes)
        work = Work(file, part, blocks.work, attributes, list(keys), list(sources), groups)
        from_first(lambda: asdict(work))


def end_work() -> None:
    """Tell the other processes, if there are any, that nothing more is to be done."""
    from_first(lambda: None)


def take_work() -> Iterator[Work]:
    """Yield, in all processes but the first, what that hands out, until it ends the work."""
    while work := from_first(dict[str, Any]):
        yield Work(**work)


def _read_column(file: Path, name: str) -> np.ndarray:
    return read_npz(file, name)[name]
