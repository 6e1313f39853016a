"""The figures of a run, as RULER rounds and weights them."""

from __future__ import annotations

import pytest

from sparsefill.evals.tasks.ruler import RULER, SYNTHETIC
from sparsefill.evals.tasks.ruler.aggregate import (
    effective_length,
    mean_score,
    nulls,
    task_score,
    weighted_mean,
)

# Llama-3.1-8B-Instruct in RULER's own table
PUBLISHED = {4096: 95.5, 8192: 93.8, 16384: 91.6, 32768: 87.4, 65536: 84.7, 131072: 77.0}


def test_published_means_come_out():
    assert round(weighted_mean(PUBLISHED, increasing=True), 1) == 85.4
    assert round(weighted_mean(PUBLISHED, increasing=False), 1) == 91.3
    assert effective_length(PUBLISHED) == 32768


@pytest.mark.parametrize(
    ("by_length", "expected"),
    [({4096: 85.6}, 4096), ({4096: 85.59}, None), ({}, None), ({8192: 90.0, 4096: 80.0}, 8192)],
)
def test_effective_length_is_the_longest_that_is_high_enough(
    by_length: dict[int, float], expected: int | None
):
    assert effective_length(by_length) == expected


def test_the_two_means_differ_by_the_questions_about_documents():
    by_task = dict.fromkeys(SYNTHETIC, 97.3)
    assert mean_score(by_task, RULER) is None
    by_task |= {"ruler/qa_1": 60.0, "ruler/qa_2": 48.0, "ruler/qa_synthetic": 0.0}
    assert mean_score(by_task, SYNTHETIC) == 97.3
    assert mean_score(by_task, RULER) == 90.64


def test_scores_are_percent_with_two_decimals():
    assert task_score([1.0, 1.0, 0.0]) == 66.67
    assert task_score([0.25, 1.0]) == 62.5


def test_empty_answers_are_counted():
    assert nulls(["", "\x00", " \n\t", "0", "no"]) == 3
