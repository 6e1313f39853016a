"""Is it a difference, or luck? Intervals and tests for the scores of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import NormalDist

import numpy as np

from sparsefill.errors import InputError

Scores = Sequence[float | int] | np.ndarray

RESAMPLES = 10_000
MAX_DRAWS = 2**22  # samples drawn at once: 32 MiB


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean, and where it may as well have been.

    Args:
        mean: of the samples.
        low: lower end.
        high: upper end.
        samples: how many there were.
    """

    mean: float
    low: float
    high: float
    samples: int


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
    interval has no width, however few they are: read it with the number of samples.

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
        Interval(mean=0.0, low=0.0, high=0.0, samples=4)
    """
    differences = _pair(scores, baseline)
    samples = len(differences)
    draw, means = np.random.default_rng(seed), []
    rows = max(1, MAX_DRAWS // samples)
    for first in range(0, resamples, rows):
        drawn = draw.integers(0, samples, (min(rows, resamples - first), samples))
        means.append(differences[drawn].mean(1))
    tail = (1 - _share(confidence)) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(
        mean=float(differences.mean()), low=float(low), high=float(high), samples=samples
    )


def mean_interval(scores: Scores, *, confidence: float = 0.95) -> Interval:
    """Return the mean of scores and its normal interval, as if no baseline were known.

    Example:
        >>> interval = mean_interval([1.0] * 85 + [0.0] * 15)
        >>> round(interval.low, 3), round(interval.high, 3)
        (0.78, 0.92)
    """
    values = _numbers(scores)
    if len(values) < 2:
        raise InputError("an interval needs two samples or more, got 1; pass more --samples")
    z = NormalDist().inv_cdf((1 + _share(confidence)) / 2)
    mean = float(values.mean())
    reach = float(z * values.std(ddof=1) / len(values) ** 0.5)
    return Interval(mean=mean, low=mean - reach, high=mean + reach, samples=len(values))


def mcnemar(scores: Scores, baseline: Scores) -> float:
    """Return McNemar's exact p: how likely flips so uneven are if neither side is better.

    Only samples that one side got right and the other wrong count; each is then the toss of a
    coin. Two-sided.

    Raises:
        InputError: as for `paired_difference`, or a score other than 0 and 1.

    Example:
        >>> mcnemar([0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1])
        0.0625
    """
    flips = _pair(scores, baseline)
    both = np.concatenate([_numbers(scores), _numbers(baseline)])
    if not np.isin(both, (0.0, 1.0)).all():
        raise InputError("McNemar's test needs scores of 0 or 1; use the paired bootstrap")
    won, lost = int((flips > 0).sum()), int((flips < 0).sum())
    tail = sum(comb(won + lost, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2 ** (won + lost))


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


def _share(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence}")
    return confidence
