"""Is it a difference, or luck? Intervals for the scores of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparsefill.errors import InputError

Scores = Sequence[float | int] | np.ndarray

RESAMPLES = 10_000
MAX_DRAWS = 2**22  # samples drawn at once: 32 MiB


class Interval(NamedTuple):
    """A mean, where it may as well have been, and of how many samples or pairs it is.

    A sample that stands alone does not tell how much samples differ: then there are no ends.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def paired_difference(
    scores: Scores,
    baseline: Scores,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap the mean difference of scores on the same samples: a percentile interval.

    What makes a sample hard is shared by both and cancels, so that few samples tell apart
    what two means with their own intervals could not. Where all differences are alike the
    interval has no width, however few they are: read it with the number of samples. A single
    sample has no interval.

    Args:
        scores: one for each sample.
        baseline: of the same samples, in the same order.
        confidence: share of such intervals that hold the true mean.
        resamples: drawn sets of samples.
        seed: of the drawing.

    Raises:
        InputError: no samples, not as many on both sides, or a score that is no number.

    Example:
        >>> paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
        Interval(mean=0.0, low=0.0, high=0.0, n=4)
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence}")
    differences = _pair(scores, baseline)
    samples = len(differences)
    if samples == 1:
        return Interval(float(differences[0]), None, None, 1)
    draw, means = np.random.default_rng(seed), []
    rows = max(1, MAX_DRAWS // samples)
    for first in range(0, resamples, rows):
        drawn = draw.integers(0, samples, (min(rows, resamples - first), samples))
        means.append(differences[drawn].mean(1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(differences.mean()), float(low), float(high), samples)


def _pair(scores: Scores, baseline: Scores) -> np.ndarray:
    one, other = _numbers(scores), _numbers(baseline)
    if len(one) != len(other):
        raise InputError(
            f"paired scores must be of the same samples, got {len(one)} and {len(other)}"
        )
    return one - other


def _numbers(scores: Scores) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise InputError("scores must be one finite number or more")
    return values
