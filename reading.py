"""Text and JSON, perhaps a stranger's: read from files alone, and only what fits into memory once it is parsed."""

import dataclasses
import errno
import json
import math
import os
import stat
from pathlib import Path
from types import UnionType
from typing import IO, Any, TypeVar, get_args, get_origin

from utils import BadInput

MAX_JSON_MEMORY = 2**31  # bytes that the values of one JSON text may take
ITEM, LIST, OBJECT = 80, 88, 240  # bytes of memory that a comma, a [ and a { stand for

T = TypeVar("T")


def open_regular(path: Path | str) -> IO[bytes]:
    """Open a file to be read. Raises OSError for what is none: a pipe would be waited for, a device may have no end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    return file


def read_text(path: Path | str, remedy: str, kind: str = "text file", encoding: str = "utf-8") -> str:
    """Read a file whole. Raises BadInput, ending in `remedy`, if it is missing, no file or not UTF-8."""
    try:
        with open_regular(path) as file:
            return file.read().decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; {remedy}") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a folder, not a {kind}; {remedy}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start}); {remedy}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); {remedy}") from None


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError with the reason, if it is none or too large once it is parsed.

    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ...
    ValueError: nested too deep
    """
    memory = len(text) + ITEM * text.count(",") + LIST * text.count("[") + OBJECT * text.count("{")
    if memory > MAX_JSON_MEMORY:
        raise ValueError(f"too large to be read whole, {len(text):,} characters; save it as JSON lines, an object each")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError:  # an integer beyond what Python converts
        raise ValueError("a number of too many digits") from None


def read_json(path: Path | str, remedy: str) -> Any:
    """Read the value in a JSON file. Raises BadInput, ending in `remedy`, if it is missing, cut short or not UTF-8."""
    try:
        return parse_json(read_text(path, remedy, "JSON file"))
    except ValueError as error:
        raise BadInput(f"{path}: not JSON, or cut short ({error}); {remedy}") from None


def read_jsonl(path: Path | str, remedy: str) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines file; blank lines are passed over. Raises BadInput, ending in `remedy`."""
    rows = []
    lines = read_text(path, remedy, "JSON-lines file").split("\n")  # splitlines would cut at U+2028 in a caption, too
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            reason = str(error).removeprefix("line 1: ")
            raise BadInput(f"{path}: line {number} is not JSON, or cut short ({reason}); {remedy}") from None
        if not isinstance(row, dict):
            raise BadInput(f"{path}: line {number} is not a JSON object; {remedy}")
        rows.append(row)
    return rows


def typed(kind: type[T], table: dict[str, Any]) -> T:
    """Make a dataclass of a table of JSON or TOML. Raises TypeError for an unknown or missing key, or a wrong value.

    A list stands for a tuple; numbers are finite, and no bool is one.

    >>> from dataclasses import make_dataclass
    >>> typed(make_dataclass("Row", [("names", tuple[str, ...]), ("size", int)]), {"names": ["a"], "size": "1"})
    Traceback (most recent call last):
    ...
    TypeError: size is '1'
    """
    kinds = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    lists = {name for name, value in table.items() if isinstance(value, list) and get_origin(kinds.get(name)) is tuple}
    made = kind(**{name: tuple(value) if name in lists else value for name, value in table.items()})
    for name, annotation in kinds.items():
        if not _fits(value := getattr(made, name), annotation):
            raise TypeError(f"{name} is {repr(value)[:60]}")
    return made


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of an annotated type."""
    arguments, origin = get_args(kind), get_origin(kind)
    if origin is UnionType:
        return any(_fits(value, one) for one in arguments)
    if origin in (tuple, list):
        return isinstance(value, origin) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items()
        )
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return kind is Any or type(value) is kind
