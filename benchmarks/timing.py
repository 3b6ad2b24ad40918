"""Times as ratios: the machine is shared, so two ways are timed in pairs, one right after the other."""

import time
from collections.abc import Callable


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def ratio(one: Callable[[], object], other: Callable[[], object], pairs: int = 5) -> tuple[float, float]:
    """Median time of `one`, and the median over pairs of other / one."""
    one(), other()
    times = [(seconds(one), seconds(other)) for _ in range(pairs)]
    return sorted(a for a, _ in times)[pairs // 2], sorted(b / a for a, b in times)[pairs // 2]
