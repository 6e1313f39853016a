"""Sparse against dense: logits and answers."""

from __future__ import annotations

import math

import pytest
import torch

from sparsefill import metrics
from sparsefill.errors import InputError
from sparsefill.evals import fidelity
from sparsefill.evals.fidelity import compare_rows, first_divergence, join_rows, summarise


def test_by_hand():
    dense = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    sparse = torch.tensor([[0.25, 0.75], [0.8, 0.2]]).log()
    found = summarise(compare_rows(dense, sparse, torch.tensor([0, 0])))
    first = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    second = 0.9 * math.log(9 / 8) + 0.1 * math.log(1 / 2)
    assert found.kl_mean == pytest.approx((first + second) / 2, rel=1e-5)
    assert found.kl_median == pytest.approx((first + second) / 2, rel=1e-5)
    assert found.kl_max == pytest.approx(first, rel=1e-5)
    assert found.kl_p99 == pytest.approx(0.99 * first + 0.01 * second, rel=1e-5)
    assert found.delta_p_rms == pytest.approx(math.sqrt((0.25**2 + 0.1**2) / 2), rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(math.sqrt(2 * 9 / 8), rel=1e-5)
    assert found.rows == 2
    assert found.top5 == 1


def test_the_most_likely_tokens():
    dense = torch.arange(12.0).repeat(2, 1)
    sparse = dense.clone()
    sparse[0, 0] = 99  # a new first
    found = summarise(compare_rows(dense, sparse))
    assert found.top1 == metrics.top1_agreement(dense, sparse) == 0.5
    assert found.top5 == pytest.approx((4 / 5 + 1) / 2)
    assert found.delta_p_rms is None
    assert found.perplexity_ratio is None


def test_rows_are_compared_in_parts_and_joined(monkeypatch: pytest.MonkeyPatch):
    dense, sparse = torch.randn(2, 23, 40)
    true = torch.randint(40, (23,))
    whole = compare_rows(dense, sparse, true)
    monkeypatch.setattr(fidelity, "ROWS", 5)
    joined = join_rows(
        [
            compare_rows(dense[:9], sparse[:9], true[:9]),
            compare_rows(dense[9:], sparse[9:], true[9:]),
        ]
    )
    for one, other in zip(whole, joined, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(whole.kl, metrics.kl_divergence(dense, sparse))


def test_rows_without_a_known_next_token_count_in_all_else():
    dense, sparse = torch.randn(2, 6, 9)
    true = torch.randint(9, (3,))
    some = compare_rows(dense[:3], sparse[:3], true)
    mixed = summarise(join_rows([some, compare_rows(dense[3:], sparse[3:])]))
    assert mixed.rows == 6
    assert mixed.delta_p_rms == pytest.approx(summarise(some).delta_p_rms)


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no rows"):
        compare_rows(torch.zeros(0, 4), torch.zeros(0, 4))


def test_divergence():
    assert first_divergence([1, 2, 3], [1, 2, 3]) is None
    assert first_divergence([], []) is None
    assert first_divergence([4, 2], [1, 2]) == 0
    assert first_divergence([1, 2, 3], [1, 2]) == 2
