"""Read the lists that people type: lengths, shapes, dtypes, densities, names."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from sparsefill.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
THOUSAND = 1024  # "8k" is 8192 tokens


class Shape(NamedTuple):
    """Query heads, KV heads, head dimension."""

    h: int
    g: int
    d: int


def parse_lengths(text: str) -> list[int]:
    """Read lengths: a comma list of numbers and doubling ranges `first:last`.

    Example:
        >>> parse_lengths("64:256,8k,1000")
        [64, 128, 256, 1000, 8192]
    """
    lengths = set()
    for item in _items(text, "--lengths"):
        match = re.fullmatch(r"(\d+)(k?)(?::(\d+)(k?))?", item)
        if match is None:
            raise InputError(
                f"--lengths must be such as 16384, 64:8192 or 8k:128k, got {item!r};"
                " separate several by commas"
            )
        first = int(match[1]) * (THOUSAND if match[2] else 1)
        last = first if match[3] is None else int(match[3]) * (THOUSAND if match[4] else 1)
        if not 0 < first <= last:
            raise InputError(
                f"--lengths must be positive and ascending, got {item!r};"
                " pass the shortest length first"
            )
        while first <= last:
            lengths.add(first)
            first *= 2
    return sorted(lengths)


def parse_shapes(text: str) -> list[Shape]:
    """Read shapes: query heads x KV heads x head dimension.

    Example:
        >>> parse_shapes("9x3x64")
        [Shape(h=9, g=3, d=64)]
    """
    shapes = []
    for item in _items(text, "--shapes"):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", item)
        if match is None or int(match[1]) % int(match[2]):
            raise InputError(
                "--shapes must be query heads x KV heads x head dimension with the first a"
                f" multiple of the second, got {item!r}; pass for example 9x3x64"
            )
        shapes.append(Shape(*map(int, match.groups())))
    return list(dict.fromkeys(shapes))


def parse_densities(text: str) -> list[float]:
    """Read densities, largest first.

    Example:
        >>> parse_densities("0.05,1")
        [1.0, 0.05]
    """
    densities = set()
    for item in _items(text, "--densities"):
        try:
            value = float(item)
        except ValueError:
            value = 0.0
        if not 0 < value <= 1:
            raise InputError(
                f"--densities must be above 0 and at most 1, got {item!r};"
                " pass for example 1,0.2,0.05"
            )
        densities.add(value)
    return sorted(densities, reverse=True)


def parse_names(text: str, option: str, known: tuple[str, ...]) -> list[str]:
    """Read names out of a fixed set, in the order given.

    Example:
        >>> parse_names("bf16,fp32", "--dtypes", tuple(DTYPES))
        ['bf16', 'fp32']
    """
    names = _items(text, option)
    for name in names:
        if name not in known:
            raise InputError(f"{option} must be among {', '.join(known)}, got {name!r}")
    return list(dict.fromkeys(names))


def _items(text: str, option: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise InputError(f"{option} must not be empty, got {text!r}; leave the option out instead")
    return items
