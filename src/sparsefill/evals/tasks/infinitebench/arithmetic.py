"""Scores of the tasks whose answers are numbers to be worked out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparsefill.evals.tasks.infinitebench.retrieval import blanked

_NUMBER = re.compile(r"\d+\.\d+|\d+")
_CODE_BLANKS = ("\n", ".", "`", "'", '"', ":")


def number_found(said: str, references: Sequence[str]) -> float:
    """Score Math.Find: the first number is the reference.

    A reference with a decimal point (the median of an even number of values) is compared as a
    fraction. Next to any other, what has a decimal point is wrong, even 7.0 for 7: there the
    official code breaks off.

    Example:
        >>> number_found("94", ["94"]), number_found("7.0", ["7"]), number_found("7", ["7.0"])
        (1.0, 0.0, 1.0)
    """
    return _number_found(said, references[0], fractions=False)


def number_found_minference(said: str, references: Sequence[str]) -> float:
    """Score Math.Find by MInference's rule: what follows the decimal point does not count.

    Example:
        >>> number_found_minference("7.9", ["7"])
        1.0
    """
    return _number_found(said, references[0], fractions=True)


def _number_found(said: str, reference: str, *, fractions: bool) -> float:
    match = _NUMBER.search(said)
    if match is None:
        return 0.0
    try:
        if "." in reference:
            return float(float(match[0]) == float(reference))
        value = int(float(match[0])) if fractions else int(match[0])
        return float(value == int(reference))
    except (ValueError, OverflowError):  # a decimal point; hundreds of digits
        return 0.0


def values_before_error(said: str, references: Sequence[str]) -> float:
    """Score Math.Calc: the share of values that were right before the first wrong one.

    Example:
        >>> values_before_error("[4, 8, 3]", ["4", "8", "2", "3"])
        0.5
    """
    right = 0
    # digits are compared as text: Python refuses to read numbers of thousands of digits
    for digits, reference in zip(re.findall("[0-9]+", said), references, strict=False):
        if (digits.lstrip("0") or "0") != reference:
            break
        right += 1
    return right / len(references)


def last_word(said: str, references: Sequence[str]) -> float:
    """Score Code.Run: the last word, punctuation taken for spaces, is the reference.

    Example:
        >>> last_word("func_7(1) returns `-3`.", ["-3"]), last_word("-3 is it", ["-3"])
        (1.0, 0.0)
    """
    words = blanked(said, _CODE_BLANKS).split()
    try:
        return float(bool(words) and int(words[-1]) == int(references[0]))
    except ValueError:
        return 0.0
