"""All intermediate values of one very long sum: Math.Calc."""

from __future__ import annotations

from sparsefill.evals.task import Making
from sparsefill.evals.tasks.infinitebench.row import Row

LARGEST = 99


def draw_expression(making: Making, terms: int) -> Row:
    """Draw an expression of so many terms whose value stays from 0 to 99 all along.

    The answers are the values from the second term on, as the benchmark has it, although the
    examples in its prompt begin with the first term.
    """
    draw = making.draw("terms")
    value = draw.randint(0, LARGEST)
    parts, values = [str(value)], []
    for _ in range(terms - 1):
        term = draw.randint(0, LARGEST)
        if draw.random() > 0.5:
            if value + term > LARGEST:
                term = draw.randint(0, LARGEST - value)
            parts.append(f" + {term}")
            value += term
        else:
            if value - term < 0:
                term = draw.randint(0, value)
            parts.append(f" - {term}")
            value -= term
        values.append(str(value))
    return Row(
        context="".join(parts),
        input="The value of the numerical expression is: ",
        answer=tuple(values),
        recipe={"terms": terms},
    )
