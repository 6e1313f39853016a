"""What the attention kernels share: tiles by descriptor, searching lists, one step of softmax."""

from __future__ import annotations

import triton
import triton.language as tl


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
def load_tile(tiles, rest, sequence, head, start, D0: tl.constexpr, D1: tl.constexpr):
    """Load a whole tile by its descriptors, as the two parts of the head dimension."""
    sequence = sequence.to(tl.int32)
    rows: tl.constexpr = tiles.block_shape[2]
    part0 = tiles.load([sequence, head, start, 0]).reshape(rows, D0)
    part1 = rest.load([sequence, head, start, D0]).reshape(rows, D1) if D1 > 0 else part0
    return part0, part1


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
