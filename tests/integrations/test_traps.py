"""Where attention inside transformers goes silently wrong: each trap is refused or right."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sparsefill import AShape, Dense, UnsupportedError
from sparsefill.integrations.transformers import sparse_prefill
from sparsefill.integrations.transformers.hook import sparsefill_attention
from tests.support.models import (
    LATE_ROPE,
    SIZES,
    WINDOWED,
    assert_logits_close,
    error,
    exact_model,
    logits_in_chunks,
    logits_of,
    prompt,
    tiny_model,
)

N = 200
KEEPS_ALL = {"dense": Dense(), "a-shape": AShape(window=N)}
UNKNOWN = {
    "s_aux": torch.ones(4),
    "cu_seq_lens_q": torch.tensor([0, 100, 200]),
    "head_mask": torch.ones(4),
    "position_bias": torch.zeros(1, 4, N, N),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_keyword_that_may_change_the_result_is_refused(name: str):
    model = tiny_model("qwen3")
    with (
        sparse_prefill(model, Dense(), min_length=1),
        pytest.raises(UnsupportedError, match=rf"attention keyword {name},.*eager"),
    ):
        logits_of(model, prompt(N), **{name: UNKNOWN[name]})


def test_keyword_of_none_is_not_there():
    model, ids = tiny_model("qwen3"), prompt(N)
    stock = logits_of(model, ids)
    with sparse_prefill(model, Dense(), min_length=1, backend="torch"):
        assert torch.equal(logits_of(model, ids, s_aux=None), stock)


def test_hidden_states_are_given():
    model, ids = tiny_model("qwen3"), prompt(N)
    with torch.inference_mode(), sparse_prefill(model, Dense(), min_length=1):
        result = model(ids, output_hidden_states=True)
    assert len(result.hidden_states) == 3


def test_arguments_come_in_the_order_of_transformers():
    """Whoever wraps attention functions may pass the first ones by place."""
    theirs, ours = (
        [*inspect.signature(function).parameters][:6]
        for function in (sdpa_attention_forward, sparsefill_attention)
    )
    assert ours == theirs


def test_dropout_is_refused():
    model = tiny_model("llama-3", attention_dropout=0.5).train()
    with (
        sparse_prefill(model, Dense(), min_length=1),
        pytest.raises(UnsupportedError, match=r"dropout=0\.5"),
    ):
        logits_of(model, prompt(N))


@pytest.mark.parametrize("sizes", [[], [128], [N - 1]], ids=["one-shot", "chunks", "decode"])
@pytest.mark.parametrize("pattern", KEEPS_ALL.values(), ids=KEEPS_ALL)
def test_softcap_is_honoured(pattern: Dense, sizes: list[int]):
    model, ids = tiny_model("gemma2", "eager"), prompt(N)
    stock, exact = logits_of(model, ids), logits_of(exact_model("gemma2"), ids)
    uncapped = logits_of(exact_model("gemma2", attn_logit_softcapping=None), ids)
    assert error(uncapped, exact) > 0.1  # so that ignoring it would be seen
    with sparse_prefill(model, pattern, min_length=1):
        assert_logits_close(logits_in_chunks(model, ids, sizes), stock, exact)


@pytest.mark.parametrize("family", LATE_ROPE)
def test_late_rope_in_chunks_does_what_stock_chunks_do(family: str):
    ids = prompt(N)
    stock = logits_in_chunks(tiny_model(family, "eager"), ids, [50, 50])
    exact = logits_in_chunks(exact_model(family), ids, [50, 50])
    at_once = logits_of(exact_model(family), ids)
    assert error(at_once[:, :50], exact[:, :50]) > 0.01  # the first chunk is rotated otherwise
    model = tiny_model(family)
    with sparse_prefill(model, Dense(), min_length=1):
        assert_logits_close(logits_in_chunks(model, ids, [50, 50]), stock, exact)


@pytest.mark.parametrize("ends", [[100, 100], [50, 100, 50]], ids=str)
@pytest.mark.parametrize("pattern", KEEPS_ALL.values(), ids=KEEPS_ALL)
def test_packed_prompts_are_refused(pattern: Dense, ends: list[int]):
    model = tiny_model("llama-3")
    packed = torch.cat([torch.arange(end) for end in ends])[None]
    with (
        sparse_prefill(model, pattern, min_length=1),
        pytest.raises(UnsupportedError, match="packed sequences"),
    ):
        logits_of(model, prompt(N), position_ids=packed)


@pytest.mark.parametrize("kinds", [["full_attention"] * 2, ["full_attention", "sliding_attention"]])
def test_packed_prompts_are_refused_with_a_static_cache(kinds: list[str]):
    """Its mask tells how much is written, in some layers only."""
    config = transformers.Qwen2Config(
        **SIZES, layer_types=kinds, use_sliding_window=True, sliding_window=64
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    cache = transformers.StaticCache(config=config, max_batch_size=1, max_cache_len=N + 50)
    packed = torch.cat([torch.arange(60), torch.arange(N - 60)])[None]
    with (
        sparse_prefill(model, Dense(), min_length=1),
        pytest.raises(UnsupportedError, match="packed sequences"),
        torch.inference_mode(),
    ):
        model(prompt(N), position_ids=packed, past_key_values=cache)


def test_positions_may_start_anywhere():
    model, ids = tiny_model("llama-3"), prompt(N)
    later = torch.arange(7, 7 + N)[None]
    stock = logits_of(model, ids, position_ids=later)
    with sparse_prefill(model, Dense(), min_length=1, backend="torch"):
        assert torch.equal(logits_of(model, ids, position_ids=later), stock)


@pytest.mark.parametrize("family", ["llama-3", "gemma3"])
@pytest.mark.parametrize("pattern", KEEPS_ALL.values(), ids=KEEPS_ALL)
def test_mask_with_holes_is_refused(family: str, pattern: Dense):
    model, mask = tiny_model(family), torch.ones(2, N, dtype=torch.long)
    mask[1, 20:30] = 0
    with (
        sparse_prefill(model, pattern, min_length=1),
        pytest.raises(UnsupportedError, match="mask with holes"),
    ):
        logits_of(model, prompt(N, rows=2), attention_mask=mask)


@pytest.mark.parametrize("cells", ["packed", "prefix"])
@pytest.mark.parametrize("kind", ["additive", "boolean"])
@pytest.mark.parametrize("family", ["llama-3", "mistral-window"])
def test_own_mask_takes_the_stock_path(family: str, kind: str, cells: str):
    model, ids = tiny_model(family), prompt(N)
    part = torch.arange(N) // 100
    causal = torch.ones(N, N, dtype=torch.bool).tril()
    masks = {"packed": causal & (part == part[:, None]), "prefix": causal | (part == 0)}
    seen = masks[cells][None, None]
    additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = seen if kind == "boolean" else additive
    stock = logits_of(model, ids, attention_mask=mask)
    assert error(logits_of(model, ids), stock.double()) > 0.1
    with sparse_prefill(model, AShape(sink=1, window=1), min_length=1) as run:
        assert torch.equal(logits_of(model, ids, attention_mask=mask), stock)
    assert run.calls == []


@pytest.mark.parametrize("n", [1, 64, N])
@pytest.mark.parametrize("watched", [False, True])
def test_a_call_says_itself_whether_it_is_causal(n: int, watched: bool):
    """Whatever its module says: CLIP's text encoder has the attention of its image encoder."""
    model = tiny_model("llama-3")
    layer = model.model.layers[0].self_attn
    q, k = torch.randn(1, 4, n, 16), torch.randn(1, 2, n, 16)
    with sparse_prefill(model, Dense(), backend="torch", record=watched):
        expected, _ = sparsefill_attention(layer, q, k, k, None)
        layer.is_causal = False
        got, _ = sparsefill_attention(layer, q, k, k, None, is_causal=True)
        both, _ = sparsefill_attention(layer, q, k, k, None)
    assert torch.equal(got, expected)
    assert torch.equal(both, expected) == (n == 1)


def test_own_mask_with_a_softcap_is_refused():
    model = tiny_model("gemma2", "eager")
    mask = torch.zeros(1, 1, N, N)
    with (
        sparse_prefill(model, Dense(), min_length=1),
        pytest.raises(UnsupportedError, match="softcap"),
    ):
        logits_of(model, prompt(N), attention_mask=mask)


@pytest.mark.parametrize("family", WINDOWED)
def test_window_forgets_what_lies_behind_it(family: str):
    """One layer with a window: tokens before it do not matter."""
    options = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}
    options = options if family != "mistral-window" else {"num_hidden_layers": 1}
    model, ids = tiny_model(family, "eager", **options), prompt(N)
    other = torch.cat([prompt(N, seed=1)[:, :100], ids[:, 100:]], dim=1)
    with sparse_prefill(model, Dense(), min_length=1):
        difference = (logits_of(model, ids) - logits_of(model, other)).abs().amax(-1)[0]
    assert bool((difference[100:147] > 0).all())
    assert bool((difference[147:] == 0).all())
