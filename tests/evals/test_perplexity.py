"""Perplexity counts every token once, in float64, over windows that share none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsefill.data import novel
from sparsefill.errors import InputError, ShapeError
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.tasks.perplexity import (
    by_position,
    curve_lengths,
    cut_windows,
    estimate_nll,
    load_texts,
    nll_in_slices,
    nll_of_rows,
    read_out,
)
from tests.support.small_bpe import small_bpe

VOCABULARY = 50
PROMPTER = Prompter(tokenizer=small_bpe(), template="chat")
TEXTS = [Haystack("long", novel()[:30_000]), Haystack("short", novel("northanger-abbey")[:9_000])]


def text_of(n: int = 41) -> tuple[Tensor, Tensor]:
    """Return logits of a text, growing harder with the position, and its tokens."""
    ids = torch.randint(VOCABULARY, (n,))
    return torch.randn(n, VOCABULARY) * torch.linspace(0, 4, n)[:, None], ids


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large():
    ids = torch.randint(VOCABULARY, (33,))
    nll = nll_in_slices(lambda start, end: torch.zeros(end - start, VOCABULARY), ids, 10)
    reading = read_out([nll, nll])
    assert reading.whole.perplexity == pytest.approx(VOCABULARY)
    assert reading.mean_perplexity == pytest.approx(VOCABULARY)
    assert reading.whole.standard_error == pytest.approx(0)


@pytest.mark.parametrize("rows", [1, 7, 10, 40, 41, 1000])
def test_slices_lose_no_token(rows: int):
    logits, ids = text_of()
    asked: list[tuple[int, int]] = []

    def logits_of(start: int, end: int) -> Tensor:
        asked.append((start, end))
        return logits[start:end]

    nll = nll_in_slices(logits_of, ids, rows)
    probabilities = logits.double().softmax(-1)
    by_hand = torch.tensor([-math.log(probabilities[i, ids[i + 1]]) for i in range(40)])
    torch.testing.assert_close(nll, by_hand)
    assert max(end - start for start, end in asked) <= rows


def test_losing_a_token_a_slice_would_show():
    """What MInference's script does: targets are shifted inside each slice."""
    logits, ids = text_of()
    slices = [(logits[at : at + 10], ids[at : at + 10]) for at in range(0, 41, 10)]
    lossy = torch.cat([nll_of_rows(rows[:-1], own[1:]) for rows, own in slices if len(own) > 1])
    ours = nll_in_slices(lambda start, end: logits[start:end], ids, 10)
    assert len(ours) == 40
    assert len(lossy) == 36
    assert abs(float(lossy.mean() - ours.mean())) > 1e-3


def test_logits_of_half_width_are_widened_first():
    logits, ids = text_of()
    half = logits.bfloat16()
    torch.testing.assert_close(
        nll_of_rows(half[:-1], ids[1:]), nll_of_rows(half.float()[:-1], ids[1:]), rtol=0, atol=0
    )


def test_sums_are_float64():
    nll = torch.tensor([2.0**24] + [1.0] * 1001)
    total = 2**24 + 1001  # odd: no float32
    assert float(nll.sum()) != total
    assert estimate_nll([nll]).nll == total / 1002
    assert read_out([nll[1:]]).whole.nll == 1


def test_every_token_weighs_the_same_in_one_and_every_window_in_the_other():
    reading = read_out([torch.full((30,), 1.0), torch.full((10,), 3.0)])
    assert reading.whole.perplexity == pytest.approx(math.exp(1.5))
    assert reading.mean_perplexity == pytest.approx((math.e + math.exp(3)) / 2)
    assert (reading.whole.tokens, reading.whole.windows) == (40, 2)


def test_the_error_is_that_of_the_windows_means():
    nlls = [torch.rand(20) + shift for shift in (0.0, 0.4, 0.9, 0.1)]
    means = torch.stack([nll.double().mean() for nll in nlls])
    found = estimate_nll(nlls)
    assert found.standard_error == pytest.approx(float(means.std() / 2))
    assert estimate_nll(nlls[:1]).standard_error is None


def test_the_error_covers_what_it_should():
    """Tokens of a window share its mood; windows are of unequal length."""
    covered = 0
    for _ in range(200):
        lengths = torch.randint(5, 40, (60,)).tolist()
        found = estimate_nll([2 + torch.randn(()) + torch.randn(length) for length in lengths])
        assert found.standard_error is not None
        covered += abs(found.nll - 2) < 1.96 * found.standard_error
    assert 178 <= covered <= 198


def test_the_end_of_a_window_and_its_ranges():
    nlls = [torch.arange(8.0), torch.arange(5.0)]
    assert read_out(nlls, last=2).last.nll == (6 + 7 + 3 + 4) / 4
    first, second, third, fourth = by_position(nlls, [0, 4, 6, 8, 12])
    assert first is not None
    assert (first.nll, first.tokens, first.windows) == (1.5, 8, 2)
    assert second is not None
    assert (second.nll, second.tokens) == pytest.approx(((4 + 5 + 4) / 3, 3))
    assert third is not None
    assert (third.nll, third.windows, third.standard_error) == (6.5, 1, None)
    assert fourth is None
    with pytest.raises(ShapeError, match="ascend"):
        by_position(nlls, [0, 4, 4])
    with pytest.raises(InputError, match="no token"):
        estimate_nll([torch.zeros(0)])


def test_lengths_step_in_whole_tokens():
    assert curve_lengths(1000, 100_000, 19)[-1] == 99_990
    assert curve_lengths(512, 2048, 3) == (512, 1024, 1536, 2048)


def test_windows_share_no_token_and_take_texts_in_turn():
    found = cut_windows(TEXTS, PROMPTER, 1001, 8)
    assert [window.text for window in found[:4]] == ["long", "short", "long", "short"]
    assert {len(window.ids) for window in found} == {1001}
    assert {window.ids[0] for window in found} == {1}, "the marker of a text's start"
    for text in TEXTS:
        ids = small_bpe().encode(text.text, add_special_tokens=False)
        own = [window for window in found if window.text == text.name]
        assert [window.start for window in own] == [1000 * i for i in range(len(own))]
        for window in own:
            assert list(window.ids[1:]) == ids[window.start : window.start + 1000]
    assert found == cut_windows(TEXTS, PROMPTER, 1001, 8)
    assert found[:3] == cut_windows(TEXTS, PROMPTER, 1001, 3)


def test_more_windows_than_there_are_is_refused():
    with pytest.raises(InputError, match=r"fewer than 500; pass fewer samples"):
        cut_windows(TEXTS, PROMPTER, 1001, 500)


def test_each_file_of_a_folder_is_a_text(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}", "utf-8")
    assert [text.text for text in load_texts(tmp_path)] == ["text a", "text b"]
    assert [text.name for text in load_texts(tmp_path / "b.txt")] == ["b.txt"]
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="must hold text"):
        load_texts(empty)
    assert len(load_texts()) == 1
