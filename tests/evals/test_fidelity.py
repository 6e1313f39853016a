"""Sparse against dense: logits, answers, and the gates."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
import torch

from sparsefill import metrics
from sparsefill.errors import InputError
from sparsefill.evals import fidelity
from sparsefill.evals.fidelity import (
    ALARM,
    HIGHER_IS_BETTER,
    LOSSLESS,
    NEAR_LOSSLESS,
    Measured,
    compare_rows,
    count_flips,
    first_divergence,
    join_rows,
    level_of,
    summarise,
)


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


def test_flips_hidden_in_a_mean():
    flips = count_flips([1, 0, 1, 0.5], [0, 1, 1, 0.5])
    assert (flips.worse, flips.better, flips.share) == (1, 1, 0.5)
    for wrong in ([], [1]):
        with pytest.raises(InputError, match="same samples"):
            count_flips(wrong, [])


def beyond(gate: Measured, name: str) -> Measured:
    """A result as good as a gate but for one measure."""
    limit = asdict(gate)[name]
    worse = limit - 1e-6 if name in HIGHER_IS_BETTER else limit + 1e-6
    return replace(gate, **{name: worse})


def test_gates_are_passed_at_their_limits():
    assert level_of(LOSSLESS) == ("lossless", (), tuple(asdict(LOSSLESS)))
    assert level_of(NEAR_LOSSLESS).name == "near-lossless"
    assert level_of(ALARM).name == "lossy"


@pytest.mark.parametrize("name", asdict(LOSSLESS))
def test_every_measure_can_close_a_gate(name: str):
    assert level_of(beyond(LOSSLESS, name))[:2] == ("near-lossless", (name,))
    assert level_of(beyond(NEAR_LOSSLESS, name))[:2] == ("lossy", (name,))


@pytest.mark.parametrize("name", [name for name, limit in asdict(ALARM).items() if limit])
def test_every_alarm_can_ring_alone(name: str):
    limit = asdict(beyond(ALARM, name))[name]
    assert level_of(replace(LOSSLESS, **{name: limit}))[:2] == ("alarm", (name,))


def test_only_what_was_measured_is_judged():
    assert level_of(Measured(recall_mean=0.99)) == ("lossless", (), ("recall_mean",))
    assert level_of(Measured(recall_mean=0.96)).name == "near-lossless"
    for nothing in (Measured(), Measured(kl_mean=math.nan)):
        with pytest.raises(InputError, match="measures that are numbers"):
            level_of(nothing)
