"""Side by side: every candidate once a round, so that a busy machine slows all alike."""

import time
from collections.abc import Callable, Mapping

import numpy as np


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Wall seconds of each call, by name; the first `warmup` rounds are not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warmup + rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(values: list[float], scale: float = 1.0, digits: int = 3) -> dict[str, float]:
    """Median, quartiles and least of some timings, each times `scale`."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]) * scale
    least = min(values) * scale
    named = {"median": median, "q25": low, "q75": high, "min": least}
    return {name: round(float(value), digits) for name, value in named.items()}


def ratios(seconds: Mapping[str, list[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Each candidate's time over the baseline's in the same round."""
    return {
        name: summary([a / b for a, b in zip(values, seconds[baseline], strict=True)])
        for name, values in seconds.items()
    }
