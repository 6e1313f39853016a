"""RULER's variable tracking: which names hold a value that is handed on from name to name."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from functools import partial
from itertools import islice, pairwise

from sparsefill.evals.fit import fit_units
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making
from sparsefill.evals.tasks.noise import NOISE
from sparsefill.evals.tasks.ruler.fill import Draft, fill
from sparsefill.evals.tasks.ruler.places import hide_in_lines
from sparsefill.evals.tasks.ruler.words import distinct

NEW_TOKENS = 30
NAMES = 5  # one chain of four hops
EXAMPLE_TOKENS = 500

# Wording of RULER (Apache-2.0), which defines the task. Older copies spell "assgined".
USER = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {value} in the text above."
)
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are"
    " assigned the value {value}, they are: "
)


def chain(names: Sequence[str], value: str) -> list[str]:
    """Return the lines that hand a value on.

    Example:
        >>> chain(["A", "B"], "12345")
        ['VAR A = 12345', 'VAR B = VAR A ']
    """
    hops = [f"VAR {to} = VAR {name} " for name, to in pairwise(names)]
    return [f"VAR {names[0]} = {value}", *hops]


def make_vt(making: Making) -> Sample:
    """Make a sample: an example that fits in 500 tokens, then the text, in one turn."""
    draw = making.draw("chain")
    value, other = islice(distinct(lambda: str(draw.randint(10_000, 99_998))), 2)
    names, example_names = _names(draw, 5), _names(draw, 3)
    example, example_units = _example(making, example_names, other)

    def write(units: int) -> Draft:
        placed = hide_in_lines([NOISE] * units, chain(names, value), making.draw("places"))
        return Draft(
            prompt=example + "\n\n" + USER.format(context=placed.text, value=value),
            prefix=PREFIX.format(value=value),
            references=tuple(names),
            recipe={"prefix": "assigned", "example_units": example_units, **placed.recipe},
        )

    return fill(making, NEW_TOKENS, write, least=NAMES)


def _names(draw: random.Random, letters: int) -> list[str]:
    """Draw the names of a chain; `VAR` is none."""
    spell = partial(draw.choices, string.ascii_uppercase, k=letters)
    return list(islice(distinct(lambda: "".join(spell()), but={"VAR"}), NAMES))


def _example(making: Making, names: list[str], value: str) -> tuple[str, int]:
    """Return an answered question of 500 tokens at most, and its lines of noise."""

    def write(units: int) -> str:
        lines = [NOISE] * units
        placed = hide_in_lines(lines, chain(names, value), making.draw("example"))
        # RULER puts a space between prefix and answer, though the prefix ends with one.
        return (USER + PREFIX + " ").format(context=placed.text, value=value) + " ".join(names)

    count = making.prompter.encode
    units = fit_units(lambda units: len(count(write(units))), EXAMPLE_TOKENS, least=NAMES)
    return write(units), units
