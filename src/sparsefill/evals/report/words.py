"""How numbers are written in a report."""

from __future__ import annotations

from sparsefill.evals.lengths import short_length
from sparsefill.evals.statistics import Interval

NONE = "\N{EN DASH}"


def length(tokens: int) -> str:
    """Write a number of tokens.

    Example:
        >>> [length(n) for n in (4096, 131072, 1048576, 10000)]
        ['4K', '128K', '1M', '10,000']
    """
    short = short_length(tokens)
    return f"{tokens:,}" if short.isdecimal() else short.upper()


def counted(count: int, thing: str) -> str:
    """Write how many there are of what takes an s.

    Example:
        >>> counted(1, "task"), counted(1200, "reading")
        ('1 task', '1,200 readings')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def points(share: float | None, *, sign: bool = False) -> str:
    """Write a share in points of 100.

    Example:
        >>> points(0.9375), points(0.012, sign=True), points(-1e-9, sign=True)
        ('93.8', '+1.2', '0.0')
    """
    return NONE if share is None else number(100 * share, digits=1, sign=sign)


def number(value: float | None, *, digits: int = 3, sign: bool = False) -> str:
    """Write a number with so many decimals; what rounds to zero has no minus."""
    if value is None:
        return NONE
    written = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if not written.strip("+-0."):
        written = written.lstrip("+-")
    return written.replace("-", "\N{MINUS SIGN}")


def spread(interval: Interval | None, *, scale: float = 100.0, digits: int = 1) -> str:
    """Write the ends of an interval; nothing where there are none."""
    if interval is None or interval.low is None or interval.high is None:
        return ""
    low, high = (number(scale * end, digits=digits) for end in (interval.low, interval.high))
    return f"[{low}, {high}]"


def seconds(value: float | None) -> str:
    """Write a time with three digits.

    Example:
        >>> seconds(0.01234), seconds(12.34), seconds(456.7)
        ('0.0123', '12.3', '457')
    """
    if value is None:
        return NONE
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
