"""The guard takes effect in this Triton: else the interpreter's silence would mean nothing."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from tests.triton import guard


@triton.jit
def multiply(a_ptr, b_ptr, out_ptr, count, N: tl.constexpr):
    """Store a * b and, if asked for more than there is, read and write past the end."""
    place = tl.arange(0, N)
    there = place < count
    product = tl.load(a_ptr + place, mask=there) * tl.load(b_ptr + place, mask=there)
    tl.store(out_ptr + place, product, mask=there)


@triton.jit
def product(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    """Store the matrix product of two square matrices."""
    row, column = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    a, b = tl.load(a_ptr + row * N + column), tl.load(b_ptr + row * N + column)
    tl.store(out_ptr + row * N + column, tl.dot(a, b).to(out_ptr.dtype.element_ty))


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()


def test_bfloat16_products_are_right():
    (a, b), out = pair(64), torch.zeros(64, dtype=torch.bfloat16)
    multiply[(1,)](a, b, out, 64, N=64)
    assert torch.equal(out, a * b)


def test_bfloat16_dots_are_right():
    (a, b), out = pair(32, 32), torch.zeros(32, 32, dtype=torch.bfloat16)
    product[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out, (a.float() @ b.float()).bfloat16(), rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("which", [0, 2], ids=["load", "store"])
def test_memory_outside_of_a_view_is_refused(which: int):
    tensors = [torch.randn(96) for _ in range(3)]
    tensors[which] = tensors[which][:60]  # the storage goes on
    with pytest.raises(Exception, match="4 of 64 pointers outside of every tensor"):
        multiply[(1,)](*tensors, 64, N=64)


def test_what_is_never_stored_is_found():
    a, b, out = (torch.randn(64) for _ in range(3))
    with pytest.raises(AssertionError, match="1 of 64 elements were never"), guard.written_once():
        multiply[(1,)](a, b, out, 63, N=64)


def test_what_is_stored_twice_is_found():
    a, b, out = (torch.randn(64) for _ in range(3))
    with pytest.raises(AssertionError, match="64 of 64 elements were"), guard.written_once():
        multiply[(2,)](a, b, out, 64, N=64)
