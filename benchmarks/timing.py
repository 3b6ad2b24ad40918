"""Times as ratios: the machine is shared, so two ways are timed in pairs, one right after the other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from metrics.table import Table


@dataclass(frozen=True)
class Timing:
    """Seconds that some work takes, and how many times as long a reference takes, of runs in pairs.

    ratios: empty where there is no reference. note: what was compared or counted besides.
    """

    work: str
    seconds: Sequence[float]
    ratios: Sequence[float] = ()
    note: str = ""


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def in_pairs(
    ours: Callable[[], float], reference: Callable[[], float], pairs: int = 5
) -> tuple[list[float], list[float]]:
    """Call what returns its seconds in turn; return those of ours, and reference / ours, of each pair."""
    times = [(ours(), reference()) for _ in range(pairs)]
    return [a for a, _ in times], [b / a for a, b in times]


def ratio(one: Callable[[], object], other: Callable[[], object], pairs: int = 5) -> tuple[float, float]:
    """Median time of `one`, and the median over pairs of other / one."""
    one(), other()
    times, ratios = in_pairs(lambda: seconds(one), lambda: seconds(other), pairs)
    return median(times), median(ratios)


def memory_of(function: Callable[[], object]) -> float:
    """Call a function; return how many MB the process held more in the meantime, at most. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def timings_table(timings: Sequence[Timing]) -> Table:
    """Return a row for each: median, minimum and maximum of its seconds and of its ratios."""
    header = ["work", "seconds", "min", "max", "reference / ours", "min", "max", ""]
    rows = [
        [t.work, *(f"{f(t.seconds):.3g}" for f in (median, min, max))]
        + ([f"{f(t.ratios):.3g}" for f in (median, min, max)] if t.ratios else [""] * 3)
        + [t.note]
        for t in timings
    ]
    return Table("", header, rows)
