"""Steps are set up for the layers that can be read, on the stage and the model that has some."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace as Some
from typing import Any

import pytest
import torch

from sparsefill.errors import UnsupportedError
from sparsefill.integrations.vllm import backend
from sparsefill.integrations.vllm.steps import Steps
from sparsefill.patterns import Dense
from tests.integrations.vllm.fakes import PAGE, rank_heads

HEADS = rank_heads(Dense())
FULL, WINDOW = -1, 1024


def layer(window: int = FULL) -> Any:
    impl = Some(
        is_plain=window == FULL,
        kv_cache_dtype="auto",
        num_heads=HEADS.count,
        head_size=HEADS.profile.architecture.head_dim,
    )
    return Some(impl=impl)


def steps_of(
    monkeypatch: pytest.MonkeyPatch, *windows: int, stages: int = 1, draft: bool = False
) -> Steps | None:
    """Set up as vLLM's builders do, for the layers of a rank."""
    layers = {f"model.layers.{i}.attn": layer(window) for i, window in enumerate(windows)}
    modules = {
        "vllm": Some(),
        "vllm.config": Some(get_layers_from_vllm_config=lambda *_: layers),
        "vllm.distributed": Some(
            get_pp_group=lambda: Some(is_first_rank=True),
            get_tensor_model_parallel_rank=lambda: 0,
        ),
        "vllm.model_executor": Some(),
        "vllm.model_executor.layers": Some(),
        "vllm.model_executor.layers.attention": Some(Attention=None),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(backend, "heads_of", lambda *_: HEADS)
    model = Some(dtype=torch.bfloat16)
    config = Some(
        model_config=model,
        attention_config=Some(backend=Some(name="CUSTOM")),
        speculative_config=Some(draft_model_config=model) if draft else None,
        parallel_config=Some(pipeline_parallel_size=stages),
        additional_config={},
    )
    made = backend._steps_of(Some(block_size=PAGE), list(layers), config, "cpu")
    numbers = [getattr(own.impl, "number", None) for own in layers.values()]
    expected = [i if made and i in made.layers else None for i in range(len(windows))]
    assert numbers == expected
    return made


def test_layers_with_windows_stay_vllms_beside_others(monkeypatch):
    made = steps_of(monkeypatch, WINDOW, FULL)
    assert made is not None
    assert list(made.layers) == [1]
    assert made.requests is not None


def test_a_group_without_layers_is_vllms(monkeypatch):
    assert steps_of(monkeypatch) is None


def test_a_model_without_a_layer_that_can_be_read_does_not_start(monkeypatch, caplog):
    with caplog.at_level(logging.ERROR, "vllm"), pytest.raises(UnsupportedError):
        steps_of(monkeypatch, WINDOW, WINDOW)
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith("sparsefill cannot start: sparsefill can read none of the 2 attention")


def test_a_stage_without_such_a_layer_is_vllms_and_says_so(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "vllm"):
        assert steps_of(monkeypatch, WINDOW, WINDOW, stages=2) is None
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith("sparsefill: this stage of the pipeline is vLLM's own: ")


def test_a_draft_model_is_vllms(monkeypatch):
    assert steps_of(monkeypatch, FULL, FULL, draft=True) is None
    assert steps_of(monkeypatch, WINDOW, WINDOW, draft=True) is None
