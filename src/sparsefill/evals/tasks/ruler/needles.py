"""What is hidden: keys, values and the sentences that tie them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

from sparsefill.evals.task import Making
from sparsefill.evals.tasks.ruler.words import distinct, word_list

Kind = Literal["word", "number", "uuid"]


def drawing(kind: Kind, draw: random.Random) -> Callable[[], str]:
    """Return what draws a key or a value of a kind.

    Example:
        >>> len(drawing("number", random.Random(1))())
        7
    """
    if kind == "word":
        return lambda: word_list().pair(draw)
    if kind == "number":
        return lambda: str(draw.randint(10**6, 10**7 - 1))
    return lambda: str(uuid.UUID(int=draw.getrandbits(128), version=4))


def needle(kind: Kind, key: str, value: str) -> str:
    """Return the sentence that ties a value to a key: plural, however many values there are.

    Example:
        >>> needle("number", "quick-fox", "1234567")
        'One of the special magic numbers for quick-fox is: 1234567.'
    """
    return f"One of the special magic {kind}s for {key} is: {value}."


@dataclass(frozen=True)
class Needles:
    """The needles of one sample.

    Args:
        values: of each key, in the order in which they were drawn.
        sentences: one for each value, in the order of the text.
        distractors: further needles that nobody asks for, without end.
    """

    values: dict[str, list[str]]
    sentences: list[str]
    distractors: Iterator[str]


def draw_needles(making: Making, keyed: Kind, valued: Kind, keys: int, each: int) -> Needles:
    """Draw needles, no two of the same key or value: an answer is never right by chance."""
    draw = making.draw("needles")
    new_key = distinct(drawing(keyed, draw))
    new_value = distinct(drawing(valued, draw))
    values = {key: list(islice(new_value, each)) for key in islice(new_key, keys)}
    sentences = [needle(valued, key, value) for key in values for value in values[key]]
    making.layout("order").shuffle(sentences)
    distractors = map(partial(needle, valued), new_key, new_value)
    return Needles(values, sentences, distractors)
