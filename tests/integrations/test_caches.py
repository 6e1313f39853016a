"""Every way to read a prompt into a cache gives the logits of reading it at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsefill import AShape, Dense, VerticalSlash
from sparsefill.integrations.transformers import sparse_prefill
from tests.support.models import (
    FAMILIES,
    WINDOWED,
    assert_logits_close,
    exact_model,
    generate,
    logits_in_chunks,
    logits_of,
    prompt,
    static_cache,
    tiny_model,
)

N = 200
KEEPS_ALL = {"dense": Dense(), "a-shape": AShape(window=2 * N)}
CHUNKS = {"even": [70, 70], "one-token": [1, 130], "ragged-tail": [128, 64, 5]}


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("pattern", KEEPS_ALL.values(), ids=KEEPS_ALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_equal_one_shot(family: str, pattern: Dense, sizes: list[int]):
    model, ids = tiny_model(family, "eager"), prompt(N)
    stock, exact = logits_of(model, ids), logits_of(exact_model(family), ids)
    with sparse_prefill(model, pattern, min_length=1):
        assert_logits_close(logits_in_chunks(model, ids, sizes), stock, exact)


GENERATE: dict[str, dict[str, Any]] = {
    "at-once": {},
    "chunks": {"prefill_chunk_size": 70},
    "static": {"cache_implementation": "static"},
    "static-chunks": {"cache_implementation": "static", "prefill_chunk_size": 70},
}


@pytest.mark.parametrize("options", GENERATE.values(), ids=GENERATE)
@pytest.mark.parametrize("pattern", KEEPS_ALL.values(), ids=KEEPS_ALL)
@pytest.mark.parametrize("family", ["llama-3.1", "glm", *WINDOWED])
def test_generate(family: str, pattern: Dense, options: dict[str, Any]):
    model, ids = tiny_model(family, "eager"), prompt(N)
    stock_tokens, _ = generate(model, ids)
    with sparse_prefill(model, pattern, min_length=1):
        tokens, logits = generate(model, ids, **options)
    assert torch.equal(tokens, stock_tokens)
    stock, exact = (logits_of(m, tokens)[:, N - 1 : -1] for m in (model, exact_model(family)))
    assert_logits_close(logits, stock, exact)


@pytest.mark.parametrize("sizes", [[], [1] * 3, [70, 70], [N - 3, 1, 1]], ids=str)
@pytest.mark.parametrize("pattern", KEEPS_ALL.values(), ids=KEEPS_ALL)
@pytest.mark.parametrize("family", ["llama-3", "qwen3", *WINDOWED])
def test_static_cache_ends_at_what_is_written(family: str, pattern: Dense, sizes: list[int]):
    model, ids = tiny_model(family, "eager"), prompt(N)
    stock, exact = logits_of(model, ids), logits_of(exact_model(family), ids)
    with sparse_prefill(model, pattern, min_length=1):
        cache = static_cache(model, rows=1, slots=2 * N)
        assert_logits_close(logits_in_chunks(model, ids, sizes, cache=cache), stock, exact)


def test_static_cache_estimates_from_written_keys():
    model, ids = tiny_model("llama-3"), prompt(3 * N)
    with sparse_prefill(model, VerticalSlash(verticals=16, slashes=16), min_length=1) as run:
        grown = logits_of(model, ids)
        static = logits_of(model, ids, past_key_values=static_cache(model, rows=1, slots=5 * N))
    assert torch.equal(static, grown)
    assert 0 < run.density < 1
    assert {call.m for call in run.calls} == {3 * N}


@pytest.mark.parametrize("pattern", KEEPS_ALL.values(), ids=KEEPS_ALL)
@pytest.mark.parametrize("family", ["llama-3.1", "glm", *WINDOWED])
def test_second_turn_continues_the_first(family: str, pattern: Dense):
    model, question = tiny_model(family, "eager"), prompt(N, seed=1)
    with sparse_prefill(model, pattern, min_length=1) as run, torch.inference_mode():
        first = model(prompt(N), use_cache=True)
        tokens = torch.cat([prompt(N), question], dim=1)
        turn, logits = generate(model, tokens, past_key_values=first.past_key_values)
    assert [call.n for call in run.calls] == [N] * 4
    stock, exact = (logits_of(m, turn)[:, 2 * N - 1 : -1] for m in (model, exact_model(family)))
    assert_logits_close(logits, stock, exact)


def test_second_turn_is_sparse_too():
    model, ids = tiny_model("llama-3"), prompt(600)
    with sparse_prefill(model, AShape(sink=4, window=64), min_length=1) as run:
        in_turns = logits_in_chunks(model, ids, [320])
        at_once = logits_of(model, ids)
    assert {(c.path, c.n, c.m) for c in run.calls} == {
        ("sparse", 320, 320),
        ("sparse", 280, 600),
        ("sparse", 600, 600),
    }
    torch.testing.assert_close(in_turns, at_once)  # 320 is a whole number of row blocks
