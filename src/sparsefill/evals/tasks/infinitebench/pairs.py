"""One value out of a large JSON object of random keys: Retrieve.KV."""

from __future__ import annotations

import random
import uuid

from sparsefill.evals.task import Making
from sparsefill.evals.tasks.infinitebench.official import ROWS
from sparsefill.evals.tasks.infinitebench.row import Row


def draw_pairs(making: Making, pairs: int) -> Row:
    """Draw so many pairs of random identifiers, and ask for one value.

    Sample `i` of 500 asks for pair `5 i` of 2500, or the same share of any other number.
    """
    draw = making.draw("pairs")
    drawn = [(_identifier(draw), _identifier(draw)) for _ in range(pairs)]
    rows = ROWS["kv_retrieval"]
    place = making.index % rows * pairs // rows
    key, value = drawn[place]
    inside = ", ".join(f'"{key}": "{value}"' for key, value in drawn)
    return Row(
        context=f"JSON data:\n{{{inside}}}",
        input=f'\nKey: "{key}"\nThe value associated with the specified key is: ',
        answer=(value,),
        recipe={"pairs": pairs, "pair": place},
    )


def _identifier(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
