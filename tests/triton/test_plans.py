"""The plan that kernels make is the one that `plans.py` makes without them."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs Triton's interpreter: make test-triton", allow_module_level=True)

from sparsefill.kernels import triton as backend
from tests.support.strategies import Shape, random_index, shapes
from tests.triton import guard
from tests.triton.plans import plan_of

guard.install()
# the interpreter of Triton 3.6 does this to numpy
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@settings(max_examples=25)
@given(shape=shapes(longest=300))
def test_kernels_plan_the_same(shape: Shape):
    index = random_index(shape, x=shape.h)
    expected, got = plan_of(index), backend.make_plan(index)
    live = torch.arange(index.row_blocks) * 64 < index.query_lengths[:, None]
    assert torch.equal(got.rows[live[:, None].expand(-1, index.x, -1)][:, :3],
                       expected.rows[live[:, None].expand(-1, index.x, -1)])  # fmt: skip
    assert torch.equal(got.rows[..., :2], expected.rows[..., :2])
    assert torch.equal(got.covered, expected.covered)
    assert got.steps >= expected.steps
