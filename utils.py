"""What every room needs: errors that speak to the user, logging, files written whole or not at all, JSON, digests."""

import contextlib
import difflib
import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"  # in a folder: who is at work in it
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what network file systems without them answer


class BadInput(Exception):
    """Input that a person can mend. The message is one sentence that names what is wrong, and the remedy.

    A parameter or a setting that mends it stands in backquotes (`captions`, `training.lr`): from Python that is its
    name, and `script.run_script` writes it as the flag of the command line.
    """


class NotPrepared(BadInput):
    """Features are missing that prep.py makes. options: those it needs (`features.prepare.prepare` takes the same)."""

    def __init__(self, sentence: str, options: dict[str, Any]):
        super().__init__(sentence)
        self.options = options


def refused(error: OSError) -> str:
    """Return what the system has refused, in one sentence with the remedy.

    >>> refused(OSError(28, "No space left on device", "a.h5"))
    'a.h5: No space left on device; check that it exists, that you may read and write there, and that ...'
    """
    where = f"{error.filename}: " if error.filename else ""
    remedy = "check that it exists, that you may read and write there, and that the disk is not full"
    return f"{where}{error.strerror or error}; {remedy}"


def with_flags(sentence: str) -> str:
    """Write the parameters and settings of a sentence, which stand in backquotes, as flags.

    >>> with_flags("16 GB: too large; lower `batch_size`, or `training.lr`, or ask for fewer with `k`")
    '16 GB: too large; lower --batch-size, or --set training.lr, or ask for fewer with -k'
    """

    def flag(name: re.Match[str]) -> str:
        if "." in name[1]:
            return f"--set {name[1]}"
        return f"-{name[1]}" if len(name[1]) == 1 else f"--{name[1].replace('_', '-')}"

    return re.sub(r"`([a-z][a-z_]*(?:\.[a-z_]+)?)`", flag, sentence)


def command_line(script: str, options: dict[str, Any]) -> str:
    """Return the command that gives a script these options; "" is the name before them, None and False are left out.

    >>> command_line("prep.py", {"": "flickr8k", "backbone": ["vgg19"], "map": True, "crops": 10, "ids": None})
    'python prep.py flickr8k --backbone vgg19 --map --crops 10'
    """
    words = ["python", script]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words += [f"--{name.replace('_', '-')}"] if name else []
        if value is not True:
            words += map(str, value) if isinstance(value, list | tuple) else [str(value)]
    return shlex.join(words)


_as_script = False  # whether a person reads flags, or a program has parameters
_quiet = False  # whether warnings alone are said
_silent = False  # whether not even they are


@contextlib.contextmanager
def as_script() -> Iterator[None]:
    """Let what is said within be said to a person who reads flags; afterwards nothing is quiet any more."""
    global _as_script, _quiet, _silent
    _as_script = True
    try:
        yield
    finally:
        _as_script = _quiet = _silent = False


def be_quiet(warnings: bool = False) -> None:
    """Until the script ends, say warnings, errors and results alone: `log` is silent, and bars are not shown.

    warnings: be quiet about these, too.
    """
    global _quiet, _silent
    _quiet, _silent = True, warnings


def is_quiet() -> bool:
    """Return whether warnings, errors and results alone are to be said."""
    return _quiet


def log(line: str) -> None:
    """Say something on stderr, unless it shall be quiet; see `warn`, which is always heard."""
    if not _quiet:
        warn(line)


def warn(line: str) -> None:
    """Say something on stderr, above a progress bar if there is one; in a script, with its flags as in errors."""
    if _silent:
        return
    line = with_flags(line) if _as_script else line
    bars = sys.modules.get("tqdm")
    if bars is None:
        print(line, file=sys.stderr, flush=True)
    else:
        bars.tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of an error about an unknown name: the nearest known one, or else all of them, or `otherwise`."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else otherwise or f"known: {', '.join(known)}"


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when it is complete; see `atomic_file`."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_file(Path(path)) as scratch, open(scratch, mode, encoding=encoding) as file:
        yield file


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield an empty file that takes the place of `path` when the block ends. If the block raises, nothing changes.

    Whoever reads `path` sees the old file or the new one, never half of one. A writer holds a lock on its file, which
    ends with it however it ends: the next writer of `path` takes away what killed ones left.
    """
    scratch, descriptor = _open_scratch(path)
    try:
        yield scratch
        os.fsync(descriptor)
        os.replace(scratch, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # of a write: a full disk
            error.filename = str(path)
        with contextlib.suppress(OSError):  # of a disk that has become read-only, which `error` says
            scratch.unlink(missing_ok=True)
        raise
    finally:
        _release(descriptor)
    fsync_folder(path.parent)


def _open_scratch(path: Path) -> tuple[Path, int]:
    """Lock the first free of .NAME.0.tmp, .NAME.1.tmp, … and remove those after it whose writers are dead."""
    mine: tuple[Path, int] | None = None
    number = 0
    while mine is None or os.path.lexists(path.with_name(f".{path.name}.{number}.tmp")):
        scratch = path.with_name(f".{path.name}.{number}.tmp")
        descriptor = _lock_file(scratch)
        if descriptor is not None and mine is None:
            mine = scratch, descriptor
        elif descriptor is not None:
            scratch.unlink()
            _release(descriptor)
        number += 1
    return mine


def _lock_file(path: Path) -> int | None:
    """Open, lock and empty a file that may not exist; None if it is another's, a link or a folder."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError:
        if os.path.lexists(path):
            return None
        raise
    _LOCKED.add(descriptor)
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                remedy = "mount it with locks, or choose a folder on another"
                raise BadInput(f"{path.parent}: its file system has no locks ({error.strerror}); {remedy}") from None
            raise
        status = os.fstat(descriptor)
        # Its holder may have removed or renamed it while we asked; and under a second name it is not ours to write to.
        if status.st_nlink == 1 and os.path.samestat(status, os.lstat(path)):
            os.ftruncate(descriptor, 0)
            return descriptor
    _release(descriptor)
    return None


def _release(descriptor: int) -> None:
    if descriptor in _LOCKED:
        _LOCKED.remove(descriptor)
        os.close(descriptor)


def _release_all() -> None:
    """Close the locks in a forked child, which would hold them beyond the end of its parent."""
    for descriptor in list(_LOCKED):
        _release(descriptor)


_LOCKED: set[int] = set()  # descriptors
os.register_at_fork(after_in_child=_release_all)


def fsync_folder(folder: Path | str) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path | str, parameter: str) -> Path:
    """Create `folder` if need be and make sure that files can be written into it; `parameter` is where it came from."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be written ({error.strerror}); choose another folder with `{parameter}`"
        ) from error
    return folder


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` against whoever asks for it this way; the system lets go of it however this process ends.

    Raises BadInput that names the process at work in it, as that has written into the file it locks, `folder`/.lock.
    """
    file = Path(folder) / LOCK
    if file.is_symlink():
        file.unlink()
    descriptor = _lock_file(file)
    if descriptor is None:
        holder = "another program"
        with contextlib.suppress(OSError):
            holder = file.read_text(encoding="utf-8") or holder
        raise BadInput(f"{folder}: {holder} is at work in it; wait for its end and repeat the command")
    try:
        os.write(descriptor, f"process {os.getpid()} ({Path(sys.argv[0]).name or 'python'})".encode())
        yield
    finally:
        if descriptor in _LOCKED:  # not in a forked child
            with contextlib.suppress(OSError):  # as above
                file.unlink(missing_ok=True)
            _release(descriptor)


def write_json(path: Path | str, value: Any) -> None:
    """Write a value as JSON, whole."""
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.write("\n")


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, whole."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def digest_text(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def unit_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on `text` alone: the same on every machine, in every Python, for ever."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest()[:13], 16) / 16**13
