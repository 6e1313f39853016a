"""However a prefill ends, the model is as it was, and nothing is left running."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest
import torch
import transformers
from greenlet import greenlet
from torch import Tensor

import sparsefill
from sparsefill import AShape, Dense, InputError, ShapeError, UnsupportedError, prefill
from sparsefill.integrations.transformers.hook import runs
from tests.support.models import SIZES, logits_of, pad, prompt, tiny_model

N = 400
PATTERN = AShape(sink=3, window=70)


def state(model) -> Any:
    """Describe all that a prefill changes for its time."""
    return {
        "implementation": model.config._attn_implementation,
        "hooks": [
            len(m._forward_pre_hooks) + len(m._forward_hooks) + ("forward" in vars(m))
            for m in model.modules()
        ],
        "runs": len(runs),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def unfinished() -> int:
    """Count greenlets that wait for someone to go on."""
    gc.collect()
    return sum(bool(own) for own in gc.get_objects() if type(own) is greenlet) - 1


def read(model, **options):
    settings = {"min_length": 1, "chunk": 128, **options}
    return prefill(model, prompt(N), PATTERN, **settings)


@pytest.mark.parametrize("order", ["layers", "chunks"])
@pytest.mark.parametrize("family", ["llama-3", "longrope", "dynamic-ntk"])
def test_success_leaves_nothing(family: str, order: str):
    model = tiny_model(family)
    expected, before = logits_of(model, prompt(40)), state(model)
    read(model, order=order)
    assert state(model) == before
    assert unfinished() == 0
    assert torch.equal(logits_of(model, prompt(40)), expected)


@pytest.mark.parametrize("order", ["layers", "chunks"])
@pytest.mark.parametrize("layer", [0, 1])
def test_nan_leaves_nothing(layer: int, order: str):
    model = tiny_model("longrope")
    broken: Tensor = model.model.layers[layer].self_attn.qkv_proj.weight
    kept = broken.clone()
    with torch.no_grad():
        broken[0, 0] = torch.nan
    before = state(model)
    with pytest.raises(InputError, match="must be finite"):
        read(model, order=order)
    assert state(model) == before
    assert unfinished() == 0
    with torch.no_grad():
        broken.copy_(kept)
    assert read(model, order=order).logits.isfinite().all()


@pytest.mark.parametrize("order", ["layers", "chunks"])
@pytest.mark.parametrize("place", ["attention", "mlp", "progress"])
def test_interrupt_leaves_nothing(place: str, order: str):
    model, seen = tiny_model("longrope"), []
    before = state(model)

    def interrupt(*_: Any) -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    layer = model.model.layers[1]
    module = {"attention": layer.self_attn, "mlp": layer.mlp, "progress": None}[place]
    handle = None if module is None else module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(model, order=order, on_progress=interrupt if module is None else None)
    if handle is not None:
        handle.remove()
    assert len(seen) == 3
    assert state(model) == before
    assert unfinished() == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kv": "float4"}, "kv must be one of keep, int8, host, disk, drop, got 'float4'"),
        ({"kv": "disk"}, "pass save_kv"),
        ({"order": "heads"}, "order must be one of layers, chunks, got 'heads'"),
        (
            {"order": "chunks", "kv": "drop"},
            "needs the keys and values .* got kv='drop'; pass another kv, or order='layers'",
        ),
        ({"chunk": 63}, "at least 64 tokens, got 63; pass more, or leave it out"),
        ({"chunk": 0}, "at least 64 tokens, got 0"),
        ({"logits_to_keep": 0}, "logits_to_keep must be at least 1, got 0; pass 1 or more"),
        ({"min_length": 0}, "min_length must be at least 1, got 0"),
        ({"max_memory": 0}, "above 0, got 0"),
        ({"max_memory": 1 << 20}, "got max_memory=0.00 GiB"),
        ({"resume": True}, "pass save_kv"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options: dict[str, Any], why: str):
    model = tiny_model("llama-3")
    before = state(model)
    with pytest.raises(InputError, match=why):
        read(model, **options)
    assert state(model) == before


@pytest.mark.parametrize("shape", [(1, 0), (0, 5)])
def test_empty_prompts_are_refused(shape: tuple[int, int]):
    with pytest.raises(InputError, match="at least one token"):
        prefill(tiny_model("llama-3"), torch.ones(shape, dtype=torch.long), Dense())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_refused(side: str):
    model, (ids, mask) = tiny_model("llama-3"), pad([prompt(N), prompt(120)], side)
    before = state(model)
    why = r"without padding, got .* \[400, 120\] real tokens in rows of 400; .* one by one"
    with pytest.raises(UnsupportedError, match=why):
        prefill(model, ids, PATTERN, attention_mask=mask)
    assert state(model) == before


@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float])
def test_a_mask_of_ones_changes_nothing(kind: torch.dtype):
    model, ids = tiny_model("llama-3"), prompt(N, rows=2)
    expected = prefill(model, ids, PATTERN).logits
    read = prefill(model, ids, PATTERN, attention_mask=torch.ones(ids.shape, dtype=kind))
    assert torch.equal(read.logits, expected)


@pytest.mark.usefixtures("unchecked_types")
def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"of input_ids, \(1, 400\), got \(1, 399\); pass"):
        prefill(tiny_model("llama-3"), prompt(N), PATTERN, attention_mask=torch.ones(1, N - 1))


def test_other_layers_are_refused():
    """Falcon H1 and the like have layers that are no attention: here every second one."""
    config = transformers.Lfm2Config(
        **SIZES, layer_types=["conv", "full_attention"], conv_L_cache=3
    )
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    before = state(model)
    with pytest.raises(UnsupportedError, match="causal attention in every layer, got 1 of 2"):
        prefill(model, prompt(N), PATTERN)
    assert state(model) == before


def test_a_model_without_attention_is_refused():
    with pytest.raises(InputError, match="no causal attention layers"):
        prefill(torch.nn.Linear(3, 3), prompt(N), PATTERN)


def test_old_transformers_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Before about 4.56 caches were not made of layers."""
    monkeypatch.delattr(transformers.cache_utils, "DynamicLayer")
    for name in ("cache", "reading"):
        monkeypatch.delitem(sys.modules, f"sparsefill.engine.{name}", raising=False)
        monkeypatch.delattr(f"sparsefill.engine.{name}", raising=False)
    with pytest.raises(UnsupportedError, match=r"from release 4\.56 on, got"):
        sparsefill.prefill(tiny_model("llama-3"), prompt(N), PATTERN)


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        (prompt(N).float(), "int64 or int32, got torch.float32"),
        (prompt(N) + 1000, "must be from 0 to"),
        (-prompt(N), "must be from 0 to"),
    ],
    ids=["float", "large", "negative"],
)
@pytest.mark.usefixtures("unchecked_types")
def test_ids_that_are_not_the_models_are_refused(ids: torch.Tensor, why: str):
    with pytest.raises(InputError, match=why):
        prefill(tiny_model("llama-3"), ids, PATTERN)


@pytest.mark.parametrize("name", ["chunk", "max_memory", "recall_samples", "logits_to_keep"])
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_number_is_refused(name: str):
    options: dict[str, Any] = {name: "16GiB"}
    with pytest.raises(InputError, match=f"{name} must be a whole number, got '16GiB'"):
        prefill(tiny_model("llama-3"), prompt(N), PATTERN, **options)


def test_training_mode_is_refused():
    with pytest.raises(InputError, match=r"call model\.eval\(\)"):
        prefill(tiny_model("llama-3").train(), prompt(N), PATTERN)


@pytest.mark.parametrize("order", ["layers", "chunks"])
@pytest.mark.parametrize("pattern", [PATTERN, Dense()], ids=lambda own: own.name)
def test_autocast_mixes_dtypes(order: str, pattern: Any):
    model, ids = tiny_model("llama-3"), prompt(N)
    with torch.autocast("cpu", torch.bfloat16):
        read = prefill(model, ids, pattern, chunk=128, order=order, min_length=1)
    plain = prefill(model, ids, pattern, chunk=128, order=order, min_length=1)
    assert read.logits.isfinite().all()
    assert float((read.logits.float() - plain.logits).abs().mean()) < 0.05  # bfloat16's rounding
