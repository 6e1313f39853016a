"""Answers that name an option or a character, and the order in which the rules look at them."""

from __future__ import annotations

import pytest

from sparsefill.evals.tasks.infinitebench.scoring import SCORES

RULES = pytest.mark.parametrize("rules", ["official", "minference"])


@RULES
@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("B. parse_date", 1),
        ("B:", 1),
        ("  B.", 1),  # outer blanks are removed first
        ("A. parse_date", 0),
        ("B", 0),  # a letter alone has no full stop or colon
        ("B)", 0),
        ("B\n", 0),
        ("b.", 0),
        ("", 0),
        ("The answer is: B", 1),
        ("The answer is: parse_date.", 1),
        ("The answer is: `parse_date`", 1),
        ("The answer is: **B**", 1),
        ("The answer is: Option B", 1),
        ("The answer is: A", 0),
        ("The answer is:B", 0),  # the character after the colon is skipped
        ("The answer is:", 0),
        ("The answer is B", 0),  # "answer is" without a colon does not count
        ("It is: B", 1),
        ("The correct option is: B", 1),  # by "is:"; see the note in choices.py
        ("answer: B", 1),
        ("answer: A, answer: B", 0),  # only the first counts
        ("It is: A. The answer is: B", 1),  # "answer is:" is looked for first
        ("answer: B, it is: A", 0),  # "is:" before "answer:"
        ("parse_date", 0),
    ],
)
def test_a_faulty_function(said: str, right: int, rules: str):
    assert SCORES[rules]["code_debug"](said, ["parse_date", "B"]) == right


@RULES
@pytest.mark.parametrize(
    ("said", "right"),
    [
        # the first character
        ("C", 1),
        (" C. In the barn", 1),
        ("C is wrong, the answer is A", 1),
        ("Clearly in the mill", 1),
        ("A barn, so the answer is C", 0),
        ("Because the answer is: C", 0),
        # the whole text of the option
        ("In the barn", 1),
        ("In the barn.", 0),
        ("In the barn, option is A", 0),
        # what follows "answer is" and its like
        ("The answer is: C", 1),
        ("The answer is: In the barn", 1),
        ("The answer is C.", 1),
        ("the answer:C", 0),  # the character after the colon is skipped
        ("the answer: C", 1),
        ("the correct option is C", 1),
        ("The answer is: A or C", 0),
        ("The answer is", 0),
        ("The answer is: Certainly not", 1),  # begins with the letter
        ("The option is A, but the answer is: C", 1),  # "answer is:" is looked for first
        ("The answer is A; answer: C", 1),  # "answer:" before "answer is"
        # the first word that is a letter
        ("It must be C!", 1),
        ("It must be (C)", 0),
        ("I say 'C' or A", 1),
        ("I say A or C", 0),
        ("I say BC then C", 0),  # several letters in a row are taken for a letter
        ("I say c", 0),
        ("", 0),
        ("  ", 0),
        ("none", 0),
    ],
)
def test_an_option_of_a_book(said: str, right: int, rules: str):
    assert SCORES[rules]["longbook_choice_eng"](said, ["In the barn", "C"]) == right


def test_the_text_of_an_option_may_begin_with_a_letter():
    """Then the first character decides, and it is not the option's."""
    score = SCORES["official"]["longbook_choice_eng"]
    assert score("A barn", ["A barn", "C"]) == 0
    assert score("So: the answer is: A barn", ["A barn", "C"]) == 1


@RULES
@pytest.mark.parametrize(
    ("said", "references", "right"),
    [
        ("ACE", ["ACE", "ACE ROTHSTEIN"], 1),
        (" Ace.", ["ACE"], 1),
        ('"ace"?', ["ACE"], 1),
        ("Not Sam but Ace!", ["ACE"], 1),
        ("ACE ROTHSTEIN", ["ACE ROTHSTEIN"], 0),  # a name of two words is never found
        ("ROTHSTEIN", ["ACE", "ROTHSTEIN"], 0),  # only the first reference counts
        ("Ace's", ["ACE"], 1),
        ("ACE-HIGH", ["ACE"], 0),
        ("ACE", ["Ace"], 0),  # references are not made capitals
        ("", ["ACE"], 0),
    ],
)
def test_a_character(said: str, references: list[str], right: int, rules: str):
    assert SCORES[rules]["longdialogue_qa_eng"](said, references) == right
