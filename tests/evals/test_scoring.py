"""Scorers agree with RULER's, in every branch."""

from __future__ import annotations

import pytest

from sparsefill.evals.scoring import clean, score_all, score_part


@pytest.mark.parametrize(
    ("answer", "cleaned"),
    [
        ("  plain \n", "plain"),
        ("a\tb\nc\x00d\x1fe", "a\nb\nc\nd\ne"),
        (" \x00 kept apart \x01", "kept apart"),  # blank again once control characters are lines
        ("\x00\x01", ""),
        ("caf\x7f\u00e9", "caf\x7f\u00e9"),  # above 0x1f nothing changes
    ],
)
def test_answers_are_cleaned_as_upstream_does(answer: str, cleaned: str):
    assert clean(answer) == cleaned


@pytest.mark.parametrize(
    ("answer", "references", "all_of_them", "any_of_them"),
    [
        ("1234567 and 7654321", ["1234567", "7654321"], 1.0, 1.0),
        ("1234567.", ["1234567", "7654321"], 0.5, 1.0),
        ("none", ["1234567", "7654321"], 0.0, 0.0),
        ("", ["1234567"], 0.0, 0.0),
        ("ABCDE fghij", ["abcde", "FGHIJ"], 1.0, 1.0),  # in whatever case
        ("x12345678y", ["1234567"], 1.0, 1.0),  # inside of a longer one
        ("12345\t67", ["1234567"], 0.0, 0.0),  # a control character parts what it is in
        ("new\tyork", ["new york"], 0.0, 0.0),  # as a newline, not as a space
        ("a b", ["a", "b", "c", "d"], 0.5, 1.0),
        # one short answer of four variants: 1 by the rule, not 0.75 as averaging would say
        ("France", ["France", "france", "FRANCE", "the land of France"], 0.75, 1.0),
    ],
)
def test_all_takes_the_fraction_and_part_takes_the_best(
    answer: str, references: list[str], all_of_them: float, any_of_them: float
):
    assert score_all(answer, references) == all_of_them
    assert score_part(answer, references) == any_of_them
