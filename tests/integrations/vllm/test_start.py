"""What is settled at the start: whether we were chosen, and which layers can be read."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace as Some
from typing import Any

import pytest
import torch

from sparsefill.errors import UnsupportedError
from sparsefill.integrations.vllm.start import (
    heads_of,
    is_chosen,
    is_plain,
    number_layers,
    refuse,
)
from sparsefill.patterns import Dense
from tests.integrations.vllm.fakes import rank_heads

WIDTH = rank_heads(Dense()).profile.architecture.head_dim
CUSTOM, STOCK = Some(name="CUSTOM"), Some(name="FLASH_ATTN")


def config(backend: Any = None, kinds: Any = None, drafts: Any = None) -> Any:
    model = Some(dtype=torch.bfloat16)
    speculative = None if drafts is None else Some(draft_model_config=model if drafts else Some())
    attention = (
        Some(backend=backend) if kinds is None else Some(backend=backend, backend_per_kind=kinds)
    )
    return Some(attention_config=attention, model_config=model, speculative_config=speculative)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (config(), False),
        (config(STOCK), False),
        (config(CUSTOM), True),
        (config(CUSTOM, {}), True),
        (config(None, {"full_attention": CUSTOM}), True),
        (config(None, {"full_attention": STOCK}), False),
        (config(CUSTOM, drafts=False), True),
        (config(CUSTOM, drafts=True), False),  # the draft model itself
    ],
)
def test_only_who_asks_gets_us(own: Any, expected: bool):
    assert is_chosen(own) is expected


def attention(**changed: Any) -> Any:
    usual: dict[str, Any] = {
        "attn_type": "decoder",
        "sliding_window": -1,
        "alibi_slopes": None,
        "sinks": None,
        "kv_sharing_target_layer_name": None,
        "kv_cache_dtype": "auto",
        "num_heads": 4,
        "head_size": WIDTH,
        "logits_soft_cap": 30.0,
    }
    own = Some(**{**usual, **changed})
    own.is_plain = is_plain(own)
    return own


@pytest.mark.parametrize(
    ("changed", "usable"),
    [
        ({}, True),
        ({"sliding_window": (-1, -1)}, True),
        ({"sliding_window": None}, True),
        ({"sliding_window": 4096}, False),
        ({"sliding_window": (4095, 0)}, False),
        ({"attn_type": "encoder_only"}, False),
        ({"alibi_slopes": torch.ones(4)}, False),
        ({"sinks": torch.ones(4)}, False),
        ({"kv_sharing_target_layer_name": "model.layers.0.self_attn.attn"}, False),
        ({"kv_cache_dtype": "bfloat16"}, True),
        ({"kv_cache_dtype": "float16"}, False),  # other than the model's
        ({"kv_cache_dtype": "fp8_e4m3"}, False),
        ({"num_heads": 8}, False),  # of a model whose layers differ
        ({"head_size": 2 * WIDTH}, False),
    ],
)
def test_layers_that_we_cannot_read_are_left_to_vllm(changed: dict[str, Any], usable: bool):
    full, own = attention(), attention(**changed)
    layers = {"model.layers.0.self_attn.attn": full, "model.layers.1.self_attn.attn": own}
    numbers = numbered(layers)
    assert numbers == ([0, 1] if usable else [0])


def numbered(layers: dict[str, Any], **more: Any) -> list[int]:
    wrapped = {name: Some(impl=own, **more) for name, own in layers.items()}
    found = number_layers(wrapped, rank_heads(Dense()), config(CUSTOM))
    assert list(found) == [name for name in layers if name in found]
    return list(found.values())


def test_layers_beyond_the_profile_are_left_to_vllm():
    first = {"model.layers.0.self_attn.attn": attention()}
    assert numbered(first | {"model.layers.2.self_attn.attn": attention()}) == [0]  # of a draft
    assert numbered(first | {"a.1.layers.2.attn": attention(), "attn": attention()}) == [0]
    assert numbered(first | {"model.layers.1.self_attn.attn": Some()}) == [0]  # another class


def test_layers_of_other_kinds_are_left_to_vllm_beside_those_that_are_read():
    full = Some(impl=attention(), head_size_v=WIDTH, attention_chunk_size=None)
    for own in (
        Some(impl=attention(), attention_chunk_size=8192),
        Some(impl=attention(), head_size_v=2 * WIDTH),
    ):
        layers = {"model.layers.0.attn": own, "model.layers.1.attn": full}
        assert number_layers(layers, rank_heads(Dense()), config(CUSTOM)) == {
            "model.layers.1.attn": 1
        }


def test_a_model_of_which_nothing_can_be_read_is_refused():
    layers = {"model.layers.0.self_attn.attn": attention()}
    assert numbered({}) == []
    assert numbered(layers, attention_chunk_size=None) == [0]
    assert numbered(layers, head_size_v=WIDTH) == [0]
    with pytest.raises(UnsupportedError, match="1 attention layers: 1 attend otherwise than"):
        numbered(layers, attention_chunk_size=8192)
    with pytest.raises(UnsupportedError, match=f"1 have other heads than 4 of {WIDTH};"):
        numbered(layers, head_size_v=2 * WIDTH)
    eighth = {name: attention(kv_cache_dtype="fp8_e4m3") for name in ("layers.0.a", "layers.1.a")}
    with pytest.raises(UnsupportedError, match="2 keep keys and values as fp8_e4m3, not as bfl"):
        numbered(eighth)
    with pytest.raises(UnsupportedError, match=r"1 attend .*; 1 are not among the 2 layers"):
        numbered({"layers.0.a": attention(sliding_window=9), "layers.9.a": attention()})
    with pytest.raises(UnsupportedError, match="1 have no number in their names"):
        numbered({"attn": attention()})


def test_what_is_refused_is_told_in_one_line(caplog):
    with caplog.at_level(logging.ERROR, "vllm"), pytest.raises(UnsupportedError):
        refuse(UnsupportedError("expected this, got that"))
    assert [r.getMessage() for r in caplog.records] == [
        "sparsefill cannot start: expected this, got that"
    ]


@pytest.mark.parametrize(
    "text",
    [Some(), Some(num_attention_heads=[4, 8], num_hidden_layers=2)],
    ids=["none", "by layer"],
)
def test_a_config_without_heads_is_refused_with_its_name(monkeypatch, text: Any):
    distributed = Some(get_tensor_model_parallel_rank=lambda: 0)
    monkeypatch.setitem(sys.modules, "vllm", Some(distributed=distributed))
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    own = Some(additional_config={}, model_config=Some(hf_text_config=text))
    with pytest.raises(UnsupportedError, match=r"SimpleNamespace .*; leave out --attention"):
        heads_of(own, "cpu")
