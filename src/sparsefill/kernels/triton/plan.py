"""What each row block reads, found once for a layer: two small kernels before attending.

    plan[row block] = slash tiles in reach, columns in reach, first tile that needs a mask
    covered[u] = whether a slash tile covers the keys at distance u before a row block's end

Slash tiles stand at the same distances from every row block's end, so one bit for each
distance tells, for any row block, whether a column is in a tile already.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsefill.kernels.triton.tiles import search_below

PLANNED = tl.constexpr(3)  # entries of a row block's plan
BITS = tl.constexpr(32)
TILE = tl.constexpr(64)


@triton.jit(do_not_specialize=["rows", "slash_capacity", "column_capacity", "steps"])
def plan_rows(
    # lists of the index
    slash_ptr, slash_count_ptr, column_ptr, column_count_ptr, row_ptr_ptr, tile_ptr,
    # lengths
    query_length_ptr, key_length_ptr,
    # result: (b, x, rows, PLANNED)
    plan_ptr,
    # sizes
    x, rows, slash_capacity, column_capacity, steps,
    HAS_SLASHES: tl.constexpr, HAS_COLUMNS: tl.constexpr, HAS_TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Plan BLOCK row blocks of one index head."""
    head = tl.program_id(0).to(tl.int64)  # of all sequences
    sequence = head // x
    queries = tl.load(query_length_ptr + sequence)
    keys = tl.load(key_length_ptr + sequence)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = (i < rows) & (i * TILE < queries)
    end = (i + 1) * TILE + keys - queries
    zero = tl.zeros((BLOCK,), tl.int32)
    slashes, columns, full = zero, zero, zero
    if HAS_SLASHES:
        count = zero + tl.load(slash_count_ptr + head)
        slash_ptr += head * slash_capacity
        slashes = search_below(slash_ptr, zero, count, end, steps, there)
    if HAS_COLUMNS:
        count = zero + tl.load(column_count_ptr + head)
        column_ptr += head * column_capacity
        limit = tl.minimum(end, keys)
        columns = search_below(column_ptr, zero, count, limit, steps, there)
    if HAS_TILES:
        # a tile needs no mask if its last key is not after the first query
        place = row_ptr_ptr + head * (rows + 1) + i
        first = tl.load(place, mask=there, other=0)
        last = tl.load(place + 1, mask=there, other=0)
        full = search_below(tile_ptr, first, last, end - 2 * TILE + 2, steps, there)
    to = plan_ptr + (head * rows + i) * PLANNED
    tl.store(to, tl.where(there, slashes, 0), mask=i < rows)
    tl.store(to + 1, tl.where(there, columns, 0), mask=i < rows)
    tl.store(to + 2, full, mask=i < rows)


@triton.jit(do_not_specialize=["words", "slash_capacity", "steps"])
def plan_covered(
    slash_ptr, slash_count_ptr,
    # result: (b, x, words)
    covered_ptr,
    words, slash_capacity, steps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Mark the distances that slash tiles cover, BLOCK words of one index head."""
    head = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = word < words
    slashes = slash_ptr + head * slash_capacity
    count = tl.load(slash_count_ptr + head)
    zero = tl.zeros((BLOCK,), tl.int32)
    after = search_below(slashes, zero, zero + count, word * BITS + BITS, steps, there)
    bits = zero
    for back in tl.static_range(1, 3):  # tiles are 64 apart: two at most touch a word
        near = there & (after >= back)
        offset = tl.load(slashes + after - back, mask=near, other=0)
        shift = offset - word * BITS  # from -63, else nothing is left, to 31
        left = tl.full((BLOCK,), -1, tl.int32) << tl.maximum(shift, 0)
        rest = TILE + shift  # bits of the tile from the word's first on
        right = (tl.full((BLOCK,), 1, tl.int32) << tl.minimum(tl.maximum(rest, 0), BITS - 1)) - 1
        right = tl.where(rest >= BITS, -1, right)
        bits = tl.where(near & (rest > 0), bits | (left & right), bits)
    tl.store(covered_ptr + head * words + word, bits, mask=there)
