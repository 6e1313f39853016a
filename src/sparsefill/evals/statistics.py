"""How sure a difference between two methods is, when both read the same samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsefill.errors import InputError


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """Return the mean of `a - b` and its 95 % percentile interval, over resampled pairs.

    Example:
        >>> paired_bootstrap([1.0, 1.0], [0.5, 0.5])
        (0.5, 0.5, 0.5)
    """
    if len(a) != len(b) or not len(a):
        raise InputError(f"pairs need as many values on both sides, got {len(a)} and {len(b)}")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(a), size=(resamples, len(a)))
    low, high = np.percentile(differences[drawn].mean(1), (2.5, 97.5))
    return float(differences.mean()), float(low), float(high)
