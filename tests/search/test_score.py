"""Scores say what was lost; each family wins the head that was made for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sparsefill import AShape, BlockTopK, Dense, VerticalSlash, estimate
from sparsefill.kernels import attend
from sparsefill.metrics import dense_lse, density, output_error, recall
from sparsefill.search import Choice, Settings
from sparsefill.search.score import KINDS, score_layer
from tests.support.layers import planted_layer, random_layer

N = 640


def test_dense_loses_nothing_and_costs_all():
    scores = score_layer(random_layer(N), [(Dense(),) * 4])
    for kind in KINDS:
        expected = 1.0 if kind in ("cost", "density") else 0.0
        assert torch.allclose(getattr(scores, kind), torch.tensor(expected).double(), atol=1e-6)


def test_scores_are_those_of_the_metrics():
    layer = random_layer(N)
    pattern = AShape(sink=4, window=100)
    scores = score_layer(layer, [(pattern,) * 4])
    index = estimate(pattern, layer.q, layer.k)
    every = estimate(Dense(), layer.q, layer.k)
    out, lse = attend(layer.q, layer.k, layer.v, index)
    dense = attend(layer.q, layer.k, layer.v, every).out
    kept = recall(lse, dense_lse(layer.q, layer.k))[0].mean(-1)
    assert torch.allclose(scores.density[0].float(), density(index)[0].float())
    assert torch.allclose(scores.error[0].float(), output_error(out, dense)[0])
    assert torch.allclose(scores.lost[0].float(), 1 - kept, atol=1e-5)
    whole = every.keys_read().sum()
    assert torch.allclose(scores.cost[0], 4 * index.keys_read()[0].double() / whole)


def test_what_heads_add_is_what_reaches_the_next_layer():
    layer = random_layer(N)
    patterns = (Dense(), Dense(), BlockTopK(blocks=3), Dense())
    scores = score_layer(layer, [patterns])
    outs = [
        attend(layer.q, layer.k, layer.v, estimate(own, layer.q, layer.k)).out[0]
        for own in (patterns, Dense())
    ]
    sparse, dense = (torch.einsum("hnd,ohd->no", out, layer.projection) for out in outs)
    expected = (sparse - dense).square().sum() / dense.square().sum()
    assert float(scores.added.sum()) == pytest.approx(float(expected), rel=1e-4)
    assert float(scores.added[0, 2]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("objective", ["output", "recall"])
@pytest.mark.parametrize(
    ("kind", "family"),
    [("a-shape", AShape), ("vertical-slash", VerticalSlash), ("block-topk", BlockTopK)],
)
def test_each_family_wins_what_was_made_for_it(kind: str, family: type, objective):
    layer = planted_layer(kind)
    settings = Settings(budget=0.4, choice=Choice(objective=objective, budgets="head"))
    candidates = settings.candidates(layer, "auto")
    scores = score_layer(layer, candidates)
    assert float(scores.cost.max() / scores.cost.min()) < 1.02
    best = int(settings.choice.choose([scores], settings.budget)[0, 0])
    assert isinstance(candidates[best][0], family)


def test_a_candidate_that_stands_twice_is_scored_once(monkeypatch: pytest.MonkeyPatch):
    from sparsefill.search import score

    calls, real = [], score.attend_in_stages
    monkeypatch.setattr(
        score, "attend_in_stages", lambda *a, **o: (calls.append(None), real(*a, **o))[1]
    )
    twice = [(AShape(sink=4, window=65),) * 4] * 2
    scores = score_layer(random_layer(N), twice)
    assert len(calls) == 2  # dense, and the candidate
    assert torch.equal(scores.error[0], scores.error[1])


def test_long_prompts_are_scored_by_spans_of_their_queries(monkeypatch: pytest.MonkeyPatch):
    from sparsefill.search import score

    layer = random_layer(N)
    patterns = (AShape(sink=4, window=100), VerticalSlash(verticals=30, slashes=70))
    candidates = [(p,) * 4 for p in (*patterns, BlockTopK(blocks=3))]
    whole = score_layer(layer, candidates)
    monkeypatch.setattr(score, "SPANS", 2)
    monkeypatch.setattr(score, "SPAN_BLOCKS", 2)
    rows = torch.arange(N)
    rows = rows[((rows >= 192) & (rows < 320)) | (rows >= 512)]
    scores = score_layer(layer, candidates)
    for kind in ("cost", "density"):
        assert torch.equal(getattr(scores, kind), getattr(whole, kind))
    for number, pattern in enumerate((*patterns, BlockTopK(blocks=3))):
        index = estimate(pattern, layer.q, layer.k)
        out, lse = attend(layer.q, layer.k, layer.v, index)
        dense = attend(layer.q, layer.k, layer.v, estimate(Dense(), layer.q, layer.k))
        kept = recall(lse[:, :, rows], dense.lse[:, :, rows])[0].mean(-1)
        error = output_error(out[:, :, rows], dense.out[:, :, rows])[0]
        assert torch.allclose(scores.lost[number].float(), 1 - kept, atol=1e-5)
        assert torch.allclose(scores.error[number].float(), error)
        assert not torch.allclose(scores.error[number], whole.error[number])


def test_prompts_to_8192_tokens_are_scored_whole():
    from sparsefill.search.score import scored_rows

    assert scored_rows(8192) is None
    for tokens in (8193, 9000, 16384, 32768, 100_001):
        rows = scored_rows(tokens)
        assert rows is not None
        seen = [row for own in rows for row in range(own.start, own.stop)]
        assert len(seen) == len(set(seen)) == 8192 - -tokens % 64
        assert seen[-1] == tokens - 1
        assert max(b.start - a.stop for a, b in pairwise(rows)) <= tokens / 16
