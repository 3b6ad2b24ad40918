"""Files that are nearly sound: with a few bytes changed at random, or a value of JSON or TOML replaced by another."""

import copy
import json
import random
import tomllib
from typing import Any

import tomli_w

PIECES = [b"9" * 400, b"9" * 5000, b"[" * 100_000, b"{", b"\0", b"\xff\xfe", b"null", b"-1", b"1e999", b"NaN", b'"']
PIECES += [
    b"\xef\xbb\xbf",
    b"\r",
    b"\xed\xa0\x80",
    b"../",
    b"/etc/passwd",
    b"\\ud800",
    b"e\xcc\x81",
    b"=cmd|",
    b"</script>",
]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**400,
    -(10**400),
    1e308,
    float("inf"),
    float("nan"),
    "",
    "../x",
    "/etc/passwd",
]
VALUES += [
    "\0",
    "\x1b[2J",
    "x" * 100_000,
    "é\u0301",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    [1, "a"],
    ["x"] * 1000,
    0.5,
    "=1+1",
]


def mutate(rng: random.Random, sound: bytes, name: str) -> bytes:
    """Return a file like `sound`, the content of one whose kind is the ending of `name`."""
    kind = name.rpartition(".")[2]
    if kind in ("json", "jsonl", "toml") and rng.random() < 0.5:
        return _other_value(rng, sound, kind)
    return _other_bytes(rng, bytearray(sound))


def _other_bytes(rng: random.Random, data: bytearray) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not data:
            break
        i, j = rng.randrange(len(data)), rng.randrange(len(data))
        width = rng.choice((1, 2, 4, 8, 16))
        match rng.randrange(7):
            case 0:
                data[i] ^= 1 << rng.randrange(8)
            case 1:
                data[i] = rng.choice((0, 1, 10, 34, 44, 91, 123, 127, 128, 255))
            case 2:
                number = rng.choice((2 ** (8 * width) - 1, 0, 2 ** rng.randrange(8 * width)))
                data[i : i + width] = number.to_bytes(width, "little")
            case 3:
                del data[i : i + rng.choice((1, 8, 64, len(data)))]
            case 4:
                data[i:i] = data[j : j + 4 * width]
            case 5:
                data[i:i] = rng.choice(PIECES)
            case _:
                data[i : i + width] = data[j : j + width]
    return bytes(data)


def _other_value(rng: random.Random, sound: bytes, kind: str) -> bytes:
    text = sound.decode()
    if kind == "jsonl":
        lines = text.splitlines()
        row = rng.randrange(len(lines))
        lines[row] = json.dumps(_replaced(rng, json.loads(lines[row])))
        return "\n".join(lines).encode()
    value = _replaced(rng, tomllib.loads(text) if kind == "toml" else json.loads(text))
    if kind == "json":
        return json.dumps(value).encode()
    try:
        return tomli_w.dumps(value).encode("utf-8", "surrogatepass")
    except (TypeError, AttributeError, ValueError):  # None, or no table at all: TOML has no such value
        return b"x = 1"


def _replaced(rng: random.Random, value: Any) -> Any:
    """A copy of nested lists and dicts in which one value, or one key, is another."""
    root: Any = {"": copy.deepcopy(value)}
    holder: Any = root
    key: Any = ""
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    if rng.random() < 0.2 and isinstance(holder, dict) and holder is not root:
        holder[rng.choice(("", "x", "path", "__class__"))] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return root.get("")
