"""Choices: cheapest at equal loss, best within the budget, spent where it saves most."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefill import InputError
from sparsefill.search import Choice
from sparsefill.search.choose import spread
from sparsefill.search.score import KINDS, Scores


def scores_of(**given: list[float]) -> Scores:
    """Score the candidates of one head; what is not given is the same for all."""
    size = len(next(iter(given.values())))
    values: dict[str, Any] = {kind: [0.5] * size for kind in KINDS} | given
    return Scores(**{kind: torch.tensor([v], dtype=torch.float64).T for kind, v in values.items()})


CHOICES: dict[str, tuple[list[float], list[float], float, int]] = {
    "cheapest-at-equal-loss": ([1.0, 0.2, 0.5], [0.1, 0.1, 0.1], 1.0, 1),
    "best-that-fits": ([1.0, 0.4, 0.1], [0.0, 0.1, 0.5], 0.4, 1),
    "all-that-is-allowed": ([1.0, 0.4, 0.1], [0.0, 0.1, 0.5], 1.0, 0),
    "least-if-nothing-fits": ([1.0, 0.4, 0.3], [0.0, 0.1, 0.5], 0.1, 2),
}


@pytest.mark.parametrize(("cost", "loss", "budget", "best"), CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize(("objective", "kind"), [("output", "added"), ("recall", "lost")])
def test_budgets_of_a_model(objective, kind, cost, loss, budget, best):
    choice = Choice(objective=objective, budgets="model")
    scores = scores_of(cost=cost, **{kind: loss})
    assert choice.choose([scores], budget).tolist() == [[best]]


def test_budgets_of_heads_look_at_loss_alone():
    scores = scores_of(cost=[0.31, 0.3, 0.29], error=[0.2, 0.1, 0.3], lost=[0.1, 0.2, 0.3])
    for objective, best in (("output", 1), ("recall", 0)):
        choice = Choice(objective=objective, budgets="head")
        assert choice.choose([scores], 0.3).tolist() == [[best]]


def test_budgets_of_a_model_look_at_recall_where_output_hardly_differs():
    choice = Choice(budgets="model")
    alike = scores_of(cost=[0.3, 0.3], added=[0.1, 0.1001], lost=[0.5, 0.1])
    apart = scores_of(cost=[0.3, 0.3], added=[0.1, 0.2], lost=[0.5, 0.1])
    assert choice.choose([alike, apart], 0.3).tolist() == [[1], [0]]


def test_worst_and_mean_of_prompts():
    steady = scores_of(error=[0.5, 0.0], cost=[0.2, 0.2])
    shaky = scores_of(error=[0.5, 0.9], cost=[0.4, 0.4])
    for combine, best in (("mean", 1), ("worst", 0)):
        choice = Choice(combine=combine, budgets="head")
        both = choice.together([steady, shaky])
        assert choice.choose([both], 0.3).tolist() == [[best]]
        assert torch.allclose(both.cost, torch.tensor(0.3).double())


def totals(loss: Tensor, cost: Tensor, chosen: Tensor) -> tuple[float, float]:
    place = chosen[:, None]
    return float(loss.gather(1, place).sum()), float(cost.gather(1, place).mean())


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_of_the_same_cost_loses_less(seed: int):
    draw = torch.Generator().manual_seed(seed)
    loss, cost = torch.rand(2, 2, 3, 2, generator=draw, dtype=torch.float64)
    budget = float(cost.mean())
    found = spread(loss, cost, budget)
    least, spent = totals(loss, cost, found)
    assert spent <= budget
    for other in product(range(3), repeat=4):
        lost, paid = totals(loss, cost, torch.tensor(other).view(2, 2))
        assert lost >= least - 1e-12 or paid > spent


@pytest.mark.parametrize("wrong", [{"objective": "mass"}, {"budgets": "all"}, {"combine": "sum"}])
def test_wrong_choices_are_refused(wrong: dict[str, Any]):
    with pytest.raises(InputError, match="must be one of"):
        Choice(**wrong)
