"""Progress: a bar where people watch, a line in a log, and spans of time as people say them."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from utils import is_quiet, log

STAGE_SECONDS = 2.0  # what takes less is not worth a line in a redirected log


def progress_bar(items: Iterable[Any] | None = None, name: str = "", *, line: bool = True, **options: Any) -> Any:
    """Return tqdm's bar where stderr is a terminal. In a redirected log it is one line at its end, if that took long.

    items: to be iterated; line: whether there is such a line, which what logs its steps itself does not need; options:
    those of tqdm, `total`, `unit`, `disable` and `leave` above all.

    >>> list(progress_bar([1, 2, 3], "count"))
    [1, 2, 3]
    """
    if is_quiet() or not sys.stderr.isatty():
        return _Stage(items, name, line and not options.get("disable"), options.get("unit", ""))
    from tqdm import tqdm  # late: a search in a script has no bar

    return tqdm(items, name, **options)


class _Stage:
    """What a bar is in a redirected log: it can be used like tqdm's, and says at its end what took how long."""

    def __init__(self, items: Iterable[Any] | None, name: str, line: bool, unit: str):
        self.items, self.name, self.line, self.unit = items, name, line, unit
        self.n, self.began = 0, time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in () if self.items is None else self.items:
                self.n += 1
                yield item

    def __enter__(self) -> "_Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        self.n += n

    def set_postfix(self, **_: object) -> None:
        """A line at the end has none."""

    def close(self) -> None:
        seconds = time.monotonic() - self.began
        if self.line and seconds >= STAGE_SECONDS:
            log(f"{self.name}: {self.n:,}{self.unit or ' steps'} in {duration(seconds)}")
        self.line = False


def duration(seconds: float) -> str:
    """Write a span of time as people say it.

    >>> [duration(s) for s in (4.2, 89, 100, 3599, 5000, 90000)]
    ['4 s', '89 s', '2 min', '60 min', '1 h 23 min', '25 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{minutes} min" if minutes <= 60 else f"{hours} h {rest} min" if rest and hours < 10 else f"{hours} h"
