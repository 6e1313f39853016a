"""Lists are in the text as they are begun again, and scores count words and tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from sparsefill.data import novel
from sparsefill.errors import InputError, ShapeError
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.tasks.copying import (
    Continuation,
    Copying,
    make_copying,
    mean_score,
    score_continuation,
)
from tests.evals.support import making
from tests.support.small_bpe import small_bpe

HAYSTACK = Haystack("novel", novel()[:200_000])


def make(length: int = 4096, **options) -> Copying:
    prompter = Prompter(tokenizer=small_bpe(), template="chat")
    settings = {"seed": 7, "haystack": HAYSTACK, "prompter": prompter, **options}
    return make_copying(making("copying", length, **settings))


def text_of(ids: Sequence[int]) -> str:
    return Prompter(tokenizer=small_bpe()).decode(list(ids))


def where(part: Sequence[int], whole: Sequence[int]) -> list[int]:
    size = len(part)
    places = range(len(whole) - size + 1)
    return [at for at in places if tuple(whole[at : at + size]) == tuple(part)]


@pytest.mark.parametrize("length", [1500, 4096, 4097])
def test_text_and_longest_list_take_the_length(length: int):
    sample = make(length)
    longest = max(len(end.cue) + len(end.expected) for end in sample.continuations)
    assert len(sample.context) + longest == length
    assert sample.context[0] == 1
    assert 1 not in sample.context[1:]


def test_the_text_holds_what_is_expected_once_at_its_depth():
    sample = make(8192)
    assert [end.depth_percent for end in sample.continuations] == [12, 52, 88]
    for end in sample.continuations:
        (at,) = where(end.cue + end.expected, sample.context)
        assert 100 * at / len(sample.context) == pytest.approx(end.depth_percent, abs=4)
        before = text_of(sample.context[:at])
        assert before.endswith(".")


def test_a_cue_shows_six_words_and_expects_eighteen():
    for number, end in enumerate(make().continuations, 1):
        shown = text_of(end.cue).strip()
        assert shown.startswith(f"Word list {number}: ")
        assert len(shown.split()) == 3 + 6
        starts = (0, *end.words[:-1])
        words = [
            text_of(end.expected[start:stop]) for start, stop in zip(starts, end.words, strict=True)
        ]
        assert len(words) == 18
        assert all(word.startswith(" ") and word[1:].isalpha() for word in words)
        assert "".join(words) == text_of(end.expected)


def test_whoever_copies_is_right():
    """What follows a token's six latest neighbours in the text is what is expected."""
    sample = make()
    for end in sample.continuations:
        read = list(sample.context + end.cue)
        agrees = []
        for token in end.expected:
            latest = where(read[-6:], read[:-1])[-1]
            agrees.append(read[latest + 6] == token)
            read.append(token)
        scored = score_continuation(end, torch.zeros(len(agrees)), torch.tensor(agrees))
        assert scored.words == scored.tokens == 1


def test_the_same_seed_makes_the_same_sample():
    assert make(index=3) == make(index=3)
    assert make(index=3).continuations != make(index=4).continuations
    assert make(index=3).context != make(index=3, seed=8).context


def test_scores_by_hand():
    end = Continuation(cue=(9,), expected=(1, 2, 3, 4), words=(1, 3, 4), depth_percent=12)
    nll = torch.tensor([0.5, 1.5, 2.0, 0.0])
    scored = score_continuation(end, nll, torch.tensor([True, True, False, True]))
    assert scored.words == pytest.approx(2 / 3)
    assert (scored.tokens, scored.nll) == (0.75, 1.0)
    other = score_continuation(end, nll + 1, torch.tensor([False] * 4))
    mean = mean_score([scored, other])
    assert (mean.words, mean.tokens, mean.nll) == pytest.approx((1 / 3, 0.375, 1.5))


@pytest.mark.usefixtures("unchecked_types")
def test_numbers_of_other_tokens_are_refused():
    end = Continuation(cue=(9,), expected=(1, 2), words=(1, 2), depth_percent=12)
    with pytest.raises(ShapeError, match="each of 2 expected tokens"):
        score_continuation(end, torch.zeros(3), torch.tensor([True, True]))


def test_what_cannot_be_made_is_refused():
    with pytest.raises(InputError, match="no room for a text in 300 tokens"):
        make(300)
    with pytest.raises(InputError, match="needs 72 different words"):
        make(haystack=Haystack("few", "A cat sat on a mat. " * 100))
