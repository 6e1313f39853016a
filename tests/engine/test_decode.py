"""Decoding from what each policy kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsefill import Dense, prefill
from tests.support.models import prompt, tiny_model

N, NEW = 300, 64


def greedily(model, cache, logits: Tensor, count: int) -> list[list[int]]:
    """Decode tokens of each sequence."""
    tokens = logits[:, -1:].argmax(-1)
    found = [tokens]
    with torch.inference_mode():
        while len(found) < count:
            result = model(tokens, past_key_values=cache, use_cache=True)
            tokens = result.logits[:, -1:].argmax(-1)
            found.append(tokens)
    return torch.cat(found, dim=1).tolist()


def stock(model, ids: Tensor, count: int) -> list[list[int]]:
    with torch.inference_mode():
        result = model(ids, use_cache=True, logits_to_keep=1)
    return greedily(model, result.past_key_values, result.logits, count)


def read(model, ids: Tensor, kv: str, order: str, tmp_path):
    save = tmp_path if kv == "disk" else None
    return prefill(model, ids, Dense(), chunk=128, kv=kv, order=order, save_kv=save)


@pytest.mark.parametrize("order", ["layers", "chunks"])
@pytest.mark.parametrize("kv", ["keep", "host", "disk"])
@pytest.mark.parametrize("family", ["llama-3", "gemma3", "mistral-window"])
def test_the_tokens_of_stock(family: str, kv: str, order: str, tmp_path):
    model, ids = tiny_model(family), prompt(N, rows=2)
    found = read(model, ids, kv, order, tmp_path)
    assert greedily(model, found.cache, found.logits, NEW) == stock(model, ids, NEW)


@pytest.mark.parametrize("kv", ["keep", "int8", "host"])
def test_more_tokens_than_there_is_room_for(kv: str, tmp_path):
    model, ids = tiny_model("llama-3", num_hidden_layers=1), prompt(65)
    found = read(model, ids, kv, "layers", tmp_path)
    tokens = greedily(model, found.cache, found.logits, 300)
    assert found.cache.get_seq_length() == 65 + 299
    if kv != "int8":
        assert tokens == stock(model, ids, 300)


def least_gap(model, ids: Tensor, count: int) -> float:
    """Return how far the best token is ahead at least, in standard deviations of logits."""
    tokens = torch.tensor(stock(model, ids, count))
    with torch.inference_mode():
        logits = model(torch.cat([ids, tokens[:, :-1]], dim=1), logits_to_keep=count).logits
    best = logits.topk(2).values
    return float((best[..., 0] - best[..., 1]).min() / logits.std())


@pytest.mark.parametrize("order", ["layers", "chunks"])
@pytest.mark.parametrize("seed", [0, 3])  # prompts whose next tokens are not nearly tied
def test_the_first_tokens_of_stock_with_8_bits(seed: int, order: str, tmp_path):
    model, ids = tiny_model("llama-3"), prompt(N, seed=seed)
    assert least_gap(model, ids, 16) > 0.04
    found = read(model, ids, "int8", order, tmp_path)
    assert greedily(model, found.cache, found.logits, 16) == stock(model, ids, 16)


@pytest.mark.parametrize("kv", ["keep", "host", "disk"])
def test_generate_goes_on_from_the_cache(kv: str, tmp_path):
    model, ids = tiny_model("llama-3"), prompt(N)
    found = read(model, ids, kv, "layers", tmp_path)
    first = found.logits[:, -1:].argmax(-1)
    tokens = model.generate(
        torch.cat([ids, first], 1),
        past_key_values=found.cache,
        max_new_tokens=20,
        do_sample=False,
    )
    assert tokens[:, N:].tolist() == stock(model, ids, 21)


def test_nothing_to_decode_from_where_it_was_dropped(tmp_path):
    assert read(tiny_model("llama-3"), prompt(N), "drop", "layers", tmp_path).cache is None
