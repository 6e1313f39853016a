"""RULER's frequent words: the three coded words that stand in a text most often."""

from __future__ import annotations

import math
import string
from itertools import islice

from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making
from sparsefill.evals.tasks.ruler.fill import Draft, fill
from sparsefill.evals.tasks.ruler.words import distinct

NEW_TOKENS = 50
LETTERS = 6
TOKENS_PER_WORD = 50  # of the vocabulary
ZETA_2 = math.pi**2 / 6
LEAST = 100  # words from which ranks 2, 3 and 4 differ

# Wording of RULER (Apache-2.0), which defines the task.
USER = (
    "Read the following coded text and track the frequency of each coded word. Find the three most"
    " frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. Please"
    " ignore the dots '....'. What are the three most frequently appeared words in the above coded"
    " text?"
)
PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"


def times(rank: int, units: int) -> int:
    """Return how often the word of a rank stands in a text of so many words, by Zipf's law.

    Example:
        >>> [times(rank, 1000) for rank in (1, 2, 3, 4, 30)]
        [607, 151, 67, 37, 0]
    """
    return int(units * rank**-2.0 / ZETA_2)


def make_fwe(making: Making) -> Sample:
    """Make a sample; the word that is most frequent by far gives way to dots."""
    draw = making.draw("vocabulary")
    size = max((making.length - NEW_TOKENS) // TOKENS_PER_WORD, 4)
    coded = distinct(lambda: "".join(draw.choices(string.ascii_lowercase, k=LETTERS)))
    vocabulary = ["...", *islice(coded, size - 1)]

    def write(units: int) -> Draft:
        words = [word for rank, word in enumerate(vocabulary, 1) for _ in range(times(rank, units))]
        making.layout("text").shuffle(words)
        return Draft(
            prompt=USER.format(context=" ".join(words)),
            prefix=PREFIX,
            references=tuple(vocabulary[1:4]),
            recipe={"vocabulary": size, "words": len(words)},
        )

    return fill(making, NEW_TOKENS, write, least=LEAST)
