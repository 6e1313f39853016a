"""Intervals hold the truth as often as they say; known tests give known numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefill.errors import InputError
from sparsefill.evals import statistics
from sparsefill.evals.report.interval import interval_of, mean_of_tasks
from sparsefill.evals.statistics import Interval, paired_difference

SCORES = st.lists(st.floats(0, 1), min_size=2, max_size=30)


def ends(found: Interval) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


@given(SCORES)
def test_without_a_difference_there_is_none(scores: list[float]):
    found = paired_difference(scores, scores, resamples=50)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert found.n == len(scores)


@given(SCORES, st.randoms(use_true_random=False))
def test_an_interval_lies_around_its_mean_and_turns_with_the_sides(scores, draw):
    others = [draw.random() for _ in scores]
    found = paired_difference(scores, others, resamples=100)
    low, high = ends(found)
    assert low - 1e-9 <= high
    turned = paired_difference(others, scores, resamples=100)
    assert (turned.mean, turned.low, turned.high) == pytest.approx(
        (-found.mean, -high, -low), abs=1e-12
    )


def test_the_bootstrap_of_two_samples_is_known():
    """Means of two draws from 0 and 1: 0, 0.5 and 1 in shares of 1, 2 and 1 quarters."""
    wide = paired_difference([0, 1], [0, 0], confidence=0.95)
    narrow = paired_difference([0, 1], [0, 0], confidence=0.4)
    assert (wide.mean, wide.low, wide.high) == (0.5, 0, 1)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_sample_that_stands_alone_has_no_interval(score: float, other: float):
    assert paired_difference([score], [other]) == (score - other, None, None, 1)
    found = mean_of_tasks([[score], [other, 0.0]])
    assert found == (pytest.approx(score / 2 + other / 4), None, None, 3)
    assert None not in mean_of_tasks([[score, 1.0], [other, 0.0]])


def test_intervals_hold_the_true_difference_as_often_as_they_say():
    draw = np.random.default_rng(0)
    held = 0
    for seed in range(400):
        difference = draw.exponential(1.0, 40)  # skewed, of mean 1
        found = paired_difference(difference, np.zeros(40), resamples=400, seed=seed)
        low, high = ends(found)
        held += low <= 1 <= high
    assert 0.90 <= held / 400 <= 0.97


def test_pairs_tell_apart_what_two_means_do_not():
    draw = np.random.default_rng(1)
    hard = draw.random(60)
    better = hard + 0.02 + 0.01 * draw.standard_normal(60)
    paired = paired_difference(better, hard)
    one, other = (interval_of(scores.tolist()) for scores in (better, hard))
    assert one is not None
    assert other is not None
    low, high = ends(paired)
    assert 0 < low < 0.02 < high < 0.03
    assert ends(one)[0] < ends(other)[1]


def test_the_seed_decides_and_memory_does_not(monkeypatch: pytest.MonkeyPatch):
    draw = np.random.default_rng(2)
    scores, baseline = draw.random((2, 37))
    whole = paired_difference(scores, baseline, seed=3)
    assert whole == paired_difference(scores, baseline, seed=3)
    assert whole != paired_difference(scores, baseline, seed=4)
    monkeypatch.setattr(statistics, "MAX_DRAWS", 1000)
    assert whole == paired_difference(scores, baseline, seed=3)


@pytest.mark.parametrize(("each", "points"), [(25, 3.9), (80, 2.2), (200, 1.4), (500, 0.9)])
def test_a_mean_of_thirteen_tasks_is_known_to_a_few_points(each: int, points: float):
    right = round(0.85 * each)
    found = mean_of_tasks([[1.0] * right + [0.0] * (each - right)] * 13)
    low, high = ends(found)
    assert 50 * (high - low) == pytest.approx(points, rel=0.05)


def test_what_cannot_be_told_is_refused():
    for scores, baseline, why in (
        ([], [], "one finite number"),
        ([1.0, np.nan], [1.0, 1.0], "one finite number"),
        ([1.0], [1.0, 0.0], "same samples, got 1 and 2"),
    ):
        with pytest.raises(InputError, match=why):
            paired_difference(scores, baseline)
    with pytest.raises(InputError, match="between 0 and 1"):
        paired_difference([1.0], [0.0], confidence=95.0)
