"""Perplexity counts every token once, in float64, over windows that share none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch

from sparsefill.data import novel
from sparsefill.errors import InputError, ShapeError
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.tasks.perplexity import by_position, cut_window, read_out
from tests.support.small_bpe import small_bpe
from tests.support.tokenizers import ByteTokenizer

PROMPTER = Prompter(tokenizer=small_bpe(), template="chat")
TEXT = Haystack("a novel", novel()[:30_000])


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large():
    reading = read_out(torch.full((33,), math.log(50)))
    assert reading.perplexity == pytest.approx(50)
    assert reading.tokens == 33


def test_sums_are_float64():
    nll = torch.tensor([2.0**24] + [1.0] * 1001)
    total = 2**24 + 1001  # odd: no float32
    assert float(nll.sum()) != total
    assert read_out(nll).nll == total / 1002
    assert by_position(nll, [0, 1002]) == [total / 1002]


def test_the_end_of_a_window_and_its_ranges():
    nll = torch.arange(8.0)
    assert read_out(nll, last=2).last == (6 + 7) / 2
    assert read_out(nll, last=100).last == read_out(nll).nll == 3.5
    assert by_position(nll, [0, 4, 6, 8]) == [1.5, 4.5, 6.5]
    for wrong in ([0, 4, 4], [4, 2], [0, 9], [-1, 3]):
        with pytest.raises(ShapeError, match="edges must ascend between 0 and 8"):
            by_position(nll, wrong)
    with pytest.raises(InputError, match="no token"):
        read_out(torch.zeros(0))


def test_windows_lie_side_by_side():
    ids = small_bpe().encode(TEXT.text, add_special_tokens=False)
    count = len(ids) // 1000
    assert count > 8
    windows = [cut_window(TEXT, PROMPTER, 1001, index) for index in range(count)]
    assert [window.start for window in windows] == [1000 * index for index in range(count)]
    for window in windows:
        assert window.ids[0] == 1, "the marker of a text's start"
        assert list(window.ids[1:]) == ids[window.start : window.start + 1000]


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(InputError, match=r"'a novel' has \d+ windows .* than 500; pass fewer"):
        cut_window(TEXT, PROMPTER, 1001, 499)
    count = len(small_bpe().encode(TEXT.text, add_special_tokens=False)) // 1000
    with pytest.raises(InputError, match=f"{count} windows of 1001 tokens, fewer than {count + 1}"):
        cut_window(TEXT, PROMPTER, 1001, count)
    with pytest.raises(InputError, match="a token to predict, got 1; pass a larger length"):
        cut_window(TEXT, PROMPTER, 1, 0)


@dataclass
class Counting(ByteTokenizer):
    """Counts the long texts that it reads; having a value, it cannot be hashed."""

    read: list[int] = field(default_factory=list)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.read += [len(text)] if len(text) > 100 else []
        return super().encode(text, add_special_tokens=add_special_tokens)


def test_a_run_reads_its_text_once():
    tokenizer = Counting()
    with pytest.raises(TypeError, match="unhashable"):
        hash(tokenizer)
    prompter = Prompter(tokenizer=tokenizer)
    windows = [
        cut_window(TEXT, prompter, length, index) for length in (500, 900) for index in range(5)
    ]
    assert tokenizer.read == [len(TEXT.text)]
    fresh = Prompter(tokenizer=Counting())
    assert windows[7] == cut_window(TEXT, fresh, 900, 2)
    other = Haystack("other", TEXT.text[::-1])
    assert cut_window(other, prompter, 500, 0) != windows[0], "not the text before it"
