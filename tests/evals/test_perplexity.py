"""Perplexity counts every token once, in float64, over windows that begin where shorter ones do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch

from sparsefill.data import novel
from sparsefill.errors import InputError, ShapeError
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.tasks.perplexity import by_position, cut_window, read_out, window_starts
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


def ids_of(text: str) -> list[int]:
    return small_bpe().encode(text, add_special_tokens=False)


@pytest.mark.parametrize("index", [0, 1, 5, 7])
def test_a_window_begins_at_the_same_token_whatever_its_length(index: int):
    windows = [cut_window(TEXT, PROMPTER, length, index) for length in (301, 700, 1024)]
    assert len({window.start for window in windows}) == 1
    for window in windows:
        assert window.ids == windows[-1].ids[: len(window.ids)]
        assert window.ids[0] == 1, "the marker of a text's start"
        start = window.start
        assert list(window.ids[1:]) == ids_of(TEXT.text)[start : start + len(window.ids) - 1]


@pytest.mark.parametrize("length", [1024, 2048, 4096])
def test_windows_share_no_token_where_there_is_room(length: int):
    count = len(ids_of(TEXT.text)) // length
    assert count > 1
    windows = [cut_window(TEXT, PROMPTER, length + 1, index) for index in range(count)]
    assert sorted(window.start for window in windows) == [length * own for own in range(count)]
    assert {window.shared for window in windows} == {0}


def test_windows_that_share_tokens_say_how_many():
    size = len(ids_of(TEXT.text))
    starts = [start for _, start in window_starts([size]) if start + 1500 <= size]
    held: set[int] = set()
    most = 0
    for index, start in enumerate(starts):
        window = cut_window(TEXT, PROMPTER, 1501, index)
        own = set(range(window.start, window.start + 1500))
        assert (window.start, window.shared) == (start, len(own & held))
        held |= own
        most = max(most, window.shared)
    assert most == 1500 - 1024 + 1500 - 1024


@pytest.mark.parametrize("sizes", [[220_000], [160_000, 60_000], [3, 0, 5000, 1024], [1]])
def test_starts_are_told_once_and_lie_in_their_text(sizes: list[int]):
    starts = list(window_starts(sizes))
    assert len(set(starts)) == len(starts)
    assert {text for text, _ in starts} == {text for text, size in enumerate(sizes) if size}
    assert all(start == 0 or start + 1024 <= sizes[text] for text, start in starts)
    for step in (1024, 8192, 32_768):
        room = [(text, step * k) for text, size in enumerate(sizes) for k in range(size // step)]
        assert set(starts[: len(room)]) == set(room)


def test_no_window_reaches_over_the_end_of_its_text():
    texts = [novel()[:9000], novel()[9000:20_000], novel()[20_000:40_000]]
    books = Haystack.join("books", texts)
    count = sum(len(ids_of(text)) // 1024 for text in texts)
    for index in range(count):
        window = cut_window(books, PROMPTER, 1025, index)
        assert list(window.ids[1:]) == ids_of(texts[window.text])[window.start :][:1024]
    with pytest.raises(InputError, match=f"{count} windows of 1025 tokens, fewer than {count + 1}"):
        cut_window(books, PROMPTER, 1025, count)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(InputError, match=r"'a novel' has \d+ windows .* than 500; pass fewer"):
        cut_window(TEXT, PROMPTER, 1001, 499)
    with pytest.raises(InputError, match="a token to predict, got 1; pass a larger length"):
        cut_window(TEXT, PROMPTER, 1, 0)


def test_a_sample_tells_that_one_before_it_is_too_long():
    size = len(ids_of(TEXT.text))
    fits = [start + 3000 <= size for _, start in window_starts([size])]
    first = fits.index(False)
    later = first + fits[first:].index(True)
    with pytest.raises(InputError, match=f"has {first} windows of 3001 tokens"):
        cut_window(TEXT, PROMPTER, 3001, later)
    assert len(cut_window(TEXT, PROMPTER, 3001, first - 1).ids) == 3001


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
