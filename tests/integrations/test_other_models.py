"""Models beyond plain decoders: what the hook cannot do right, it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from sparsefill import AShape, Dense, UnsupportedError
from sparsefill.integrations.transformers import register, sparse_prefill
from sparsefill.integrations.transformers.hook import sparsefill_attention
from tests.support.models import (
    SIZES,
    assert_logits_close,
    generate,
    logits_of,
    pad,
    prompt,
    tiny_model,
)

N = 200


def bart(attention: str) -> Any:
    """Build an encoder-decoder with the same weights each time."""
    config = transformers.BartConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_position_embeddings=512,
        init_std=0.2,
        vocab_size=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    kind: Any = transformers.BartForConditionalGeneration
    return kind._from_config(config, attn_implementation=attention).eval()


@pytest.fixture
def source() -> tuple[Tensor, Tensor]:
    """Two sources of different length, for the encoder."""
    return pad([prompt(150), prompt(90, seed=1)], "right")


@pytest.mark.parametrize("way", ["loaded", "block"])
def test_encoder_decoder_reads_a_padded_source(way: str, source: tuple[Tensor, Tensor]):
    """Encoder and cross-attention are not causal: they stay stock, padding included."""
    register()
    options: Any = {"attention_mask": source[1], "decoder_input_ids": prompt(100, rows=2, seed=2)}
    stock = logits_of(bart("eager"), source[0], **options)
    exact = logits_of(bart("eager").double(), source[0], **options)
    model = bart("sparsefill" if way == "loaded" else "eager")
    if way == "loaded":
        assert_logits_close(logits_of(model, source[0], **options), stock, exact)
    else:
        with sparse_prefill(model, Dense(), min_length=1):
            assert_logits_close(logits_of(model, source[0], **options), stock, exact)


def test_encoder_decoder_generates_from_a_padded_source(source: tuple[Tensor, Tensor]):
    ids, options = source[0], {"attention_mask": source[1], "num_beams": 1}
    stock_tokens, stock = generate(bart("eager"), ids, **options)
    _, exact = generate(bart("eager").double(), ids, **options)
    with sparse_prefill(model := bart("eager"), Dense(), min_length=1):
        tokens, logits = generate(model, ids, **options)
    assert_logits_close(logits, stock, exact.double())
    assert torch.equal(tokens, stock_tokens)


@pytest.mark.parametrize("pattern", [Dense(), AShape(window=N)], ids=["dense", "a-shape"])
def test_chunked_attention_is_right_or_refused(pattern: Dense):
    """Llama 4's local layers see only their own chunk of 32 keys, told by the mask alone."""
    local: Any = {"attention_chunk_size": 32, "no_rope_layers": [1, 0], "moe_layers": []}
    config = transformers.Llama4TextConfig(
        **SIZES | local,
        layer_types=["chunked_attention", "full_attention"],
        intermediate_size_mlp=96,
        attn_temperature_tuning=False,
    )
    torch.manual_seed(0)
    kind: Any = transformers.Llama4ForCausalLM
    model, ids = kind._from_config(config, attn_implementation="eager").eval(), prompt(N)
    stock = logits_of(model, ids)
    with sparse_prefill(model, pattern, min_length=1):
        try:
            logits = logits_of(model, ids)
        except UnsupportedError:
            return
    exact = logits_of(model.double(), ids)
    assert_logits_close(logits, stock, exact)


def test_sinks_are_refused():
    """gpt-oss adds a learned logit to every softmax."""
    if not hasattr(transformers, "GptOssConfig"):
        pytest.skip("this release of transformers has no gpt-oss")
    config = transformers.GptOssConfig(
        **SIZES | {"num_local_experts": 2, "num_experts_per_tok": 1, "rope_scaling": None}
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with (
        sparse_prefill(model.eval(), Dense(), min_length=1),
        pytest.raises(UnsupportedError, match="s_aux"),
    ):
        logits_of(model, prompt(N))


@pytest.mark.parametrize("how", ["missing", "none"])
def test_layers_without_a_number_are_refused(how: str):
    """CLIP's text encoder is causal, and has no cache for which layers would be told apart."""
    layer = tiny_model("llama-3").model.layers[0].self_attn
    del layer.layer_idx
    if how == "none":
        layer.layer_idx = None
    q, k = torch.randn(1, 4, N, 16), torch.randn(1, 2, N, 16)
    with pytest.raises(UnsupportedError, match=r"got LlamaAttention without one; load .*'sdpa'"):
        sparsefill_attention(layer, q, k, k, None)


def test_old_style_model_decodes():
    """GPT-2 makes its masks in its own way on older releases."""
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=128, initializer_range=0.2, bos_token_id=1
    )
    config.eos_token_id = None
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.eval()
    ids = prompt(N)
    stock_tokens, stock = generate(model, ids, pad_token_id=0)
    with sparse_prefill(model, Dense(), min_length=1):
        tokens, logits = generate(model, ids, pad_token_id=0)
    _, exact = generate(model.double(), ids, pad_token_id=0)
    assert_logits_close(logits, stock, exact.double())
    assert torch.equal(tokens, stock_tokens)
