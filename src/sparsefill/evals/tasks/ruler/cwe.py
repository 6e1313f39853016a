"""RULER's common words: which ten words of a long list stand in it more often than the rest."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making
from sparsefill.evals.tasks.ruler.fill import Draft, fill
from sparsefill.evals.tasks.ruler.words import Endless, distinct, pseudo_word, word_list

NEW_TOKENS = 120
COMMON = 10
SHORT = 4096  # below, repeats and example are smaller

# Wording of RULER (Apache-2.0), which defines the task.
USER = (
    "Below is a numbered list of words. In these words, some appear more often than others."
    " Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
PREFIX = " Answer: The top 10 words that appear most often in the list are:"


def numbered(words: Sequence[str]) -> str:
    """Number words.

    Example:
        >>> numbered(["tree", "house"])
        '1. tree 2. house'
    """
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def repeated(words: list[str], often: int, seldom: int, draw: random.Random) -> str:
    """Number the shuffled list in which the first ten words stand often, the rest seldom."""
    items = [*words[:COMMON] * often, *words[COMMON:] * seldom]
    draw.shuffle(items)
    return numbered(items)


def make_cwe(making: Making) -> Sample:
    """Make a sample; an answered example is an earlier turn.

    Words come from the word list, and are invented when it is exhausted (from about 128K tokens).
    """
    short = making.length < SHORT
    often, seldom = (6, 1) if short else (30, 3)
    known = list(word_list().words)
    making.draw("words").shuffle(known)
    draw = making.draw("pseudo-words")
    invented = Endless(distinct(lambda: pseudo_word(draw), but=set(known)))
    example = _example(making, short)

    def write(units: int) -> Draft:
        pseudo = max(0, units - len(known))
        words = known[:units] + invented.first(pseudo)
        context = repeated(words, often, seldom, making.layout("list"))
        recipe = {"words": word_list().provenance(), "pseudo_words": pseudo}
        return Draft(
            prompt=USER.format(context=context),
            prefix=PREFIX,
            references=tuple(words[:COMMON]),
            turns=(example,),
            recipe={**recipe, "repeats": [often, seldom]},
        )

    return fill(making, NEW_TOKENS, write, least=COMMON + 1)


def _example(making: Making, short: bool) -> tuple[str, str]:
    """Return a question and its answer."""
    count, often, seldom = (20, 3, 1) if short else (40, 10, 3)
    words = making.draw("example").sample(word_list().words, count)
    context = repeated(words, often, seldom, making.layout("example list"))
    return USER.format(context=context), f"{PREFIX} {numbered(words[:COMMON])}"
