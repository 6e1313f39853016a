"""From scores of samples to the figures that RULER reports, rounded as it rounds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sparsefill.evals.scoring import clean

THRESHOLD = 85.6  # Llama-2-7B at 4,096 tokens


def task_score(scores: Sequence[float]) -> float:
    """Return the score of a task in percent, from those of its samples.

    Example:
        >>> task_score([1.0, 0.5, 0.5])
        66.67
    """
    return round(100 * sum(scores) / len(scores), 2)


def nulls(answers: Sequence[str]) -> int:
    r"""Count empty answers: a low score may say no more than that.

    Example:
        >>> nulls(["4", " \n", ""])
        2
    """
    return sum(not clean(answer) for answer in answers)


def mean_score(by_task: Mapping[str, float], tasks: Collection[str]) -> float | None:
    """Return the unweighted mean over tasks, or None while one of them has no score.

    Example:
        >>> mean_score({"ruler/vt": 90.0, "ruler/cwe": 80.5, "ruler/fwe": 1.0},
        ...            ["ruler/vt", "ruler/cwe"])
        85.25
    """
    if not set(tasks) <= set(by_task):
        return None
    return round(sum(by_task[task] for task in tasks) / len(tasks), 2)


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
