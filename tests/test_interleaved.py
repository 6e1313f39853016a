"""Interleaved heads: exact in parity, every key once, whatever the lengths are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsefill import Attended, Interleaved, UnsupportedError, estimate, sparse_attention
from sparsefill.attention import attend_in_stages, merge_attended
from sparsefill.estimate import estimate_cells
from sparsefill.kernels import BACKENDS, BackendName
from sparsefill.metrics import dense_lse
from sparsefill.tile import TILE
from tests.support.closeness import assert_within_budget
from tests.support.inputs import PATTERNS, Qkv, causal_mask, offsets, random_qkv, with_garbage
from tests.support.parity import exact_mask, masked_attention, rounded_mask
from tests.support.strategies import Shape, interleaved, shapes
from tests.support.table import DTYPES

LENGTHS = [
    (300, 300),
    (301, 301),
    (1, 1),
    (2, 2),
    (65, 190),
    (64, 129),
    (130, 70),
    (1, 129),
    (3, 1),
]
DILATED, STRIDED = Interleaved(sink=9, even=150), Interleaved(sink=8, even=64, odd=191)
KINDS = {
    "dilated": DILATED,
    "strided": STRIDED,
    "odd-further": Interleaved(sink=0, even=1, odd=2),
    "no-odd-distance": Interleaved(sink=3, even=2, odd=1),
    "everything": Interleaved(sink=0, even=2**31 - 1, odd=2**31 - 1),
    "more-sinks-than-keys": Interleaved(sink=999, even=1),
}
each_kind = pytest.mark.parametrize("pattern", KINDS.values(), ids=KINDS)
each_length = pytest.mark.parametrize(("n", "m"), LENGTHS)


def mask_of(pattern: Interleaved, n: int, m: int) -> Tensor:
    q, k, _ = random_qkv(h=1, n=n, m=m)
    return estimate_cells(pattern, q, k).to_mask()[0, 0]


@each_kind
@each_length
def test_keeps_what_the_rule_says(pattern: Interleaved, n: int, m: int):
    assert torch.equal(mask_of(pattern, n, m), rounded_mask(pattern, n, m))


@each_kind
@each_length
def test_keeps_every_distance_asked_for_and_none_of_a_parity_that_is_not(
    pattern: Interleaved, n: int, m: int
):
    mask, exact, offset = mask_of(pattern, n, m), exact_mask(pattern, n, m), offsets(n, m)
    assert bool((mask | ~exact).all())
    beyond_sinks = mask & (torch.arange(m) >= pattern.sink)
    for parity, bound in enumerate((pattern.even, pattern.odd)):
        reach = bound + 2 * (2 * TILE - 2) if bound > parity else 0
        assert not beyond_sinks[(offset % 2 == parity) & (offset >= reach)].any()


def test_the_baselines_of_the_paper():
    offset, sink = offsets(9000, 9000)[-1], torch.arange(9000) < 1024
    dilated = exact_mask(Interleaved(), 9000, 9000)[-1]
    assert torch.equal(dilated, sink | ((offset < 8192) & (offset % 2 == 0)))
    assert bool(dilated[-1])  # itself
    strided = exact_mask(Interleaved(even=2048, odd=6144), 9000, 9000)[-1]
    dense, beyond = offset < 2048, (offset >= 2048) & (offset <= 6143) & (offset % 2 == 1)
    assert torch.equal(strided, sink | dense | beyond)


def test_rounding_is_small_beside_a_window_of_the_paper():
    n = 2**15
    query = torch.zeros(1, 1, n, 8)
    kept = float(estimate_cells(Interleaved(sink=0), query, query).density())
    exact = sum(min(p // 2 + 1, 4096) for p in range(n)) / (n * (n + 1) / 2)
    assert exact < kept < 1.02 * exact


def lengths_of(shape: Shape) -> dict[str, Any]:
    return {"query_lengths": shape.query_lengths, "key_lengths": shape.key_lengths}


def mask_of_batch(patterns: list[Interleaved], shape: Shape) -> Tensor:
    """Expand the rule for every sequence and head of a batch."""
    mask = torch.zeros(shape.b, len(patterns), shape.n, shape.m, dtype=torch.bool)
    lengths = zip(shape.query_lengths.tolist(), shape.key_lengths.tolist(), strict=True)
    for s, (n, m) in enumerate(lengths):
        for head, pattern in enumerate(patterns):
            mask[s, head, :n, :m] = rounded_mask(pattern, n, m)
    return mask


@given(shape=shapes(), data=st.data())
def test_any_batch_is_counted_and_expanded_exactly(shape: Shape, data: st.DataObject):
    patterns = [data.draw(interleaved()) for _ in range(shape.h)]
    q, k, _ = shape.qkv()
    cells = estimate_cells(patterns, q, k, **lengths_of(shape))
    mask = mask_of_batch(patterns, shape)
    assert torch.equal(cells.to_mask(), mask)
    lengths = zip(shape.query_lengths.tolist(), shape.key_lengths.tolist(), strict=True)
    causal = torch.tensor([[int(causal_mask(n, m).sum())] for n, m in lengths])
    assert torch.equal(cells.density(), mask.sum((-1, -2)) / causal.clamp(min=1))


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("torch", t) for t in DTYPES] + [("cpu", t) for t in DTYPES if t != "f64"],
)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_stays_within_the_error_budget(backend: BackendName, dtype: str, softcap: float | None):
    if (reason := BACKENDS[backend].refusal(torch.zeros(1, 1, 1, 64))) is not None:
        pytest.skip(f"{backend} {reason}")
    shape = Shape(
        b=7,
        h=4,
        g=2,
        n=301,
        m=333,
        d=32,
        query_lengths=torch.tensor([301, 300, 1, 2, 0, 64, 301]),
        key_lengths=torch.tensor([333, 301, 200, 2, 9, 1, 38]),
        seed=0,
    )
    patterns = [DILATED, STRIDED, KINDS["odd-further"], KINDS["everything"]]
    qkv, mask = shape.qkv(DTYPES[dtype]), mask_of_batch(patterns, shape)
    maths: dict[str, Any] = {"scale": 0.3, "softcap": softcap}
    stages = attend_in_stages(*qkv, patterns, backend=backend, **maths, **lengths_of(shape))

    def eager(inputs: Qkv) -> tuple[Tensor, Tensor]:
        return masked_attention(inputs, mask, **maths)

    assert stages.attended.out.dtype == qkv.q.dtype
    assert_within_budget(stages.attended, qkv, eager, names=Attended._fields)
    front = sparse_attention(*qkv, patterns, backend=backend, **maths, **lengths_of(shape))
    assert torch.equal(front, stages.attended.out)


def test_everything_is_dense_attention():
    qkv = random_qkv(h=4, g=2, n=129, m=200)
    stages = attend_in_stages(*qkv, KINDS["everything"])
    torch.testing.assert_close(stages.attended.lse, dense_lse(qkv.q, qkv.k))
    assert bool((stages.cells.density() == 1).all())


def test_heads_of_other_patterns_beside_them_get_what_they_get_alone():
    qkv = random_qkv(b=2, h=6, g=2, n=250, m=301, dtype=torch.float32)
    patterns = [DILATED, PATTERNS["dense"], PATTERNS["block-topk"], STRIDED, PATTERNS["a-shape"]]
    patterns.append(PATTERNS["vertical-slash"])
    together = attend_in_stages(*qkv, patterns)
    assert together.cells.keys_read().shape == (2, 6)
    for head, pattern in enumerate(patterns):
        own = Qkv(qkv.q[:, [head]], qkv.k[:, [head // 3]], qkv.v[:, [head // 3]])
        alone = attend_in_stages(*own, pattern)
        for name in Attended._fields:
            got = getattr(together.attended, name)[:, head]
            torch.testing.assert_close(got, getattr(alone.attended, name)[:, 0])
        assert torch.equal(together.cells.density()[:, head], alone.cells.density()[:, 0])
        assert torch.equal(together.cells.keys_read()[:, head], alone.cells.keys_read()[:, 0])
        assert torch.equal(together.cells.to_mask()[:, head], alone.cells.to_mask()[:, 0])


@pytest.mark.parametrize("name", list(PATTERNS))
def test_cells_of_other_patterns_are_their_index(name: str):
    q, k, _ = random_qkv(h=2)
    cells = estimate_cells(PATTERNS[name], q, k)
    assert cells.parts == ()
    assert torch.equal(cells.to_mask(), estimate(PATTERNS[name], q, k).to_mask())


def test_an_index_of_their_own_is_refused():
    q, k, _ = random_qkv(h=2)
    for patterns in (DILATED, [DILATED, PATTERNS["dense"]]):
        with pytest.raises(UnsupportedError, match="interleaved heads keep cells of single par"):
            estimate(patterns, q, k)


def test_garbage_in_padding_changes_nothing():
    clean = random_qkv(b=3, h=2, n=200, dtype=torch.float32)
    queries, keys = torch.tensor([[200, 70, 0], [200, 71, 9]])
    lengths: dict[str, Any] = {"query_lengths": queries, "key_lengths": keys}
    got = sparse_attention(*with_garbage(clean, queries, keys), STRIDED, **lengths)
    assert torch.equal(got, sparse_attention(*clean, STRIDED, **lengths))


def test_the_cells_of_a_long_prompt_take_little_memory():
    query = torch.zeros(1, 8, 2**20, 1)
    cells = estimate_cells([Interleaved(), Interleaved(even=2048, odd=6144)] * 4, query, query)
    assert sum(part.index.nbytes for part in cells.parts) < 2**20


def test_merging_weighs_by_mass():
    qkv = random_qkv(n=50, m=80)
    mask = torch.rand(1, 1, 50, 80) < 0.3
    mask[..., :7, :] = False  # queries without keys among these
    parts = [Attended(*masked_attention(qkv, own)) for own in (mask, ~mask)]
    whole = masked_attention(qkv, torch.ones_like(mask))
    torch.testing.assert_close(tuple(merge_attended(parts)), whole)
    nothing = merge_attended([Attended(*masked_attention(qkv, mask & False))] * 2)
    assert not nothing.out.any()
    assert bool((nothing.lse == -torch.inf).all())


def test_some_rows_find_what_they_find_among_all():
    qkv = random_qkv(h=4, g=2, n=250, m=301, dtype=torch.float32)
    patterns = [DILATED, PATTERNS["dense"], PATTERNS["block-topk"], STRIDED]
    rows = [slice(64, 128), slice(192, 250)]
    whole = attend_in_stages(*qkv, patterns)
    some = attend_in_stages(*qkv, patterns, rows=rows)
    for every, got in zip(whole.attended, some.attended, strict=True):
        torch.testing.assert_close(got, torch.cat([every[:, :, span] for span in rows], dim=2))
    assert torch.equal(some.cells.density(), whole.cells.density())
