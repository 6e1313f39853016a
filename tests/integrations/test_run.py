"""What a run records of its layers: paths, densities, recall, times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsefill import AShape, Dense, native
from sparsefill.integrations.transformers import LayerCall, sparse_prefill
from sparsefill.integrations.transformers.hook import COMPILED_FROM
from tests.support.models import logits_of, pad, prompt, tiny_model

N = 200
NARROW = AShape(sink=1, window=1)
DENSE = "stock" if native.library() is None else "dense"  # of a prompt that is not very short


def test_calls_tell_what_each_layer_did():
    model, (ids, mask) = tiny_model("gemma3"), pad([prompt(N), prompt(120)], "right")
    seen: list[LayerCall] = []
    with sparse_prefill(model, NARROW, min_length=1, on_call=seen.append) as run:
        logits_of(model, ids, attention_mask=mask)
    assert run.calls == seen
    assert [(c.layer, c.path, c.n, c.m) for c in seen] == [(0, "dense", N, N), (1, "sparse", N, N)]
    assert seen[0].density is None
    assert seen[1].density is not None
    assert seen[1].density.shape == (2, 4)
    assert bool(((seen[1].density > 0) & (seen[1].density < 1)).all())
    assert run.density == pytest.approx((1 + float(seen[1].density.mean())) / 2)
    assert run.attention_s == seen[0].attention_s + seen[1].attention_s > 0
    assert run.estimate_s == seen[1].estimate_s > 0


def test_queries_and_keys_can_be_watched():
    model, seen = tiny_model("gemma3"), []

    def watch(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        seen.append((module.layer_idx, q.shape, k.shape, v.shape, scale))

    ids, mask = pad([prompt(N), prompt(120)], "left")
    with sparse_prefill(model, NARROW, min_length=1, on_qkv=watch):
        logits_of(model, prompt(N))
        logits_of(model, prompt(2))  # no prefill
        logits_of(model, ids, attention_mask=mask)  # padded
    q, kv = (1, 4, N, 16), (1, 2, N, 16)
    scale = model.config.query_pre_attn_scalar**-0.5
    assert seen == [(0, q, kv, kv, scale), (1, q, kv, kv, scale)]


def test_calls_need_not_be_kept():
    seen: list[LayerCall] = []
    with sparse_prefill(
        model := tiny_model("llama-3"), NARROW, min_length=1, record=False, on_call=seen.append
    ) as run:
        logits_of(model, prompt(N))
    assert run.calls == []
    assert [(call.path, call.density) for call in seen] == [("sparse", None)] * 2


@pytest.mark.parametrize(
    ("pattern", "complete"), [(AShape(window=N), True), (NARROW, False)], ids=["all", "narrow"]
)
def test_recall(pattern: AShape, complete: bool):
    model, (ids, mask) = tiny_model("llama-3"), pad([prompt(N), prompt(120)], "left")
    with sparse_prefill(model, pattern, min_length=1, measure_recall=True) as run:
        logits_of(model, ids, attention_mask=mask)
    recall = run.recall()
    assert recall.shape == (2 * 2 * 4 * N,)  # layers, sequences, heads, queries
    assert bool((recall > 0).all())
    if complete:
        torch.testing.assert_close(recall, torch.ones_like(recall))
    else:
        assert float(recall.min()) < 0.9


def test_dense_run_keeps_everything():
    with sparse_prefill(model := tiny_model("llama-3"), Dense(), measure_recall=True) as run:
        logits_of(model, prompt(N))
    assert run.density == 1
    assert run.recall().numel() == 0  # nothing was left out, so nothing was measured


@pytest.mark.parametrize(
    ("n", "min_length", "paths"),
    [
        (N, N, ["sparse"] * 2),
        (N, N + 1, [DENSE] * 2),
        (64, 1, ["sparse"] * 2),
        (63, 1, []),  # less than a row block: not counted as a prefill
        (COMPILED_FROM - 1, None, ["stock"] * 2),
        (COMPILED_FROM, None, [DENSE] * 2),  # too short to pay
        (2048, None, ["sparse"] * 2),
    ],
)
def test_short_prompts_stay_dense(n: int, min_length: int | None, paths: list[str]):
    options: dict[str, Any] = {} if min_length is None else {"min_length": min_length}
    with sparse_prefill(model := tiny_model("llama-3"), NARROW, **options) as run:
        logits_of(model, prompt(n))
    assert [call.path for call in run.calls] == paths
