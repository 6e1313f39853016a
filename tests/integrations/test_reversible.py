"""`sparse_prefill` leaves no trace in the model, and refuses models that it does not fit."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, FalconConfig, GPTJConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from sparsefill import AShape, Dense, InputError, ProfileError, UnsupportedError
from sparsefill.integrations.transformers import (
    LayerCall,
    architecture_of,
    register,
    sparse_prefill,
)
from sparsefill.integrations.transformers.hook import runs
from sparsefill.profile import Architecture, Profile
from tests.support.models import logits_of, prompt, tiny_model

N = 200
NARROW = AShape(sink=1, window=1)
TINY: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def state(model: Any) -> tuple[list[Any], dict[str, Any], set[str]]:
    """Everything of a model that the hook might have changed."""
    configs = [getattr(module, "config", None) for module in model.modules()]
    return (
        [config and (id(config), config._attn_implementation) for config in configs],
        model.config.to_dict(),
        {name for module in model.modules() for name in vars(module)},
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa", "sparsefill"])
@pytest.mark.parametrize("family", ["llama-3", "gemma3"])
def test_model_is_as_before(family: str, attention: str):
    register()
    model, ids = tiny_model(family, attention), prompt(N)
    logits, before, known = logits_of(model, ids), state(model), dict(runs)
    with sparse_prefill(model, NARROW, min_length=1):
        assert not torch.equal(logits_of(model, ids), logits)
    assert state(model) == before
    assert dict(runs) == known
    assert torch.equal(logits_of(model, ids), logits)


@pytest.mark.parametrize("where", ["block", "layer", "callback"])
def test_model_is_as_before_after_an_exception(where: str):
    model, ids = tiny_model("llama-3"), prompt(N)
    logits, before, known = logits_of(model, ids), state(model), dict(runs)

    def fail(call: LayerCall) -> None:
        if where == "callback":
            raise KeyError("callback")

    def misuse() -> None:
        with sparse_prefill(model, NARROW, min_length=1, on_call=fail):
            logits_of(model, ids, **({"s_aux": torch.ones(4)} if where == "layer" else {}))
            raise KeyError("block")

    with pytest.raises(UnsupportedError if where == "layer" else KeyError):
        misuse()
    assert state(model) == before
    assert dict(runs) == known
    assert torch.equal(logits_of(model, ids), logits)


def test_inner_block_hands_back_to_the_outer_one():
    model, ids = tiny_model("llama-3"), prompt(N)
    stock = logits_of(model, ids)
    with sparse_prefill(model, NARROW, min_length=1) as outer:
        narrow = logits_of(model, ids)
        with sparse_prefill(model, Dense(), min_length=1, backend="torch") as inner:
            assert torch.equal(logits_of(model, ids), stock)
        assert torch.equal(logits_of(model, ids), narrow)
    assert [call.path for call in outer.calls] == ["sparse"] * 4
    assert [call.path for call in inner.calls] == ["stock"] * 2
    assert torch.equal(logits_of(model, ids), stock)


def test_other_models_are_left_alone():
    model, other, ids = tiny_model("llama-3"), tiny_model("llama-3"), prompt(N)
    stock = logits_of(other, ids)
    with sparse_prefill(model, NARROW, min_length=1) as run:
        assert torch.equal(logits_of(other, ids), stock)
    assert run.calls == []


@pytest.mark.parametrize("attention", ["sdpa", "sparsefill"])
def test_no_model_is_kept_alive(attention: str):
    register()
    gc.collect()
    before = len(runs)
    model = tiny_model("llama-3", attention)
    logits_of(model, prompt(N))
    with sparse_prefill(model, NARROW, min_length=1) as run:
        logits_of(model, prompt(N))
    del model
    gc.collect()
    assert len(runs) == before
    assert len(run.calls) == 2


@pytest.mark.parametrize("name", ["layers", "heads", "kv_heads", "head_dim"])
def test_profile_of_another_model_is_refused(name: str):
    model = tiny_model("llama-3")
    shape = vars(architecture_of(model.config))
    other = Architecture(**{**shape, name: 2 * shape[name]})
    with (
        pytest.raises(ProfileError, match=f"{name}={2 * shape[name]}, got {name}={shape[name]}"),
        sparse_prefill(model, Profile.uniform(Dense(), other)),
    ):
        pass
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "model",
    [nn.Linear(2, 2), BertModel(BertConfig(intermediate_size=96, **TINY))],
    ids=["linear", "encoder"],
)
def test_model_without_decoder_attention_is_refused(model: nn.Module):
    with (
        pytest.raises(InputError, match="has no causal attention layers"),
        sparse_prefill(model, Dense()),
    ):
        pass


@pytest.mark.parametrize(
    "config",
    [FalconConfig(**TINY), GPTJConfig(n_embd=64, n_layer=2, n_head=4, rotary_dim=8)],
    ids=["falcon", "gpt-j"],
)
def test_model_that_transformers_cannot_redirect_is_refused(config: Any):
    """Their layers never look an attention function up, so the hook would not be called."""
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="attention"), sparse_prefill(model, Dense()):
        pass
