"""The six tasks that need no file: how each draws a row of so many units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsefill.evals.task import Making
from sparsefill.evals.tasks.infinitebench.expression import draw_expression
from sparsefill.evals.tasks.infinitebench.functions import LAYERS, draw_functions, layers_of
from sparsefill.evals.tasks.infinitebench.needle import draw_digits, draw_passkey
from sparsefill.evals.tasks.infinitebench.numbers import draw_numbers
from sparsefill.evals.tasks.infinitebench.official import UNITS
from sparsefill.evals.tasks.infinitebench.pairs import draw_pairs
from sparsefill.evals.tasks.infinitebench.row import Row


@dataclass(frozen=True)
class Recipe:
    """How a task draws its rows.

    Args:
        draw: draws a row of so many units of filler, of a seed and an index.
        least: units below which there is no question.
    """

    draw: Callable[[Making, int], Row]
    least: int


RECIPES = {
    "passkey": Recipe(draw_passkey, least=0),
    "number_string": Recipe(draw_digits, least=0),
    "kv_retrieval": Recipe(draw_pairs, least=1),
    "math_find": Recipe(draw_numbers, least=64),  # 64 of 80 values: three differ for certain
    "math_calc": Recipe(draw_expression, least=2),
    "code_run": Recipe(draw_functions, least=max(LAYERS)),
}


def units_of(name: str, size: str, index: int) -> int:
    """Return how large the benchmark makes a sample.

    Example:
        >>> units_of("kv_retrieval", "released", 0), units_of("code_run", "script", 399)
        (2500, 550)
    """
    units = UNITS[size][name]
    # the layers of a program are of one size, and what is left over is not drawn
    return units - units % layers_of(index) if name == "code_run" else units
