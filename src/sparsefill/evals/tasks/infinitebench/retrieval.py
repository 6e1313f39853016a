"""Scores of the tasks that ask for a number or an identifier."""

from __future__ import annotations

import re
from collections.abc import Sequence

BLANKS = ("\n", ":", '"', "'", ".", ",", "?", "!", "{", "}")
MORE_BLANKS = (*BLANKS, "</s>", "The", "To")  # MInference's


def blanked(text: str, blanks: Sequence[str]) -> str:
    """Replace each of some texts by a space, one after another.

    Example:
        >>> blanked('{"a": "b"}', BLANKS).split()
        ['a', 'b']
    """
    for blank in blanks:
        text = text.replace(blank, " ")
    return text


def first_digits(said: str, references: Sequence[str]) -> float:
    """Score PassKey and Number: the first digits in a row are the reference, as text.

    Example:
        >>> first_digits(" 71432. Remember", ["71432"]), first_digits("7 1432", ["71432"])
        (1.0, 0.0)
    """
    match = re.search("[0-9]+", said)
    return float(match is not None and match[0] == references[0])


def listed_value(said: str, references: Sequence[str]) -> float:
    """Score KV: the reference is one of the words, punctuation taken for spaces.

    Example:
        >>> listed_value('"a1-b2"}', ["a1-b2"]), listed_value("xa1-b2", ["a1-b2"])
        (1.0, 0.0)
    """
    return float(references[0] in blanked(said, BLANKS).split())


def listed_value_minference(said: str, references: Sequence[str]) -> float:
    """Score KV by MInference's rule, to which "</s>", "The" and "To" are spaces too.

    Example:
        >>> listed_value_minference("a1-b2</s>", ["a1-b2"])
        1.0
    """
    return float(references[0] in blanked(said, MORE_BLANKS).split())
