"""The Triton backend in Triton's interpreter, against the oracle: `make test-triton`.

The interpreter runs kernels on the CPU, program after program. It shows values, masks and
memory accesses; it knows nothing of speed, registers or races.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefill import Attended, BlockTopK, Dense, SparseIndex, VerticalSlash, estimate
from sparsefill.gpu import Loads
from sparsefill.gpu.scores import INTERPRETED
from sparsefill.kernels import triton as backend
from tests.kernels.test_backends import measurable
from tests.support.closeness import assert_attended
from tests.support.inputs import Qkv, far_apart, patterns_of, random_qkv
from tests.support.strategies import Shape, random_index, shapes
from tests.support.table import CASES, Case, case_inputs
from tests.triton import guard

LOADS: tuple[Loads, ...] = ("pointers", "descriptors")
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def served() -> list[Case]:
    """Take the table's cases that fit: of 32-bit ones every second in the other type."""
    small = [case for case in CASES if case.n <= 200 and (case.m or 0) <= 200]
    own = [case for case in small if case.dtype in DTYPES]
    wide = [case for case in small if case.dtype == "f32"]
    other = [case._replace(dtype=list(DTYPES)[i % 2]) for i, case in enumerate(wide)]
    return sorted({*own, *other}, key=str)


def attend(qkv: Qkv, index: SparseIndex, loads: Loads = "pointers", **maths: Any) -> Attended:
    """Attend, checking that everything is stored exactly once."""
    options = {"scale": qkv.q.shape[-1] ** -0.5, "softcap": None} | maths
    with guard.written_once():
        return Attended(*backend.attend(*qkv, index, loads=loads, **options))


def judge(qkv: Qkv, index: SparseIndex, loads: Loads = "pointers", **maths: Any) -> None:
    assert_attended(attend(qkv, index, loads, **maths), qkv, index, **maths)


def test_runs_in_the_interpreter():
    assert INTERPRETED


@pytest.mark.parametrize(("loads", "case"), [*zip(itertools.cycle(LOADS), served())], ids=str)
def test_stays_within_the_error_budget(loads: Loads, case: Case):
    qkv, index = case_inputs(case)
    judge(qkv, index, softcap=case.softcap, loads=loads)


@settings(max_examples=40)
@given(
    shape=shapes(longest=150).map(measurable),
    shared=st.booleans(),
    d=st.sampled_from([16, 40, 64]),
    dtype=st.sampled_from([*DTYPES]),
    loads=st.sampled_from(LOADS),
)
def test_any_index_stays_within_the_error_budget(
    shape: Shape, shared: bool, d: int, dtype: str, loads: Loads
):
    """Ragged batches full of NaN, chunks, and tiles that stand anywhere beside columns."""
    qkv = shape._replace(d=d).qkv(DTYPES[dtype])
    index = random_index(shape, x=shape.g if shared else shape.h)
    clean = qkv.map(torch.nan_to_num)
    assert_attended(attend(qkv, index, loads=loads), clean, index)


@settings(max_examples=60)
@given(shape=shapes(longest=400), crop=st.booleans())
def test_plans_count_what_is_in_reach(shape: Shape, crop: bool):
    index = random_index(shape, x=shape.h)
    if crop:  # lists that are full to the last place
        index = replace(
            index,
            slash_tiles=index.slash_tiles[..., : max(1, int(index.slash_counts.max()))],
            column_indices=index.column_indices[..., : max(1, int(index.column_counts.max()))],
        )
    plan = backend.make_plan(index.contiguous())
    for s in range(index.b):
        n, m = int(index.query_lengths[s]), int(index.key_lengths[s])
        for x in range(index.x):
            slashes = index.slash_tiles[s, x, : index.slash_counts[s, x]]
            columns = index.column_indices[s, x, : index.column_counts[s, x]]
            for i in range(index.row_blocks):
                if 64 * i >= n:
                    assert plan.rows[s, x, i, :2].tolist() == [0, 0]
                    continue
                end = 64 * (i + 1) + m - n
                reach = [int((slashes < end).sum()), int((columns < min(end, m)).sum())]
                assert plan.rows[s, x, i, :2].tolist() == reach
                if index.row_ptr is not None and index.tile_starts is not None:
                    first, last = index.row_ptr[s, x, i : i + 2].tolist()
                    whole = int((index.tile_starts[first:last] + 63 <= end - 64).sum())
                    assert int(plan.rows[s, x, i, 2]) == first + whole
            covered = torch.zeros(m + 64, dtype=torch.bool)
            for offset in slashes.tolist():
                covered[offset : offset + 64] = True
            words = plan.covered[s, x]
            bits = (words[:, None] >> torch.arange(32)) & 1
            known = min(len(covered), bits.numel())
            if words.numel() > 1:
                assert torch.equal(bits.flatten()[:known].bool(), covered[:known])


@pytest.mark.parametrize("scale", [-0.3, 0.0, 4.0])
def test_any_scale(scale: float):
    qkv = random_qkv(b=2, h=6, g=2, n=130, d=32, dtype=torch.bfloat16)
    judge(qkv, estimate(patterns_of("mixed", 6), qkv.q, qkv.k), scale=scale)


@pytest.mark.parametrize("loads", LOADS)
@pytest.mark.parametrize("name", ["heads-last", "with-gaps", "one-key-for-all"])
def test_reads_any_strides(name: str, loads: Loads):
    qkv = random_qkv(b=2, h=6, g=2, n=130, d=32, dtype=torch.float16)
    index = estimate(patterns_of("mixed", 6), qkv.q, qkv.k)
    if name == "one-key-for-all":
        qkv = qkv._replace(k=qkv.k[:, :, :1].expand_as(qkv.k), v=qkv.v[:, :1].expand_as(qkv.v))
    elif name == "heads-last":
        qkv = qkv.map(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2))
    else:
        wide = qkv.map(lambda t: torch.nn.functional.pad(t, (8, 8), value=torch.nan))
        qkv = wide.map(lambda t: t[..., 8:-8])
    judge(qkv, index, loads)


@pytest.mark.parametrize("loads", LOADS)
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sequence", "head", "row"])
def test_tensors_of_more_than_32_bits_are_reached(axis: int, loads: Loads):
    near = random_qkv(b=3, h=3, g=3, n=320, d=16, dtype=torch.float16)
    columns = VerticalSlash(verticals=300, slashes=1, sink=0, window=1)
    patterns = [columns, VerticalSlash(verticals=1, slashes=200), BlockTopK(blocks=5)]
    index = estimate(patterns, near.q, near.k)
    got = attend(near.map(lambda t: far_apart(t, axis)), index, loads)
    assert_attended(got, near, index)


def test_columns_inside_slash_tiles_count_once():
    qkv = random_qkv(b=2, h=4, g=2, n=200, d=32, dtype=torch.float16)
    pattern = VerticalSlash(verticals=120, slashes=3, probe=64, sink=4, window=3)
    judge(qkv, estimate(pattern, qkv.q, qkv.k))


def test_dense_is_dense_attention():
    qkv = random_qkv(h=4, g=2, n=130, d=64, dtype=torch.float16)
    got = attend(qkv, estimate(Dense(), qkv.q, qkv.k))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *qkv.map(lambda t: t.double()), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(got.out.double(), expected, atol=2e-3, rtol=0)


def test_lists_out_of_order_are_caught_by_the_guard():
    """What a broken index would make the kernel read shows as an error, not as numbers."""
    qkv = random_qkv(h=2, g=1, n=130, d=32, dtype=torch.float16)
    index = estimate(VerticalSlash(verticals=20, slashes=6), qkv.q, qkv.k)
    columns = index.column_indices.clone()
    columns[..., 0] = 10**6
    with pytest.raises(Exception, match="outside of every tensor"):
        attend(qkv, replace(index, column_indices=columns))
