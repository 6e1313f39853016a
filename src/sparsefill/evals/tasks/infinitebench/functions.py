"""What a function returns that calls another one, which calls another one: Code.Run.

The functions are text for a model to read. What they return is worked out from the calls as they
were drawn; no code is run.
"""

from __future__ import annotations

import random

from sparsefill.evals.task import Making
from sparsefill.evals.tasks.infinitebench.row import Row

LAYERS = (2, 4, 6, 8, 10)  # functions that one call goes through
REPEATS = 80  # samples of one depth, one after another
SMALLEST_ADDED, LARGEST_ADDED = -12, 17
LARGEST_ARGUMENT = 10

Calls = dict[int, tuple[int | None, int]]  # number of a function: whom it calls, what it adds


def layers_of(index: int) -> int:
    """Return how deep the calls of a sample go.

    Example:
        >>> [layers_of(index) for index in (0, 79, 80, 399, 400)]
        [2, 2, 4, 10, 2]
    """
    return LAYERS[index // REPEATS % len(LAYERS)]


def draw_functions(making: Making, functions: int) -> Row:
    """Draw so many functions, in layers of equal size, each calling one of the next layer."""
    draw, depth = making.draw("functions"), layers_of(making.index)
    numbers = draw.sample(range(1, 2 * functions + 1), functions)
    layers = [numbers[layer::depth] for layer in range(depth)]
    calls = _calls(layers, draw)
    asked = draw.choice(layers[0])
    argument = draw.randint(-LARGEST_ARGUMENT, LARGEST_ARGUMENT)
    written = "".join(_written(number, *calls[number]) for number in sorted(calls))
    return Row(
        context=f"\nHere is the content of functions_module.py:\n\n{written}",
        input=f"Please give me the exact number of the return value of func_{asked}({argument})."
        " Your response should end with the sentence 'The return value is:'.",
        answer=(str(returned(calls, asked, argument)),),
        recipe={"functions": functions, "layers": depth, "argument": argument},
    )


def returned(calls: Calls, number: int, argument: int) -> int:
    """Return what a function returns: its argument, and what each function on the way adds.

    Example:
        >>> returned({7: (3, -2), 3: (None, 10)}, 7, 1)
        9
    """
    ahead: int | None = number
    while ahead is not None:
        ahead, added = calls[ahead]
        argument += added
    return argument


def _calls(layers: list[list[int]], draw: random.Random) -> Calls:
    calls: Calls = {}
    for layer, following in zip(layers, [*layers[1:], []], strict=True):
        for number in layer:
            called = draw.choice(following) if following else None
            calls[number] = called, draw.randint(SMALLEST_ADDED, LARGEST_ADDED)
    return calls


def _written(number: int, called: int | None, added: int) -> str:
    value = "x" if called is None else f"func_{called}(x)"
    change = f" {'+' if added > 0 else '-'} {abs(added)}" if added else ""
    return f"def func_{number}(x):\n    return {value}{change}\n\n"
