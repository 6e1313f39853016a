"""Filler begins at words, elsewhere each turn, in any writing."""

from __future__ import annotations

import pytest

from sparsefill.evals.filler import NEAR, rotation
from sparsefill.evals.haystack import Haystack

SENTENCES = [f"第{number}天他们一直走到河边\uff0c谁也没有说话。" for number in range(300)]
WORDS = [f"word{number}" for number in range(2000)]


def starts(text: str, turns: int = 40) -> list[int]:
    return [rotation(Haystack("text", text), turn, seed=3) for turn in range(turns)]


def begins(parts: list[str], between: str) -> set[int]:
    """Return the character at which each part begins."""
    found, at = set(), 0
    for part in parts:
        found.add(at)
        at += len(part) + len(between)
    return found


@pytest.mark.parametrize(
    ("parts", "between"), [(WORDS, " "), (WORDS, "\n"), (WORDS, "\t "), (SENTENCES, "")]
)
def test_each_turn_begins_elsewhere_where_a_word_or_a_sentence_does(parts: list[str], between: str):
    found = starts(between.join(parts))
    assert len(set(found)) == len(found)
    assert set(found) <= begins(parts, between)


def test_quotes_belong_to_the_sentence_that_they_end():
    parts = [f"“第{number}天他们走到了河边吗\uff1f”" for number in range(300)]
    assert set(starts("".join(parts))) <= begins(parts, "")


def test_a_text_without_any_end_is_begun_at_any_character():
    text = "".join(chr(0x4E00 + number % 2000) for number in range(9000))
    found = starts(text)
    assert len(set(found)) == len(found)
    assert max(found) < len(text) - NEAR
    other = starts(text + "\n")
    assert len(set(other)) == len(other)


@pytest.mark.parametrize("end", ["", " ", "\n", "\n\n\n"])
def test_after_the_last_word_comes_the_first(end: str):
    text = "alone " + "x" * (NEAR - 7) + end
    assert set(starts(text)) == {0, 6}
