"""The figures of a run, as RULER rounds and weights them."""

from __future__ import annotations

import pytest

from sparsefill.evals.tasks.ruler.aggregate import effective_length, weighted_mean

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
