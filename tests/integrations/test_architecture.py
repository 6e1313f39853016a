"""What is read from a model's config to tell whether a profile fits it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from sparsefill import Dense, ProfileError
from sparsefill.integrations.transformers import architecture_of, sparse_prefill
from sparsefill.profile import Profile, default_profile, shipped_profiles
from tests.support.models import tiny_model

ROPE: dict[str, tuple[dict[str, Any], float | None]] = {
    "before-5": ({"rope_theta": 500_000}, 500_000.0),
    "since-5": ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
    "by-kind-of-layer": (
        {
            "rope_parameters": {
                "sliding_attention": {"rope_theta": 1e4},
                "full_attention": {"rope_theta": 1e6},
            }
        },
        1e6,
    ),
    "none": ({}, None),
    "null": ({"rope_parameters": None, "rope_theta": None}, None),
}


@pytest.mark.parametrize(("written", "expected"), ROPE.values(), ids=ROPE)
def test_rope_base(written: dict[str, Any], expected: float | None):
    config = SimpleNamespace(
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        hidden_size=128,
        **written,
    )
    found = architecture_of(config)
    assert found.rope_base == expected
    assert found.shape == {"layers": 2, "heads": 8, "kv_heads": 2, "head_dim": 16}


@pytest.mark.parametrize(("family", "base"), [("llama-3", 5e5), ("phi3", 1e4), ("gemma3", 1e6)])
def test_rope_base_of_a_model(family: str, base: float):
    assert architecture_of(tiny_model(family).config).rope_base == base


def test_a_model_of_another_rope_base_is_refused():
    model = tiny_model("llama-3")
    own = architecture_of(model.config)
    profile = Profile.uniform(Dense(), replace(own, rope_base=1e4))
    why = "rope_base=10000, got rope_base=500000"
    with pytest.raises(ProfileError, match=why), sparse_prefill(model, profile):
        pass
    with sparse_prefill(model, Profile.uniform(Dense(), replace(own, rope_base=None))):
        pass


KINDS = {
    "llama-3-8b-262k": "LlamaConfig",
    "llama-3-8b-1048k": "LlamaConfig",
    "yi-9b-200k": "LlamaConfig",
    "glm-4-9b-1m": "GlmConfig",
    "phi-3-mini-128k": "Phi3Config",
    "qwen2-7b-128k": "Qwen2Config",
    "smollm2-135m-instruct": "LlamaConfig",
}


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_config_of_the_model_finds_its_shipped_profile(name: str):
    profile = Profile.load(name)
    shape = profile.architecture
    config = getattr(transformers, KINDS[name])(
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        hidden_size=shape.heads * shape.head_dim,
        rope_theta=shape.rope_base,
    )
    assert default_profile(architecture_of(config)) == profile
