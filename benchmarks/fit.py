"""Dense time by length, for lengths at which dense is too slow to be measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from sparsefill.errors import InputError

TERMS = 3  # t = a + b n + c n^2: start-up, projections and MLP, attention


def fit_seconds(measured: Mapping[int, float]) -> tuple[float, float, float]:
    """Fit `t = a + b n + c n^2` to seconds by length, relative errors squared.

    No coefficient is negative, since each stands for work; so the best fit is the best
    one among those that leave some terms out.

    Example:
        >>> [round(x, 6) for x in fit_seconds({1: 6.0, 2: 11.0, 3: 18.0})]
        [3.0, 2.0, 1.0]
    """
    if len(measured) < TERMS:
        raise InputError(
            f"extrapolating dense needs at least {TERMS} measured lengths, got"
            f" {sorted(measured)}; pass more --lengths up to --dense-up-to"
        )
    seconds = np.array(list(measured.values()))
    lengths = np.array(list(measured), dtype=float)
    powers = np.stack([lengths**power for power in range(TERMS)], axis=1) / seconds[:, None]
    best, least = np.zeros(TERMS), np.inf
    for size in range(1, TERMS + 1):
        for terms in itertools.combinations(range(TERMS), size):
            scale = powers[:, terms].max(axis=0)  # lengths squared beside ones: keep it stable
            own = np.linalg.lstsq(powers[:, terms] / scale, np.ones(len(seconds)))[0] / scale
            missed = float(np.square(powers[:, terms] @ own - 1).sum())
            if (own >= 0).all() and missed < least:
                best, least = np.zeros(TERMS), missed
                best[list(terms)] = own
    return float(best[0]), float(best[1]), float(best[2])


def seconds_at(coefficients: tuple[float, float, float], n: int) -> float:
    """Evaluate a fit at a length.

    Example:
        >>> seconds_at((1.0, 0.5, 0.25), 2)
        3.0
    """
    return sum(c * n**power for power, c in enumerate(coefficients))
