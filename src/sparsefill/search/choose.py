"""Which candidate each head gets: the best at its own budget, or at a budget of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from sparsefill.errors import InputError
from sparsefill.search.score import KINDS, Scores

CHOICES = {
    "objective": ("output", "recall"),
    "budgets": ("head", "model"),
    "combine": ("mean", "worst"),
}

# What lost mass counts beside output error where budgets are the model's. Measured on held-out
# prose: without it recall falls by a point, which saves little error.
RECALL_WEIGHT = 0.01


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How candidates are compared.

    Args:
        objective: "output", the attention output's error against dense; or "recall", the
            attention mass that is kept.
        budgets: "model", the whole model costs so much, and the budget goes where it saves
            most; or "head", every head costs the same, as in the paper.
        combine: what counts of several prompts: their "mean", or the "worst" of them.
    """

    objective: str = "output"
    budgets: str = "model"
    combine: str = "mean"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if (got := getattr(self, name)) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {got!r}")

    def together(self, scores: Sequence[Scores], *, longest: int | None = None) -> Scores:
        """Combine the scores of one layer over prompts.

        Args:
            longest: how many prompts, the first ones, are of the length that budgets are for:
                cost and density are their mean. All when None.
        """
        loses = ("lost", "error", "added") if self.combine == "worst" else ()
        stacked = {kind: torch.stack([getattr(one, kind) for one in scores]) for kind in KINDS}
        for kind in ("cost", "density"):
            stacked[kind] = stacked[kind][:longest]
        return Scores(
            **{kind: v.amax(0) if kind in loses else v.mean(0) for kind, v in stacked.items()}
        )

    def choose(self, layers: Sequence[Scores], budget: float) -> Int64[Tensor, "layers h"]:
        """Choose a candidate for each head of each layer.

        Args:
            layers: scores of all candidates, the same list of candidates in each layer.
            budget: mean cost of the heads, as a share of dense; with budgets of heads, the
                candidates cost the same already.
        """
        loss = torch.stack([self.loss(layer) for layer in layers])
        if self.budgets == "head":
            return loss.argmin(1)
        return spread(loss, torch.stack([layer.cost for layer in layers]), budget)

    def loss(self, scores: Scores) -> Float64[Tensor, "c h"]:
        """Return what each candidate loses on each head.

        The paper compares candidates of one head by the error of its output; heads of a
        whole model are comparable by what they add to their layer's.
        """
        if self.objective == "recall":
            return scores.lost
        if self.budgets == "head":
            return scores.error
        return scores.added + RECALL_WEIGHT * scores.lost


def spread(
    loss: Float64[Tensor, "layers c h"], cost: Float64[Tensor, "layers c h"], budget: float
) -> Int64[Tensor, "layers h"]:
    """Choose for the least total loss at a mean cost within a budget.

    At one price for cost all heads choose alone; the lowest price at which they stay within
    the budget is found by bisection. No other choice of the same total cost loses less. What
    is then left of the budget goes, head by head, where it saves most.

    Example:
        >>> loss, cost = torch.tensor([[[0.9, 0.2], [0.0, 0.0]]]), torch.tensor([[[0.1], [1.0]]])
        >>> spread(loss.double(), cost.double().expand(1, 2, 2), 0.6).tolist()
        [[1, 0]]
    """
    low, high = 1e-12, 1e6
    for _ in range(100):
        price = (low * high) ** 0.5
        chosen = (loss + price * cost).argmin(1, keepdim=True)
        over = bool(cost.gather(1, chosen).mean() > budget)
        low, high = (price, high) if over else (low, price)
    chosen = (loss + high * cost).argmin(1)
    while True:
        now = [values.gather(1, chosen[:, None]) for values in (loss, cost)]
        left = budget * chosen.numel() - float(now[1].sum())
        saved = torch.where(cost - now[1] <= left, now[0] - loss, -torch.inf)
        layer, candidate, head = torch.unravel_index(saved.argmax(), saved.shape)
        if saved[layer, candidate, head] <= 0:
            return chosen
        chosen[layer, head] = candidate
