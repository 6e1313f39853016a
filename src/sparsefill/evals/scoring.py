"""How an answer is compared with references: as RULER does, by what it contains."""

from __future__ import annotations

import re
from collections.abc import Sequence

CONTROL = re.compile(r"[\x00-\x1f]")


def clean(answer: str) -> str:
    r"""Return an answer without blank ends, control characters turned into newlines.

    Example:
        >>> clean(" one\ttwo\x00 ")
        'one\ntwo'
    """
    return CONTROL.sub("\n", answer.strip()).strip()


def score_all(answer: str, references: Sequence[str]) -> float:
    """Return the fraction of references that the answer contains, in whatever case.

    Example:
        >>> score_all("It is Blue-Tree, I think.", ["blue-tree", "red-house"])
        0.5
    """
    return sum(_found(answer, references)) / len(references)


def score_part(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer contains any of the references, in whatever case, else 0.

    Example:
        >>> score_part("In Normandy.", ["Normandy", "the north of France"])
        1.0
    """
    return float(any(_found(answer, references)))


def _found(answer: str, references: Sequence[str]) -> list[bool]:
    said = clean(answer).lower()
    return [reference.lower() in said for reference in references]
