"""The twelve tasks of InfiniteBench, made and scored as is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from sparsefill.evals.fit import fit_units
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making, Task
from sparsefill.evals.tasks.infinitebench.files import FROM_FILES, read_row
from sparsefill.evals.tasks.infinitebench.official import (
    LIMITS,
    ORDERS,
    ROWS,
    RULES,
    SIZES,
    answer_limit,
    choose,
    row_of,
)
from sparsefill.evals.tasks.infinitebench.recipes import RECIPES, units_of
from sparsefill.evals.tasks.infinitebench.row import Row
from sparsefill.evals.tasks.infinitebench.scoring import SCORES
from sparsefill.evals.tasks.infinitebench.truncation import cut_middle
from sparsefill.evals.tasks.infinitebench.wording import render


def infinitebench_tasks(
    *,
    rules: str = "official",
    limits: str = "official",
    size: str = "fitted",
    order: str = "file",
) -> dict[str, Task]:
    """Return the tasks by name.

    Args:
        rules: of scoring, `official` or `minference`.
        limits: of answers, `official` or `minference`.
        size: of the six generated tasks. `fitted`: as large as the length has room for.
            `released` or `script`: as large as the benchmark's files, or as what its public
            script makes; what is too long loses its middle, like the files' rows.
        order: of samples, `file`, or `spread` over all rows, however few they are.

    Raises:
        InputError: an unknown choice.

    Example:
        >>> tasks = infinitebench_tasks(limits="minference")
        >>> tasks["infinitebench/passkey"].new_tokens
        15
    """
    choose("rules", rules, RULES)
    choose("limits", limits, RULES)
    choose("size", size, SIZES)
    choose("order", order, ORDERS)
    tasks: dict[str, Task] = {}
    for name in ROWS:
        full = f"infinitebench/{name}"
        tasks[full] = Task(
            name=full,
            new_tokens=LIMITS[limits][name],
            make=partial(_make, name, limits, size, order),
            score=SCORES[rules][name],
            offline=name not in FROM_FILES,
        )
    return tasks


def _make(name: str, limits: str, size: str, order: str, making: Making) -> Sample:
    """Make a sample of the asked size."""
    last = making.index
    if order == "spread":
        rows = [row_of(name, index) for index in range(making.index + 1)]
        making, last = replace(making, index=rows[-1]), max(rows)
    new_tokens = answer_limit(name, limits, making.length)
    if name in FROM_FILES:
        row = read_row(making.data, name, making.index, last=last)
        return cut_middle(_sample(name, making, row, new_tokens), making.prompter)
    recipe = RECIPES[name]

    def drawn(units: int) -> Sample:
        return _sample(name, making, recipe.draw(making, units), new_tokens)

    if size != "fitted":
        return cut_middle(drawn(units_of(name, size, making.index)), making.prompter)
    return _fitted(drawn, making, new_tokens, recipe.least)


def _fitted(drawn: Callable[[int], Sample], making: Making, new_tokens: int, least: int) -> Sample:
    """Make the largest sample that there is room for."""
    tokens: dict[int, int] = {}

    def tokens_of(units: int) -> int:
        tokens[units] = making.prompter.count(drawn(units))
        return tokens[units]

    units = fit_units(tokens_of, making.length - new_tokens, least=least)
    made = drawn(units)
    made.note_fill(tokens[units])
    return made


def _sample(name: str, making: Making, row: Row, new_tokens: int) -> Sample:
    prompt, prefix = render(name, row)
    return Sample(
        task=f"infinitebench/{name}",
        length=making.length,
        index=making.index,
        prompt=prompt,
        prefix=prefix,
        references=row.answer,
        new_tokens=new_tokens,
        recipe={"seed": making.seed} | row.recipe,
    )
