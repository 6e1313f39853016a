"""Rows of queries and keys, and their scores, inside of Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

# The score of a row that saw no key, and of a masked cell: finite, so that no NaN arises, and
# the latter so much lower that its weight is 0 even in a row that saw no key.
LOWEST = tl.constexpr(-1.0e30)
MASKED = tl.constexpr(-2.0e30)


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
def load_parts(ptr, row_offsets, there, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """Load rows as the two parts of the head dimension: (rows, D0) and (rows, D1).

    With one part only, the second is the first again, and never used.
    """
    part0 = load_rows(ptr, row_offsets, there, D, 0, D0)
    part1 = load_rows(ptr, row_offsets, there, D, D0, D1) if D1 > 0 else part0
    return part0, part1


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


INTERPRETED = isinstance(scores_of, InterpretedFunction)  # Triton runs kernels on the CPU
