"""Case `patterns`: the paper's Figure 3, each pattern with the paper's budget, by length."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases import estimate
from benchmarks.session import Session

Request = estimate.Request

# Jiang et al. 2024, Table 7 and section 4: what a head reads at most. On inputs made of noise
# the best 6,096 diagonals would lie anywhere, each in a tile of its own; in a trained model 21
# share one (sparsefill.cost), which as many neighbours make of them.
BUDGETS = (
    "a-shape:sink=1024,window=4096",
    "vertical-slash:verticals=1000,slashes=6096,window=5900",
    "block-topk:blocks=100",
)


def run(request: Request, session: Session) -> None:
    """Time estimate and attend of each pattern beside dense attention."""
    estimate.run(replace(request, patterns=BUDGETS), session, case="patterns")
