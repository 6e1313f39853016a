"""What RULER makes of its means by length, which are in percent and rounded to 0.01."""

from __future__ import annotations

from collections.abc import Mapping

THRESHOLD = 85.6  # Llama-2-7B at 4,096 tokens


def effective_length(by_length: Mapping[int, float], threshold: float = THRESHOLD) -> int | None:
    """Return the longest length whose mean is high enough, or None if there is none.

    Example:
        >>> effective_length({4096: 95.5, 8192: 85.6, 16384: 85.59})
        8192
    """
    return max((length for length, mean in by_length.items() if mean >= threshold), default=None)


def weighted_mean(by_length: Mapping[int, float], *, increasing: bool) -> float:
    """Return the mean over lengths with linear weights: the longest counts most, or least.

    Example:
        >>> weighted_mean({4096: 90.0, 8192: 60.0}, increasing=True)
        70.0
    """
    ordered = [by_length[length] for length in sorted(by_length, reverse=not increasing)]
    weights = range(1, len(ordered) + 1)
    total = sum(weight * mean for weight, mean in zip(weights, ordered, strict=True))
    return round(total / sum(weights), 2)
