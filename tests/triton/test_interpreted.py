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
from sparsefill.gpu import Variant
from sparsefill.gpu.scores import INTERPRETED
from sparsefill.kernels import triton as backend
from tests.kernels.test_backends import measurable
from tests.support.closeness import assert_attended
from tests.support.inputs import Qkv, far_apart, patterns_of, random_qkv
from tests.support.strategies import Shape, random_index, shapes
from tests.support.table import CASES, Case, case_inputs
from tests.triton import guard

VARIANTS: tuple[Variant, ...] = ("pointers", "descriptors")
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def served() -> list[Case]:
    """Take the table's cases that fit: of 32-bit ones every second in the other type."""
    small = [case for case in CASES if case.n <= 200 and (case.m or 0) <= 200]
    own = [case for case in small if case.dtype in DTYPES]
    wide = [case for case in small if case.dtype == "f32"]
    other = [case._replace(dtype=list(DTYPES)[i % 2]) for i, case in enumerate(wide)]
    return sorted({*own, *other}, key=str)


def attend(qkv: Qkv, index: SparseIndex, variant: Variant = "pointers", **maths: Any) -> Attended:
    """Attend, checking that everything is stored exactly once."""
    options = {"scale": qkv.q.shape[-1] ** -0.5, "softcap": None} | maths
    with guard.written_once():
        return Attended(*backend.attend(*qkv, index, variant=variant, **options))


def judge(qkv: Qkv, index: SparseIndex, variant: Variant = "pointers", **maths: Any) -> None:
    assert_attended(attend(qkv, index, variant, **maths), qkv, index, **maths)


def test_runs_in_the_interpreter():
    assert INTERPRETED


@pytest.mark.parametrize(("variant", "case"), [*zip(itertools.cycle(VARIANTS), served())], ids=str)
def test_stays_within_the_error_budget(variant: Variant, case: Case):
    qkv, index = case_inputs(case)
    judge(qkv, index, softcap=case.softcap, variant=variant)


@settings(max_examples=25)
@given(
    shape=shapes(longest=150).map(measurable),
    shared=st.booleans(),
    d=st.sampled_from([16, 40, 64]),
    dtype=st.sampled_from([*DTYPES]),
    variant=st.sampled_from(VARIANTS),
)
def test_any_index_stays_within_the_error_budget(
    shape: Shape, shared: bool, d: int, dtype: str, variant: Variant
):
    """Ragged batches full of NaN, chunks, and tiles that stand anywhere beside columns."""
    qkv = shape._replace(d=d).qkv(DTYPES[dtype])
    index = random_index(shape, x=shape.g if shared else shape.h)
    clean = qkv.map(torch.nan_to_num)
    assert_attended(attend(qkv, index, variant=variant), clean, index)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 4.0])
def test_any_scale(scale: float):
    qkv = random_qkv(b=2, h=6, g=2, n=130, d=32, dtype=torch.bfloat16)
    judge(qkv, estimate(patterns_of("mixed", 6), qkv.q, qkv.k), scale=scale)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["heads-last", "with-gaps", "one-key-for-all"])
def test_reads_any_strides(name: str, variant: Variant):
    qkv = random_qkv(b=2, h=6, g=2, n=130, d=32, dtype=torch.float16)
    index = estimate(patterns_of("mixed", 6), qkv.q, qkv.k)
    if name == "one-key-for-all":
        qkv = qkv._replace(k=qkv.k[:, :, :1].expand_as(qkv.k), v=qkv.v[:, :1].expand_as(qkv.v))
    elif name == "heads-last":
        qkv = qkv.map(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2))
    else:
        wide = qkv.map(lambda t: torch.nn.functional.pad(t, (8, 8), value=torch.nan))
        qkv = wide.map(lambda t: t[..., 8:-8])
    judge(qkv, index, variant)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sequence", "head", "row"])
def test_tensors_of_more_than_32_bits_are_reached(axis: int, monkeypatch: pytest.MonkeyPatch):
    def far_results(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return far_apart(torch.zeros(q.shape, dtype=q.dtype), axis), torch.zeros(q.shape[:3])

    monkeypatch.setattr(backend, "empty_results", far_results)
    b = 3 if axis == 0 else 1
    near = random_qkv(b=b, h=3, g=3, n=320, d=16, dtype=torch.float16)
    columns = VerticalSlash(verticals=300, slashes=1, sink=0, window=1)
    patterns = [columns, VerticalSlash(verticals=1, slashes=200), BlockTopK(blocks=5)]
    index = estimate(patterns, near.q, near.k)
    far = near.map(lambda t: far_apart(t, axis))
    options: Any = {"scale": 0.25, "softcap": None, "variant": "pointers"}
    got = Attended(*backend.attend(*far, index, **options))
    assert_attended(got, near, index)


def edge_index(**lists: list[int]) -> SparseIndex:
    """Make an index of one head, three row blocks and 192 keys; tiles are of the last one."""
    slashes, columns, tiles = (lists.get(name, []) for name in ("slashes", "columns", "tiles"))
    length = torch.tensor([192], dtype=torch.int32)
    return SparseIndex(
        n=192,
        m=192,
        query_lengths=length,
        key_lengths=length,
        slash_tiles=torch.tensor([[slashes]], dtype=torch.int32),
        slash_counts=torch.tensor([[len(slashes)]], dtype=torch.int32),
        column_indices=torch.tensor([[columns]], dtype=torch.int32),
        column_counts=torch.tensor([[len(columns)]], dtype=torch.int32),
        row_ptr=torch.tensor([[[0, 0, 0, len(tiles)]]], dtype=torch.int32),
        tile_starts=torch.tensor(tiles, dtype=torch.int32),
    )


def judge_every_cell(index: SparseIndex, variant: Variant) -> None:
    """Judge with all weights alike, so that a single cell too many or too few shows."""
    judge(random_qkv(h=1, n=192, d=16, dtype=torch.float16), index, variant, scale=0.0)


NEAREST = [0, 1, 61, 62, 63, 64, 65, 126, 127, 128, 129]  # 62: only the first query is cut off
FIRST_KEYS = [-63, -1, 0, 1, 63, 64, 65, 66, 127, 128]  # 65: the last that needs no mask


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("offset", NEAREST)
def test_slash_tiles_at_every_edge(offset: int, variant: Variant):
    judge_every_cell(edge_index(slashes=[offset]), variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("start", FIRST_KEYS)
def test_further_tiles_at_every_edge_and_columns_beside_them(start: int, variant: Variant):
    around = {start - 1, start, start + 63, start + 64, 191}
    index = edge_index(tiles=[start], columns=sorted(key for key in around if 0 <= key < 192))
    judge_every_cell(index, variant)


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
