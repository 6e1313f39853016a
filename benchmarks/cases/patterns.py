"""Case `patterns`: the paper's Figure 3, each pattern with the paper's budget, by length."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases import estimate
from benchmarks.session import Session

Request = estimate.Request

BUDGETS = (  # Jiang et al. 2024, Table 7 and section 4: what a head reads at most
    "a-shape:sink=1024,window=4096",
    "vertical-slash:verticals=1000,slashes=6096",
    "block-topk:blocks=100",
)


def run(request: Request, session: Session) -> None:
    """Time estimate and attend of each pattern beside dense attention."""
    estimate.run(replace(request, patterns=BUDGETS), session, case="patterns")
