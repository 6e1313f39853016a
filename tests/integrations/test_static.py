"""Frozen indices: the cells of one prompt serve others."""

from __future__ import annotations

import pytest
import torch

from sparsefill import AShape, BlockTopK, InputError, TriShape, UnsupportedError, VerticalSlash
from sparsefill.integrations.transformers import freeze, sparse_prefill
from tests.support.models import logits_of, pad, prompt, tiny_model

N = 300
LINES = VerticalSlash(verticals=20, slashes=10, probe=20, sink=2, window=4)
BLOCKS = BlockTopK(blocks=3)


@pytest.mark.parametrize("pattern", [LINES, BLOCKS, AShape(sink=3, window=70)], ids=str)
def test_the_first_layer_attends_alike_on_the_prompt_it_was_frozen_on(pattern):
    model, ids = tiny_model("llama-3", num_hidden_layers=1), prompt(N)
    static = freeze(model, pattern, ids)
    with sparse_prefill(model, pattern, min_length=1, measure_recall=True) as dynamic:
        expected = logits_of(model, ids)
    with sparse_prefill(model, pattern, static=static, measure_recall=True) as run:
        got = logits_of(model, ids)
    assert [call.path for call in run.calls] == ["sparse"]
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(run.recall(), dynamic.recall())


@pytest.mark.parametrize("pattern", [LINES, BLOCKS], ids=str)
def test_another_prompt_gets_cells_that_are_not_its_own(pattern):
    model = tiny_model("mistral-window", sliding_window=None)
    static = freeze(model, pattern, prompt(N))
    ids, mask = pad([prompt(N, seed=1), prompt(130, seed=2)], "left")
    logits = []
    for frozen in (static, None):
        with sparse_prefill(model, pattern, static=frozen, min_length=1) as run:
            logits.append(logits_of(model, ids, attention_mask=mask))
        assert [call.path for call in run.calls] == ["sparse", "sparse"]
    assert bool(torch.isfinite(logits[0][mask.bool()]).all())
    assert not torch.allclose(logits[0][mask.bool()], logits[1][mask.bool()], atol=1e-3)


def test_bad_prompts_and_patterns_are_refused():
    model = tiny_model("llama-3")
    with pytest.raises(InputError, match=r"at least 64 tokens.*got \(2, 100\)"):
        freeze(model, LINES, prompt(100, rows=2))
    with pytest.raises(InputError, match=r"at least 64 tokens.*got \(1, 63\)"):
        freeze(model, LINES, prompt(63))
    with pytest.raises(UnsupportedError, match="layer 0 has a tri-shape"):
        freeze(model, TriShape(), prompt(100))
    static = freeze(model, LINES, prompt(100))
    with (
        sparse_prefill(model, LINES, static=static),
        pytest.raises(InputError, match="kept from 100 tokens, got 200"),
    ):
        logits_of(model, prompt(200))
