"""RULER's needles in a haystack: one generator, eight settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making
from sparsefill.evals.tasks.noise import NOISE
from sparsefill.evals.tasks.ruler.fill import Draft, fill
from sparsefill.evals.tasks.ruler.needles import Kind, Needles, draw_needles
from sparsefill.evals.tasks.ruler.places import Placed, hide_in_lines, hide_in_prose
from sparsefill.evals.tasks.ruler.words import Endless, word_list

NEW_TOKENS = 128

# Wording of RULER (Apache-2.0), which defines the task.
SEVERAL = (
    "Some special magic {kind}s are hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {kind}s afterwards.\n{context}\nWhat are all the special magic"
    " {kind}s for {query} mentioned in the provided text?",
    " The special magic {kind}s for {query} mentioned in the provided text are",
)
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {kind} afterwards.\n{context}\nWhat is the special magic"
    " {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text is",
)


@dataclass(frozen=True, kw_only=True)
class Niah:
    """One setting of the task, and what makes its samples.

    Args:
        haystack: lines of noise, prose, or needles that nobody asks for.
        keyed: what keys are.
        valued: what values are.
        keys: different keys; raised to the number of those that are asked for.
        each: values of a key.
        queries: keys that are asked for.
    """

    haystack: Literal["noise", "essay", "needle"]
    keyed: Kind = "word"
    valued: Kind = "number"
    keys: int = 1
    each: int = 1
    queries: int = 1

    def __call__(self, making: Making) -> Sample:
        """Make a sample."""
        needles = draw_needles(
            making, self.keyed, self.valued, max(self.keys, self.queries), self.each
        )
        asked = making.draw("queries").sample(list(needles.values), self.queries)
        user, prefix = SEVERAL if self.each * self.queries > 1 else ONE
        of_query = {"kind": self.valued, "query": listed(asked)}
        references = tuple(value for key in asked for value in needles.values[key])
        words = {"words": word_list().provenance()} if self.keyed == "word" else {}
        hide = self._hiding(making, needles)

        def write(units: int) -> Draft:
            placed = hide(units)
            return Draft(
                prompt=user.format(context=placed.text, **of_query),
                prefix=prefix.format(**of_query),
                references=references,
                recipe={"haystack": self.haystack, "asked": asked, **words, **placed.recipe},
            )

        least = 1 if self.haystack == "essay" else len(needles.sentences)
        return fill(making, NEW_TOKENS, write, least=least)

    def _hiding(self, making: Making, needles: Needles) -> Callable[[int], Placed]:
        """Return what hides the needles in so many units: words of prose, or lines."""
        if self.haystack == "essay":
            return lambda units: hide_in_prose(
                making.haystack, units, needles.sentences, making.draw("places")
            )
        distractors = Endless(needles.distractors)

        def hide(units: int) -> Placed:
            lines = [NOISE] * units if self.haystack == "noise" else distractors.first(units)
            return hide_in_lines(lines, needles.sentences, making.draw("places"))

        return hide


def listed(keys: Sequence[str]) -> str:
    """Join keys as a sentence does.

    Example:
        >>> listed(["a", "b", "c", "d"])
        'a, b, c, and d'
    """
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"


NIAH = {
    "niah_single_1": Niah(haystack="noise"),
    "niah_single_2": Niah(haystack="essay"),
    "niah_single_3": Niah(haystack="essay", valued="uuid"),
    "niah_multikey_1": Niah(haystack="essay", keys=4),
    "niah_multikey_2": Niah(haystack="needle"),
    "niah_multikey_3": Niah(haystack="needle", keyed="uuid", valued="uuid"),
    "niah_multivalue": Niah(haystack="essay", each=4),
    "niah_multiquery": Niah(haystack="essay", queries=4),
}
