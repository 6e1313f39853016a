"""The one timer: warm-up, then rounds over all functions in turn, median and spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Timed = Callable[[], object]  # a float that it returns counts instead of the wall clock


@dataclass(frozen=True)
class Timing:
    """What one function took, in seconds."""

    samples: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Middle of the samples."""
        return statistics.median(self.samples)

    @property
    def iqr_s(self) -> float | None:
        """Distance between the quartiles; None for a single sample, which has no spread."""
        if len(self.samples) < 2:
            return None
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return high - low

    def plus(self, other: Timing) -> Timing:
        """Add what another function took in the same rounds."""
        pairs = zip(self.samples, other.samples, strict=False)
        return Timing(tuple(a + b for a, b in pairs))


def interleave(
    functions: Mapping[str, Timed],
    *,
    repeats: int,
    max_seconds: float,
    first: Mapping[str, float] | None = None,
    on_round: Callable[[float], None] = lambda share: None,
) -> dict[str, Timing]:
    """Time functions in turn (A B C A B C ...), so that drift of the machine hits all alike.

    A first run of every function does not count; what it took decides how many of the
    `repeats` fit into `max_seconds`, at least one. A function whose first run alone took
    longer than `max_seconds` is not run again: that run is its sample.

    Args:
        repeats: rounds.
        max_seconds: of timed runs of one function.
        first: seconds of the first runs that were made already, by name.
        on_round: told after each round which share of all rounds it was.

    Example:
        >>> sorted(interleave({"a": list, "b": dict}, repeats=3, max_seconds=1))
        ['a', 'b']
    """
    samples: dict[str, list[float]] = {}
    rounds: dict[str, int] = {}
    for name, function in functions.items():
        warm = first[name] if first and name in first else _run(function)
        samples[name] = [warm] if warm > max_seconds else []
        fitting = repeats if warm <= 0 else int(min(repeats, max_seconds / warm))
        rounds[name] = 0 if samples[name] else max(1, fitting)
    share = 1 / (1 + max(rounds.values(), default=0))
    on_round(share)
    for turn in range(max(rounds.values(), default=0)):
        for name, function in functions.items():
            if turn < rounds[name]:
                samples[name].append(_run(function))
        on_round(share)
    return {name: Timing(tuple(own)) for name, own in samples.items()}


def run_once(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return a function's result and the seconds it took."""
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def _run(function: Timed) -> float:
    result, wall = run_once(function)
    return result if isinstance(result, float) else wall
