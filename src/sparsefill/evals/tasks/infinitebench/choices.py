"""Scores of the tasks that ask which one: an option, or a character's name.

References of an option are its text and its letter.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsefill.evals.tasks.infinitebench.retrieval import BLANKS, blanked

_LETTERS = "ABCD"
_CODE_BLANKS = ("\n", "`", "'", '"', "-", "*", "Option", "option")
# The official list ends with "correct option is:", MInference's does not. No text is scored
# differently: "is:" is looked for earlier, and "option" is a space by then.
_CODE_ANSWERS = ("answer is:", "is:", "answer:")
_BOOK_BLANKS = tuple(blank for blank in BLANKS if blank != ":")
_BOOK_ANSWERS = ("answer is:", "answer:", "answer is", "option is")


def faulty_function(said: str, references: Sequence[str]) -> float:
    """Score Code.Debug: "B." or "B:" to begin with, else what follows "answer is:" or its like.

    A letter alone is wrong, and so is one that follows without a space.

    Example:
        >>> right = ["parse_date", "B"]
        >>> [faulty_function(said, right) for said in ("B. parse", "answer is: B", "B")]
        [1.0, 1.0, 0.0]
    """
    name, letter = references
    said = said.strip()
    if said[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    following = _following(_single_spaces(blanked(said, _CODE_BLANKS)), _CODE_ANSWERS)
    return float(following is not None and following.startswith((letter, name)))


def book_option(said: str, references: Sequence[str]) -> float:
    """Score En.MC: the first of these rules that applies decides.

    The first character, if it is one of A to D, even that of a word. The whole text of the option.
    What follows "answer is" or its like. The first word that is one of A to D, or several of them
    in a row, which is wrong.

    Example:
        >>> right = ["In the barn", "C"]
        >>> [book_option(said, right) for said in ("Clearly not", "In the barn", "So: B")]
        [1.0, 1.0, 0.0]
    """
    said = said.strip()
    if not said:
        return 0.0
    if said[0] in _LETTERS:
        return float(said[0] in references)
    if said in references:
        return 1.0
    said = _single_spaces(blanked(said, _BOOK_BLANKS))
    following = _following(said, _BOOK_ANSWERS)
    if following is not None:
        return float(following.startswith(tuple(references)))
    letters = next((word for word in said.split() if word in _LETTERS), None)
    return float(letters in references)


def character_named(said: str, references: Sequence[str]) -> float:
    """Score En.Dia: the first reference is one of the words, in capitals.

    A name of several words is never found: the benchmark compares it with single words.

    Example:
        >>> character_named("Ace, I think", ["ACE", "ACE ROTHSTEIN"])
        1.0
        >>> character_named("ACE ROTHSTEIN", ["ACE ROTHSTEIN"])
        0.0
    """
    return float(references[0] in [word.upper() for word in blanked(said, BLANKS).split()])


def _single_spaces(text: str) -> str:
    while "  " in text:
        text = text.replace("  ", " ")
    return text


def _following(text: str, answers: Sequence[str]) -> str | None:
    """Return what follows the first of some phrases that occurs, and the character after it."""
    for answer in answers:
        _, found, following = text.partition(answer)
        if found:
            return following[1:]
    return None
