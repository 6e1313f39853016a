"""What the Triton kernels share: loading tiles, searching lists, one step of softmax."""

from __future__ import annotations

import triton
import triton.language as tl

# The score of a row that saw no key, and of a masked cell: finite, so that no NaN arises, and
# the latter so much lower that its weight is 0 even in a row that saw no key.
LOWEST = tl.constexpr(-1.0e30)
MASKED = tl.constexpr(-2.0e30)


@triton.jit
def search_below(list_ptr, first, last, value, steps, there):
    """Find the first of the ascending entries [first, last) that is at least `value`.

    Elementwise over blocks of any shape; `steps` is at least the bits of the longest list.
    """
    for _ in range(steps):
        middle = first + (last - first) // 2
        open_ = there & (first < last)
        entry = tl.load(list_ptr + middle, mask=open_, other=0)
        below = open_ & (entry < value)
        first = tl.where(below, middle + 1, first)
        last = tl.where(open_ & (entry >= value), middle, last)
    return first


@triton.jit
def load_rows(ptr, row_offsets, there, D: tl.constexpr, FROM: tl.constexpr, WIDTH: tl.constexpr):
    """Load columns [FROM, FROM + WIDTH) of some rows; zeros past D and where nothing is there.

    Args:
        row_offsets: elements from `ptr` to each row.
        there: which rows exist; None when all do.
    """
    column = FROM + tl.arange(0, WIDTH)
    place = ptr + row_offsets[:, None] + column[None, :]
    if FROM + WIDTH > D:
        inside = column[None, :] < D
        seen = inside if there is None else inside & there[:, None]
        rows = tl.load(place, mask=seen, other=0.0)
    elif there is None:
        rows = tl.load(place)
    else:
        rows = tl.load(place, mask=there[:, None], other=0.0)
    return rows


@triton.jit
def scores_of(
    q0, q1, k0, k1, factor, cap_inside, cap_outside, SOFTCAP: tl.constexpr, D1: tl.constexpr
):
    """Score queries against keys, in powers of two."""
    scores = tl.dot(q0, tl.trans(k0))
    if D1 > 0:
        scores = tl.dot(q1, tl.trans(k1), scores)
    if SOFTCAP:
        # tanh(x) = 1 - 2 / (e^2x + 1)
        power = tl.math.exp2(scores * cap_inside)
        scores = (1.0 - 2.0 / (power + 1.0)) * cap_outside
    else:
        scores = scores * factor
    return scores


@triton.jit
def online_softmax_update(scores, v0, v1, acc0, acc1, top, total, D1: tl.constexpr):
    """Add a tile to the running softmax of each row.

    Returns:
        acc0, acc1 (BLOCK_Q, D0 and D1), top (BLOCK_Q), total (BLOCK_Q).
    """
    raised = tl.maximum(top, tl.max(scores, 1))
    weights = tl.math.exp2(scores - raised[:, None])
    alpha = tl.math.exp2(top - raised)
    total = total * alpha + tl.sum(weights, 1)
    weights = weights.to(v0.dtype)
    acc0 = tl.dot(weights, v0, acc0 * alpha[:, None])
    if D1 > 0:
        acc1 = tl.dot(weights, v1, acc1 * alpha[:, None])
    return acc0, acc1, raised, total
