"""The plan that kernels make is the one that `plans.py` makes without them."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefill.kernels import triton as backend
from tests.support.strategies import Shape, random_index, shapes
from tests.triton.plans import plan_of


@settings(max_examples=40)
@given(shape=shapes(longest=400), crop=st.booleans())
def test_kernels_plan_the_same(shape: Shape, crop: bool):
    index = random_index(shape, x=shape.h)
    if crop:  # lists that are full to the last place
        index = replace(
            index,
            slash_tiles=index.slash_tiles[..., : max(1, int(index.slash_counts.max()))],
            column_indices=index.column_indices[..., : max(1, int(index.column_counts.max()))],
        ).contiguous()
    expected, got = plan_of(index), backend.make_plan(index)
    live = torch.arange(index.row_blocks) * 64 < index.query_lengths[:, None]
    live = live[:, None].expand(-1, index.x, -1)
    assert torch.equal(got.rows[live], expected.rows[live])
    assert torch.equal(got.rows[..., :2], expected.rows[..., :2])
    assert torch.equal(got.covered, expected.covered)
    assert got.steps >= expected.steps
