"""Means with 95 % intervals: of samples, of pairs of samples, and of means of tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsefill.evals.statistics import Interval, paired_difference

SEED = 0
RESAMPLES = 2000  # an end of an interval moves by some 3 % of its width between seeds


def interval_of(values: Sequence[float]) -> Interval | None:
    """Return the mean of samples, by resampling them; None of no samples."""
    return difference_of(values, [0.0] * len(values))


def difference_of(a: Sequence[float], b: Sequence[float]) -> Interval | None:
    """Return the mean of `a - b`, by resampling pairs; None of no pairs."""
    if not a:
        return None
    return paired_difference(a, b, seed=SEED, resamples=RESAMPLES)


def mean_of_tasks(tasks: Sequence[Sequence[float]]) -> Interval:
    """Return the mean of the tasks' means: each task counts once, samples resampled within it.

    Example:
        >>> mean_of_tasks([[1.0, 1.0, 1.0], [0.0, 0.0]])
        Interval(mean=0.5, low=0.5, high=0.5, n=5)
        >>> mean_of_tasks([[1.0, 1.0, 1.0], [0.0]])  # how the second task varies is not known
        Interval(mean=0.5, low=None, high=None, n=4)
    """
    mean = sum(float(np.mean(values)) for values in tasks) / len(tasks)
    samples = sum(map(len, tasks))
    if min(map(len, tasks)) == 1:
        return Interval(mean, None, None, samples)
    draw = np.random.default_rng(SEED)
    means = np.zeros(RESAMPLES)
    for values in map(np.asarray, tasks):
        places = draw.integers(0, len(values), size=(RESAMPLES, len(values)))
        means += values[places].mean(1) / len(tasks)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(mean, float(low), float(high), samples)
