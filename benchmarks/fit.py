"""Times as sums of terms: dense by length where it is too slow to measure, costs by work."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from sparsefill.errors import InputError

EXTRAPOLATED = "sdpa (extrapolated)"
TERMS = 3  # t = a + b n + c n^2: start-up, projections and MLP, attention


def fit_seconds(measured: Mapping[int, float]) -> tuple[float, float, float]:
    """Fit `t = a + b n + c n^2` to seconds by length, relative errors squared, no term negative.

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
    powers = np.stack([lengths**power for power in range(TERMS)], axis=1)
    constant, linear, square = fit_terms(powers, seconds).tolist()
    return constant, linear, square


def fit_terms(terms: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Fit `seconds = terms @ coefficients`, relative errors squared, none negative.

    Each coefficient stands for work, so the best fit is the best one among those that
    leave some terms out.

    Args:
        terms: a row for each time, a column for each coefficient.

    Example:
        >>> fit_terms(np.array([[1.0, 2.0], [1.0, 4.0]]), np.array([5.0, 9.0])).round(6).tolist()
        [1.0, 2.0]
    """
    count = terms.shape[1]
    relative = terms / seconds[:, None]
    best, least = np.zeros(count), np.inf
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            scale = relative[:, chosen].max(axis=0)  # lengths squared beside ones: keep it stable
            own = np.linalg.lstsq(relative[:, chosen] / scale, np.ones(len(seconds)))[0] / scale
            missed = float(np.square(relative[:, chosen] @ own - 1).sum())
            if (own >= 0).all() and missed < least:
                best, least = np.zeros(count), missed
                best[list(chosen)] = own
    return best


def seconds_at(coefficients: tuple[float, float, float], n: int) -> float:
    """Evaluate a fit at a length.

    Example:
        >>> seconds_at((1.0, 0.5, 0.25), 2)
        3.0
    """
    return sum(c * n**power for power, c in enumerate(coefficients))
