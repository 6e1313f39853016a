"""The words of keys and lists: RULER's own, those of two novels, and invented ones."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, resources
from typing import Any

from sparsefill.data import novel

log = logging.getLogger(__name__)

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class WordList:
    """English words.

    Args:
        name: for recipes.
        adjectives: first halves of keys.
        nouns: second halves of keys.
        words: all words, sorted.
    """

    name: str
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    words: tuple[str, ...]

    def provenance(self) -> dict[str, Any]:
        """Describe the words in a recipe."""
        return {"name": self.name, "words": len(self.words)}

    def pair(self, draw: random.Random) -> str:
        """Draw a key such as `quick-fox`."""
        return f"{draw.choice(self.adjectives)}-{draw.choice(self.nouns)}"


@lru_cache(maxsize=1)
def word_list() -> WordList:
    """Return the words of `wonderwords`, as RULER does, or else those of two novels."""
    try:
        version = metadata.version("wonderwords")
    except metadata.PackageNotFoundError:
        log.warning(
            "words are those of two novels; for RULER's own: pip install 'sparsefill[eval]'"
        )
        return words_of_novels()
    folder = resources.files("wonderwords") / "assets"
    adjectives, nouns, verbs = (
        tuple(map(str.rstrip, (folder / f"{kind}list.txt").read_text("utf-8").splitlines()))
        for kind in ("adjective", "noun", "verb")
    )
    words = tuple(sorted({*adjectives, *nouns, *verbs}))
    return WordList(f"wonderwords {version}", adjectives, nouns, words)


def words_of_novels() -> WordList:
    """Return words of three letters and more that the package's novels do not capitalize."""
    text = novel() + "\n" + novel("northanger-abbey")
    words = tuple(sorted(set(re.findall(r"\b[a-z]{3,}\b", text))))
    return WordList("two novels by Jane Austen", words, words, words)


def pseudo_word(draw: random.Random) -> str:
    """Draw a word that there is not, of three or four syllables: one of 24 million."""
    syllables = range(draw.choice((3, 4)))
    return "".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in syllables)


def distinct(draw_one: Callable[[], str], *, but: Set[str] = frozenset()) -> Iterator[str]:
    """Draw without end what was not drawn before, and is not among `but`."""
    seen = set(but)
    while True:
        drawn = draw_one()
        if drawn not in seen:
            seen.add(drawn)
            yield drawn


class Endless:
    """A list that grows as far as it is asked for, and never changes.

    Tries with more filler and with less see the same beginning, whoever asks first.
    """

    def __init__(self, items: Iterator[str]):
        self._items, self._made = items, list[str]()

    def first(self, count: int) -> list[str]:
        """Return the first so many."""
        while len(self._made) < count:
            self._made.append(next(self._items))
        return self._made[:count]
