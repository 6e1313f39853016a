"""The recall that the engine measures on some row blocks is that of the plain hook there."""

from __future__ import annotations

import pytest
import torch

from sparsefill import AShape, Dense, InputError, Pattern, VerticalSlash, prefill
from sparsefill.integrations.transformers import sparse_prefill
from sparsefill.tile import TILE, sample_row_blocks
from tests.support.models import FAMILIES, prompt, tiny_model

N = 10 * TILE - 20
VERTICAL = VerticalSlash(verticals=20, slashes=10, probe=20, sink=2, window=4)


@pytest.mark.parametrize("samples", [1, 3, 10, 50])
@pytest.mark.parametrize("pattern", [VERTICAL, AShape(sink=3, window=70)], ids=lambda p: p.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_recall_of_some_row_blocks(family: str, pattern: Pattern, samples: int):
    stock = "eager" if family == "gemma2" else "sdpa"  # soft caps have no other
    model, ids = tiny_model(family, stock), prompt(N)
    whole = sparse_prefill(model, pattern, min_length=1, measure_recall=True)
    with torch.inference_mode(), whole as run:
        model(ids)
    read = prefill(model, ids, pattern, chunk=3 * TILE, min_length=1, recall_samples=samples)
    rows = torch.cat([torch.arange(i * TILE, (i + 1) * TILE) for i in _row_blocks(samples)])
    rows = rows[rows < N]
    assert len(read.run.calls) == len(run.calls) > 0
    for ours, theirs in zip(read.run.calls, run.calls, strict=True):
        if theirs.recall is None:
            assert ours.recall is None
            continue
        assert ours.recall is not None
        assert torch.allclose(ours.recall, theirs.recall[:, :, rows], atol=1e-5)
        assert ours.recall_s > 0
    assert (read.run.recall_s > 0) == (len(read.run.recall()) > 0)


def _row_blocks(samples: int) -> list[int]:
    return sorted({int((sample + 0.5) * 10 / samples) for sample in range(samples)})


def test_measuring_changes_no_logit():
    model, ids = tiny_model("llama-3"), prompt(N)
    plain = prefill(model, ids, VERTICAL, chunk=3 * TILE, min_length=1)
    measured = prefill(model, ids, VERTICAL, chunk=3 * TILE, min_length=1, recall_samples=4)
    assert torch.equal(plain.logits, measured.logits)
    assert len(plain.run.recall()) == plain.run.recall_s == 0


def test_a_dense_profile_has_no_recall():
    read = prefill(tiny_model("llama-3"), prompt(N), Dense(), chunk=3 * TILE, recall_samples=4)
    assert len(read.run.recall()) == 0


@pytest.mark.parametrize(("samples", "order"), [(-1, "layers"), (2, "chunks")])
def test_refusals(samples: int, order: str):
    with pytest.raises(InputError, match="recall_samples must be"):
        prefill(tiny_model("llama-3"), prompt(N), order=order, recall_samples=samples)


def test_samples_are_spread_evenly():
    assert sample_row_blocks(N, 10) == list(range(10))
    assert sample_row_blocks(N, 1) == [5]
    assert sample_row_blocks(N, 0) == []
