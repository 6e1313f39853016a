"""Prompts: exactly as long as asked, the same for a seed, and with an answer in them."""

from __future__ import annotations

import pytest
import torch

from sparsefill import InputError
from sparsefill.search import synthetic_prompt, text_prompt
from tests.support.tiny import PROSE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.mark.parametrize("tokens", [300, 511, 512, 1023, 5000])
def test_a_synthetic_prompt(tokens: int):
    prompt = synthetic_prompt(TOKENIZER, tokens, seed=3)
    assert prompt.ids.shape == (1, tokens)
    text = str(TOKENIZER.decode(prompt.ids[0]))
    assert prompt.answer is not None
    key = text.rpartition('Key: "')[2].partition('"')[0]
    assert text.count(f'"{key}": "{prompt.answer}"') == 1
    assert text.endswith('is: "')


def test_synthetic_prompts_follow_their_seed():
    one, same, other = (synthetic_prompt(TOKENIZER, 800, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.ids, same.ids)
    assert one.provenance() == same.provenance()
    assert one.answer != other.answer
    assert one.sha256 != other.sha256


def test_questions_are_asked_all_over_the_prompt():
    depths = []
    for seed in range(12):
        prompt = synthetic_prompt(TOKENIZER, 3000, seed=seed)
        text = str(TOKENIZER.decode(prompt.ids[0]))
        depths.append(text.index(str(prompt.answer)) / len(text))
    assert min(depths) < 0.35
    assert max(depths) > 0.6


def test_too_short_for_a_pair():
    with pytest.raises(InputError, match=r"needs about .* tokens or more, got 100"):
        synthetic_prompt(TOKENIZER, 100)


def test_a_text_is_cut():
    prompt = text_prompt(TOKENIZER, PROSE * 10, 300, name="book")
    assert str(TOKENIZER.decode(prompt.ids[0])).endswith((PROSE * 10)[:300][-20:])
    assert prompt.tokens == 300
    assert prompt.answer is None
    with pytest.raises(InputError, match=r"book has only .* of the 3000 tokens"):
        text_prompt(TOKENIZER, PROSE * 10, 3000, name="book")
