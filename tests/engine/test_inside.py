"""The engine inside a model: generate() gives the tokens of stock, and all is put back."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from sparsefill import Dense, InputError, UnsupportedError, VerticalSlash, engine_prefill, prefill
from sparsefill.integrations.transformers import sparse_prefill
from tests.support.models import pad, prompt, tiny_model

N = 300
SPARSE = VerticalSlash(verticals=20, slashes=10, probe=20, sink=2, window=4)


def generate(model: Any, ids: torch.Tensor, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(ids, **options).tolist()


@pytest.mark.parametrize("kv", ["keep", "host", "disk"])
@pytest.mark.parametrize("order", ["layers", "chunks"])
@pytest.mark.parametrize("family", ["llama-3", "qwen2", "mistral-window"])
def test_generate_as_stock(family: str, order: str, kv: str, tmp_path):
    model, ids = tiny_model(family), prompt(N, rows=2)
    expected = generate(model, ids)
    options: dict[str, Any] = {"save_kv": tmp_path} if kv == "disk" else {}
    with engine_prefill(
        model, Dense(), at_least=N, kv=kv, order=order, chunk=64, **options
    ) as reads:
        assert generate(model, ids) == expected
    assert [read.plan.kv for read in reads] == [kv]
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("kv", ["keep", "host"])
def test_generate_with_beams(kv: str):
    model, ids = tiny_model("llama-3"), prompt(N, rows=2)
    expected = generate(model, ids, num_beams=3)
    with engine_prefill(model, Dense(), at_least=N, chunk=64, kv=kv) as reads:
        assert generate(model, ids, num_beams=3) == expected
    assert len(reads) == 1


def test_a_cache_is_cut_back_to_the_prompt_at_most():
    model, ids, more = tiny_model("llama-3"), prompt(N), prompt(70, seed=1)
    with torch.inference_mode():
        cache = prefill(model, ids, Dense(), chunk=64).cache
        expected = model(more, past_key_values=cache).logits
        for layer in cache.layers:
            layer.crop(N)
        assert cache.get_seq_length() == N
        assert torch.equal(model(more, past_key_values=cache).logits, expected)
        for layer in cache.layers:  # what the two kinds of releases call
            layer.crop(-60)
            layer.crop(N + 3)
        assert cache.get_seq_length() == N + 3
        got = model(more[:, 3:], past_key_values=cache).logits
    assert torch.allclose(got, expected[:, 3:], atol=2e-5)
    with pytest.raises(UnsupportedError, match=f"cut to {N - 1} of {N + 70} tokens"):
        cache.layers[0].crop(N - 1)


def test_rows_of_a_cache_stay_as_they_are():
    cache = prefill(tiny_model("llama-3"), prompt(N), Dense(), chunk=64).cache
    with pytest.raises(UnsupportedError, match="repeated 2 times"):
        cache.batch_repeat_interleave(2)
    with pytest.raises(UnsupportedError, match=r"rows \[0\] selected"):
        cache.batch_select_indices(torch.tensor([0]))
    with pytest.raises(UnsupportedError, match="cannot be reset"):
        cache.reset()


def test_a_call_as_the_hook_has_it():
    model, ids = tiny_model("llama-3"), prompt(N)
    with torch.inference_mode():
        with sparse_prefill(model, SPARSE, min_length=1):
            expected = model(ids).logits
        with engine_prefill(model, SPARSE, at_least=N, chunk=128, min_length=1) as reads:
            every = model(ids)
            last = model(input_ids=ids, logits_to_keep=2, use_cache=False)
    assert torch.allclose(every.logits, expected, atol=2e-5)
    assert every.past_key_values.get_seq_length() == N
    assert torch.allclose(last.logits, expected[:, -2:], atol=2e-5)
    assert last.past_key_values is None
    assert [read.plan.kv for read in reads] == ["keep", "drop"]
    assert 0 < reads[0].run.density < 1


def test_what_is_no_long_prompt_is_not_the_engines():
    model, ids = tiny_model("llama-3"), prompt(N)
    with torch.inference_mode(), engine_prefill(model, SPARSE, at_least=N, chunk=64) as reads:
        model(ids[:, :-1])
        first = model(ids[:, :100], use_cache=True)
        model(torch.cat([ids, ids], dim=1), past_key_values=first.past_key_values)
        assert len(model(ids, output_hidden_states=True).hidden_states) == 3
        model(inputs_embeds=model.get_input_embeddings()(ids))
        assert model(ids, labels=ids).loss > 0
        assert not reads
        model(ids)
        assert len(reads) == 1


def test_a_second_turn():
    model, ids, more = tiny_model("llama-3"), prompt(N), prompt(70, seed=1)
    with torch.inference_mode():
        expected = model(torch.cat([ids, more], dim=1), logits_to_keep=1).logits
        with engine_prefill(model, Dense(), at_least=N, chunk=64):
            first = model(ids)
            got = model(more, past_key_values=first.past_key_values, logits_to_keep=1).logits
    assert torch.allclose(got, expected, atol=2e-5)


def test_padding_is_refused_and_the_model_put_back():
    model = tiny_model("llama-3")
    ids, mask = pad([prompt(N), prompt(N - 9)], "left")
    with (
        pytest.raises(UnsupportedError, match="padd"),
        engine_prefill(model, SPARSE, at_least=N, chunk=64),
    ):
        model(ids, attention_mask=mask)
    assert "forward" not in model.__dict__
    assert model.config._attn_implementation == "sdpa"


def test_a_forward_of_the_users_own_is_put_back():
    model, ids = tiny_model("llama-3"), prompt(N)
    plain, calls = model.forward, []

    @functools.wraps(plain)
    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    model.forward = own
    with torch.inference_mode(), engine_prefill(model, SPARSE, at_least=N, chunk=128):
        model(ids, logits_to_keep=1)
    assert len(calls) == 3
    assert model.forward is own


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"at_least": 0}, "at_least must be"),
        ({"kv": "float4"}, "kv must be one of"),
        ({"chunk": 3}, "chunk must be at least"),
    ],
)
def test_refusals(options: dict[str, Any], why: str):
    model = tiny_model("llama-3")
    with (
        pytest.raises(InputError, match=why),
        engine_prefill(model, SPARSE, **{"at_least": 64, **options}),
    ):
        model(prompt(100))
    assert "forward" not in model.__dict__
