"""Interleaved heads inside a model: the logits of the explicit mask, chunk by chunk too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefill import Interleaved, UnsupportedError
from sparsefill.integrations.transformers import freeze, sparse_prefill
from tests.support.inputs import causal_mask
from tests.support.models import (
    assert_logits_close,
    exact_model,
    logits_in_chunks,
    logits_of,
    prompt,
    tiny_model,
)
from tests.support.parity import rounded_mask

KINDS = {
    "dilated": Interleaved(sink=5, even=100),
    "strided": Interleaved(sink=4, even=33, odd=140),
}


def masked_logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Read a prompt with the stock model and a mask of its own."""
    dtype = model.dtype
    hidden = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return logits_of(model, ids, attention_mask=hidden[None, None])


@pytest.mark.parametrize("sizes", [[], [130], [131], [64, 151]], ids=str)
@pytest.mark.parametrize("n", [300, 301])
@pytest.mark.parametrize("pattern", KINDS.values(), ids=KINDS)
def test_logits_are_those_of_the_mask(pattern: Interleaved, n: int, sizes: list[int]):
    model, ids = tiny_model("llama-3", "eager"), prompt(n)
    ends = [*torch.tensor(sizes, dtype=torch.long).cumsum(0).tolist(), n]
    mask = torch.zeros(n, n, dtype=torch.bool)
    kept = 0
    for first, end in zip([0, *ends], ends, strict=False):
        own = rounded_mask(pattern, end - first, end)
        mask[first:end, :end] = own
        kept += int(own.sum())
    stock = masked_logits(model, ids, mask)
    exact = masked_logits(exact_model("llama-3"), ids, mask)
    with sparse_prefill(model, pattern, min_length=1, measure_recall=True) as run:
        assert_logits_close(logits_in_chunks(model, ids, sizes), stock, exact)
    assert {call.path for call in run.calls} == {"sparse"}
    assert run.density == pytest.approx(kept / int(causal_mask(n, n).sum()))
    assert run.recall().shape == (2 * 4 * n,)
    assert 0 < float(run.recall().min()) < 0.95
    assert float(run.recall().max()) == pytest.approx(1)


def test_heads_for_which_it_would_not_pay_stay_dense():
    model, ids = tiny_model("llama-3"), prompt(300)
    with sparse_prefill(model, Interleaved()) as run:
        logits_of(model, ids)
    assert {call.path for call in run.calls} <= {"dense", "stock"}
    assert run.density == 1


def test_they_cannot_be_frozen():
    with pytest.raises(UnsupportedError, match="interleaved heads keep cells of single parities"):
        freeze(tiny_model("llama-3"), Interleaved(), prompt(100))
