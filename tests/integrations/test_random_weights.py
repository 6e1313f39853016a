"""Models of random weights: the shapes of the paper's models, and errors that say what to pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsefill import InputError
from sparsefill.integrations.transformers import architecture_of, random_weights
from sparsefill.integrations.transformers.loading import load_config, load_model
from sparsefill.integrations.transformers.random_weights import (
    ARCHITECTURES,
    byte_tokenizer,
    random_config,
)
from sparsefill.profile import NOT_SEARCHED, Profile, default_profile
from tests.support.models import logits_of

PARAMETERS = {  # as the models' pages have them
    "llama-3-8b-262k": 8_030_261_248,
    "llama-3-8b-1048k": 8_030_261_248,
    "yi-9b-200k": 8_829_407_232,
    "phi-3-mini-128k": 3_821_079_552,
    "qwen2-7b-128k": 7_615_616_512,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_has_its_published_profile(name: str):
    profile = default_profile(architecture_of(load_config(f"random:{name}")))
    assert profile == Profile.load(name)
    assert profile.provenance["origin"] == NOT_SEARCHED


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_sizes_are_those_of_the_model(name: str):
    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(random_config(f"random:{name}"))
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every architecture small enough to draw its weights."""
    few = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 300, "num_hidden_layers": 3}
    few |= {"num_attention_heads": 4, "head_dim": 16}
    for name, (factory, sizes, base) in ARCHITECTURES.items():
        own = {**sizes, **few, "num_key_value_heads": min(4, sizes["num_key_value_heads"])}
        monkeypatch.setitem(ARCHITECTURES, name, (factory, own, base))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_is_drawn(name: str):
    spec = f"random:{name}/2"
    loaded = load_model(spec, dtype=torch.bfloat16)
    assert loaded.name == spec
    ids = loaded.tokenizer("Zwölf Boxkämpfer", return_tensors="pt").input_ids
    assert loaded.tokenizer.decode(ids[0]) == "Zwölf Boxkämpfer"
    logits = logits_of(loaded.model, ids)
    assert logits.isfinite().all()
    assert float(logits.std()) > 0
    config: Any = loaded.model.config
    assert config.num_hidden_layers == 2
    for weight in loaded.model.parameters():
        assert weight.device.type == "cpu"
        assert weight.dtype == torch.bfloat16
        wanted = random_weights.STD if weight.ndim > 1 else 0.0
        assert float(weight.detach().float().std()) == pytest.approx(wanted, rel=0.1)
    again = load_model(spec, dtype=torch.bfloat16)
    assert torch.equal(logits, logits_of(again.model, ids))


@pytest.mark.usefixtures("small")
def test_rotary_tables_are_those_of_the_config():
    model = load_model("random:yi-9b-200k", dtype=torch.float32).model
    factory: Any = AutoModelForCausalLM
    plain = factory.from_config(random_config("random:yi-9b-200k"))
    plain.load_state_dict(model.state_dict())
    ids = torch.arange(200)[None]
    assert torch.equal(logits_of(model, ids), logits_of(plain.eval(), ids))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("random:", "must be one of llama-3-8b-262k"),
        ("random:gpt-5", "must be one of llama-3-8b-262k"),
        ("random:yi-9b-200k/0", "1 to 48 layers"),
        ("random:yi-9b-200k/49", "1 to 48 layers"),
        ("random:yi-9b-200k/", "1 to 48 layers"),
        ("random:yi-9b-200k/two", "1 to 48 layers"),
    ],
)
def test_what_cannot_be_built(spec: str, said: str):
    with pytest.raises(InputError, match=said):
        load_model(spec)
    with pytest.raises(InputError, match=said):
        load_config(spec)


def test_bytes_come_back():
    tokenizer = byte_tokenizer()
    text = "".join(map(chr, range(32, 1000)))
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode())
    assert max(ids) < 256
    assert tokenizer.decode(ids) == text
