"""Filler: tokens of a haystack from anywhere in it on, and where its sentences end."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparsefill.errors import InputError
from sparsefill.evals.haystack import BREAK, Haystack
from sparsefill.evals.prompter import Prompter

GOLDEN = (5**0.5 - 1) / 2  # of a circle: any number of such turns lie well apart on it
CHARACTERS = 5  # of a token of prose, at first guess
MOST_GROWTH = 16.0  # of what is read when it held too few tokens: of markers, say
NEAR = 100  # characters within which words and sentences end; longer ones are cut
# the end of a word, or of a sentence where words have no spaces between them
ENDS = re.compile(r"\s+|[\u3002\uff01\uff1f][\u300d\u300f\u2019\u201d\uff09]*\s*")


@dataclass(frozen=True, kw_only=True)
class Filler:
    """Tokens of a haystack.

    Args:
        ids: the tokens, without any marker of the tokenizer's.
        offset: character of the haystack that they begin at.
        passes: times that the haystack was begun: more than 1 if it did not last.
    """

    ids: Sequence[int]
    offset: int
    passes: int


def rotation(haystack: Haystack, turn: int, seed: int) -> int:
    """Return the character at which a turn begins: the start of a word, each turn elsewhere.

    Turns divide the text by the golden ratio, so that few of them, and also many, show far
    parts of it. The same seed begins at the same place whatever the task and the length. Where
    no word or sentence ends near, it is any character.

    Example:
        >>> haystack = Haystack("letters", "a b c d e f g h i j")
        >>> [haystack.text[rotation(haystack, turn, seed=0)] for turn in range(4)]
        ['e', 'b', 'h', 'd']
    """
    start = random.Random(f"{seed}/rotation").random()
    text = haystack.text
    character = int((start + turn * GOLDEN) % 1 * len(text))
    near = ENDS.search(text, character, character + NEAR)
    if near is None:
        return character if character + NEAR < len(text) else 0
    return near.end() % len(text)


def read_filler(prompter: Prompter, haystack: Haystack, offset: int, tokens: int) -> Filler:
    """Read tokens of a haystack from a character on, beginning again where it ends.

    A text that spells the tokenizer's markers, as one about language models may, loses them.

    Raises:
        InputError: the haystack has nothing but such markers.
    """
    markers = getattr(prompter.tokenizer, "all_special_tokens", ())
    characters = CHARACTERS * tokens + 64  # 64: the last word may be cut
    while True:
        ids = prompter.encode(_without(markers, _text(haystack.text, offset, characters)))
        if len(ids) > tokens:
            break
        whole = characters >= len(haystack.text)
        if whole and not _without(markers, haystack.text).strip():
            raise InputError(f"{haystack.name} has no text but markers; pass another --haystack")
        growth = (tokens + 1) / max(len(ids), 1)
        characters = int(1.1 * characters * min(growth, MOST_GROWTH)) + 1
    share = tokens / len(ids)
    passes = 1 + int(offset + share * characters) // (len(haystack.text) + len(BREAK))
    return Filler(ids=ids[:tokens], offset=offset, passes=passes)


def _without(markers: Sequence[str], text: str) -> str:
    for marker in markers:
        text = text.replace(marker, "")
    return text


def _text(text: str, offset: int, characters: int) -> str:
    """Cut characters out of a text that has no end."""
    whole = text + BREAK
    times = -(-(offset + characters) // len(whole))
    return (whole * times)[offset : offset + characters]


def opening(prompter: Prompter) -> Sequence[int]:
    """Return the markers that the tokenizer begins texts with."""
    whole, plain = (prompter.encode("a", whole=special) for special in (True, False))
    return whole[: len(whole) - len(plain)]


def period_of(prompter: Prompter) -> int:
    """Return the token that ends a sentence."""
    return prompter.encode("a.")[-1]  # alone, some tokenizers put a space before it


def back_to_sentence(ids: Sequence[int], position: int, period: int) -> int:
    """Return the last position, none later than this, right after a period.

    A text without a period before this position, as one in Chinese, is cut right here.

    Example:
        >>> back_to_sentence([5, 0, 6, 7, 0, 8], 4, period=0)
        2
    """
    ends = (end for end in range(position, 0, -1) if ids[end - 1] == period)
    return next(ends, position)
