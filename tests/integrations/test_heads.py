"""What heads lose to dense attention is what float64 says of the same queries, keys and values."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from sparsefill.estimate import estimate
from sparsefill.integrations.transformers import architecture_of, sparse_prefill
from sparsefill.integrations.transformers.answering import TransformersReader
from sparsefill.integrations.transformers.heads import SAMPLES
from sparsefill.integrations.transformers.layers import softcap_of
from sparsefill.patterns import AShape, BlockTopK, Dense, Pattern, VerticalSlash
from sparsefill.profile import Profile
from sparsefill.reader import Method
from sparsefill.tile import TILE, sample_row_blocks
from tests.support.models import prompt, tiny_model

N = 64 * 17 + 9  # more row blocks than are measured, the last one cut
LINES = VerticalSlash(verticals=20, slashes=90)
HEADS = (LINES, AShape(sink=4, window=64), Dense(), BlockTopK(blocks=3))


def profile_of(model) -> Profile:
    """Let the first layer be sparse in three of its four heads, the second one dense."""
    return Profile(layers=(HEADS, (Dense(),) * 4), architecture=architecture_of(model.config))


def exactly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None):
    """Attend in float64 where a mask says so; return outputs and log-sum-exps."""
    r = q.shape[1] // k.shape[1]
    k, v = (part.double().repeat_interleave(r, dim=1) for part in (k, v))
    scores = q.double() @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def by_hand(model, cells: Profile | Pattern) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Return recall, output error and density of the heads of each layer that is not windowed."""
    found = {}
    rows = torch.cat([torch.arange(TILE * i, min(TILE * i + TILE, N)) for i in blocks()])

    def look(module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        layer, softcap = module.layer_idx, softcap_of(module)
        patterns = cells[layer] if isinstance(cells, Profile) else cells
        index = estimate(patterns, q, k, scale=scale, softcap=softcap, backend="torch")
        causal = torch.ones(N, N).tril() > 0
        kept = (index.to_mask() & causal).expand(1, q.shape[1], N, N)
        out, lse = exactly(q, k, v, kept, scale, softcap)
        dense_out, dense_lse = exactly(q, k, v, causal, scale, softcap)
        lost = (out - dense_out)[:, :, rows].flatten(2).norm(dim=-1)
        found[layer] = (
            (lse - dense_lse)[:, :, rows].exp().mean(-1)[0],
            (lost / dense_out[:, :, rows].flatten(2).norm(dim=-1))[0],
            kept.sum((2, 3))[0] / causal.sum(),
        )

    with (
        torch.inference_mode(),
        sparse_prefill(model, cells, backend="torch", min_length=1, on_qkv=look),
    ):
        model(prompt(N))
    return found


def blocks() -> list[int]:
    chosen = sample_row_blocks(N, SAMPLES)
    assert len(chosen) == SAMPLES < N // TILE
    return chosen


@pytest.mark.parametrize("case", ["lines", "a-shape", "profile", "soft-capped, one layer windowed"])
def test_heads_lose_what_float64_says(case: str):
    model = tiny_model("gemma2", "eager") if case.startswith("soft") else tiny_model("llama-3")
    cells = {"a-shape": HEADS[1], "profile": profile_of(model)}.get(case, LINES)
    reader = TransformersReader(model=model, backend="torch")
    ids = prompt(N)[0].tolist()
    told = reader.compare(Method(name="own", cells=cells), ids, positions=2, new_tokens=1)
    expected = by_hand(model, cells)
    layers = [1] if case.startswith("soft") else [0, 1]
    for layer in layers:
        for own, right in zip(told.heads, expected[layer], strict=True):
            torch.testing.assert_close(own[layer], right.double(), rtol=1e-4, atol=1e-5)
    assert float(told.heads.recall.min()) < 0.9
    assert float(told.heads.output_error.max()) > 0.1
    if case == "profile":
        assert torch.equal(told.heads.recall[1], torch.ones(4, dtype=torch.float64))
        assert float(told.heads.output_error[0, 2]) < 1e-5, "a dense head among sparse ones"
    if case.startswith("soft"):
        assert told.heads.recall[0].tolist() == [1] * 4
        assert told.heads.output_error[0].tolist() == [0] * 4


def test_what_is_measured_after_a_call_is_no_part_of_reading():
    model, seen = tiny_model("llama-3"), []

    def look(call, attended) -> None:
        seen.append((call.module.layer_idx, attended.out.shape, attended.lse.shape))
        time.sleep(0.1)

    watched = sparse_prefill(model, HEADS[1], backend="torch", min_length=1, on_attended=look)
    with torch.inference_mode(), watched as run:
        model(prompt(N))
    assert seen == [(layer, (1, 4, N, 16), (1, 4, N)) for layer in (0, 1)]
    assert run.recall_s >= 0.2
    assert all(call.recall is None for call in run.calls)


def test_full_attention_is_read_once(monkeypatch: pytest.MonkeyPatch):
    reader = TransformersReader(model=tiny_model("llama-3"), backend="torch")
    ids = prompt(300)[0].tolist()
    reads: list[int] = []
    forward = reader.model.forward

    def count(*args, **kwargs):
        reads.append(args[0].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(reader.model, "forward", count)
    first = reader.compare(Method(name="full", cells=Dense()), ids, positions=2, new_tokens=1)
    assert first.full is first.own
    again = reader.compare(
        Method(name="own", cells=LINES), ids, positions=2, new_tokens=1, full=first.full
    )
    assert again.full is first.full
    assert reads == [300, 300]
    reader.compare(Method(name="own", cells=LINES), ids, positions=2, new_tokens=1)
    assert reads == [300] * 4
