"""Numbers of tokens, as people write them."""

from __future__ import annotations

import re

import numpy as np

from sparsefill.errors import InputError

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
TOKENS = "([1-9][0-9]*)([km]?)"


def parse_length(text: str) -> int:
    """Read a number of tokens.

    Raises:
        InputError: it is none.

    Example:
        >>> parse_length("500"), parse_length("4K")
        (500, 4096)
    """
    found = re.fullmatch(TOKENS, text.lower())
    if found is None:
        raise InputError(f"a number of tokens must be one such as 4096, 8k or 1m, got {text!r}")
    return int(found[1]) * UNITS[found[2]]


def short_length(tokens: int) -> str:
    """Write a number of tokens as `parse_length` reads it, as short as it goes.

    Example:
        >>> short_length(500), short_length(4096), short_length(1048576)
        ('500', '4k', '1m')
    """
    unit = max((u for u, size in UNITS.items() if tokens % size == 0), key=UNITS.__getitem__)
    return f"{tokens // UNITS[unit]}{unit}"


def parse_lengths(text: str) -> list[int]:
    """Read lengths; `first:last:count` are so many, equally far apart.

    Raises:
        InputError: one is no number of tokens.

    Example:
        >>> parse_lengths("500,4k,1m"), parse_lengths("1000:1m:3")
        ([500, 4096, 1048576], [1000, 524788, 1048576])
    """
    lengths: list[int] = []
    for own in text.lower().split(","):
        if not re.fullmatch(f"{TOKENS}(:{TOKENS}:[1-9][0-9]*)?", own.strip()):
            raise InputError(
                f"--lengths must be numbers such as 4096,8k,1m or 1k:100k:20, got {text!r}"
            )
        first, last, count = [*own.strip().split(":"), own.strip(), "1"][:3]
        steps = np.linspace(parse_length(first), parse_length(last), int(count))
        lengths += [int(step) for step in np.round(steps)]
    return lengths
