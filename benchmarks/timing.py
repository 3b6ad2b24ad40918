"""Times as ratios: the machine is shared, so two ways are timed in pairs, one right after the other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from metrics.table import Table


class Goal(NamedTuple):
    """What was to be reached: by the median of the ratios, or of the seconds.

    >>> str(Goal(50)), str(Goal(1.5, at_least=False, of="seconds"))
    ('≥ 50', '≤ 1.5 s')
    """

    bound: float
    at_least: bool = True
    of: Literal["ratios", "seconds"] = "ratios"

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{' s' if self.of == 'seconds' else ''}"

    def is_reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Timing:
    """Seconds that some work takes, and how many times as long a reference takes, of runs in pairs.

    reference: what that is; where it says "a / b", the ratio is this. ratios: empty where there is no reference.
    memory: MB more that this process holds while it works, at most. note: what was compared or counted besides.
    """

    work: str
    seconds: Sequence[float]
    ratios: Sequence[float] = ()
    note: str = ""
    reference: str = ""
    memory: float | None = None
    goal: Goal | None = None

    def reached(self) -> bool | None:
        """Return whether the goal is; None without one, or without what it is of."""
        values = [] if self.goal is None else getattr(self, self.goal.of)
        return self.goal.is_reached(median(values)) if self.goal and values else None


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes, what it has asked of a GPU included."""
    wait_for_gpu()
    began = time.perf_counter()
    function()
    wait_for_gpu()
    return time.perf_counter() - began


def wait_for_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_pairs(
    ours: Callable[[], float], reference: Callable[[], float], pairs: int = 5
) -> tuple[list[float], list[float]]:
    """Call what returns its seconds in turn; return those of ours, and reference / ours, of each pair."""
    times = [(ours(), reference()) for _ in range(pairs)]
    return [a for a, _ in times], [b / a for a, b in times]


def compare(
    work: str, ours: Callable[[], object], reference: Callable[[], object], named: str, pairs: int = 5
) -> Timing:
    """Call both once, then time them in turn; named: what the reference is."""
    memory = memory_of(ours)
    reference()
    times = in_pairs(lambda: seconds(ours), lambda: seconds(reference), pairs)
    return Timing(work, *times, reference=named, memory=memory)


def memory_of(function: Callable[[], object]) -> float | None:
    """Call a function; return how many MB the process held more in the meantime, at most. None but on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        function()
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _field(status.read_text(), "VmRSS")
    function()
    return (_field(status.read_text(), "VmHWM") - before) / 1024


def peak_memory() -> float:
    """Return how many MB this process has held at most, files that are mapped into it included. Linux only.

    ru_maxrss would be that of the process which has started this one, where that is more.
    """
    return _field(Path("/proc/self/status").read_text(), "VmHWM") / 1024


def _field(status: str, name: str) -> int:
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


HEADER = ["work", "reference", "ours, s", "ratio", "min–max", "runs", "MB", "to reach", "reached"]


def timings_table(timings: Sequence[Timing]) -> Table:
    """Return a row for each: the medians of seconds and ratios, and minimum and maximum of the ratios, else seconds."""
    rows = []
    for t in timings:
        spread = t.ratios or t.seconds
        rows.append(
            [
                f"{t.work}\n  {t.note}" if t.note else t.work,
                t.reference,
                f"{median(t.seconds):.3g}",
                f"{median(t.ratios):.3g}" if t.ratios else "",
                f"{min(spread):.3g}–{max(spread):.3g}",
                str(len(t.seconds)),
                "" if t.memory is None else f"{t.memory:,.0f}",
                str(t.goal or ""),
                {True: "yes", False: "no", None: ""}[t.reached()],
            ]
        )
    return Table("", HEADER, rows, left=frozenset({0, 1}))
