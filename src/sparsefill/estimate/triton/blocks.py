"""Pooled blocks of queries and keys, their scores, and the tiles of those that are kept.

pool: mean of each block's rows
score_blocks: mean query times mean key; infinite where forced, minus infinity in the future
list_tiles: the kept key blocks of each block of queries, as tiles of its row blocks
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsefill.gpu.scores import INTERPRETED, load_parts

TILE = tl.constexpr(64)
WIDTH = tl.constexpr(32)  # of the head dimension at a time
HIGHEST = tl.constexpr(1.0e38)  # of a score: higher ones would look like forced ones
# float32 products as six of bfloat16 on the matrix units of any GPU
PRECISION = tl.constexpr("ieee" if INTERPRETED else "bf16x6")


@triton.jit(do_not_specialize=["block", "blocks"])
def pool(
    # tensor; strides in elements, that of d is 1
    x_ptr, x_sequence, x_head, x_row,
    # lengths of each sequence, and which heads
    length_ptr, head_ptr,
    # result: (sequences, lists, blocks, D) in float32
    mean_ptr,
    block, blocks,
    X: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
):  # fmt: skip
    """Average one block of rows of one head; padding is left out."""
    program = tl.program_id(0)
    i, x = program % blocks, program // blocks % X
    sequence = (program // blocks // X).to(tl.int64)
    head = tl.load(head_ptr + x).to(tl.int64)
    length = tl.load(length_ptr + sequence)
    x_ptr += sequence * x_sequence + head * x_head
    end = tl.minimum((i + 1) * block, length)
    total0 = tl.zeros((D0,), tl.float32)
    total1 = tl.zeros((D1 if D1 > 0 else 16,), tl.float32)
    near = tl.arange(0, TILE)
    for start in range(i * block, end, TILE):
        there = start + near < end
        rows = x_ptr + tl.cast(start, tl.int64) * x_row
        part0, part1 = load_parts(rows, near * x_row, there, D, D0, D1)
        total0 += tl.sum(part0.to(tl.float32), 0)
        if D1 > 0:
            total1 += tl.sum(part1.to(tl.float32), 0)
    count = tl.maximum(end - i * block, 1).to(tl.float32)
    mean_ptr += ((sequence * X + x) * blocks + i) * D
    tl.store(mean_ptr + tl.arange(0, D0), total0 / count)
    if D1 > 0:
        column = D0 + tl.arange(0, D1)
        tl.store(mean_ptr + column, total1 / count, mask=column < D)


@triton.jit(do_not_specialize=["first", "rows", "q_blocks", "k_blocks", "block"])
def score_blocks(
    # means: (sequences, X, q_blocks, D) and (sequences, G, k_blocks, D)
    q_ptr, k_ptr,
    # lengths of each sequence; query head and forced keys of each list
    query_length_ptr, key_length_ptr, head_ptr, sink_ptr, window_ptr,
    # result: (sequences, X, rows, k_blocks)
    score_ptr,
    # sizes: blocks of queries first .. first + rows
    first, rows, q_blocks, k_blocks, block,
    scale,
    X: tl.constexpr, G: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Score 64 blocks of queries against 64 blocks of keys."""
    x, sequence = tl.program_id(2) % X, (tl.program_id(2) // X).to(tl.int64)
    queries, keys = tl.load(query_length_ptr + sequence), tl.load(key_length_ptr + sequence)
    head = tl.load(head_ptr + x)
    own = tl.program_id(1) * TILE + tl.arange(0, TILE)
    i = first + own
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    nearest = i * block + keys - queries  # position of the block's first query
    last = tl.minimum((i + 1) * block, queries) - 1 + keys - queries
    if tl.program_id(0) * TILE * block <= tl.max(last, 0):
        there, known = (own < rows) & (i < q_blocks), j < k_blocks
        q_ptr += (sequence * X + x) * q_blocks * D
        k_ptr += (sequence * G + head // R) * k_blocks * D
        scores = tl.zeros((TILE, TILE), tl.float32)
        for start in range(0, D, WIDTH):
            part = start + tl.arange(0, WIDTH)
            inside = part[None, :] < D
            q_place, k_place = (i * D)[:, None] + part[None, :], (j * D)[:, None] + part[None, :]
            q = tl.load(q_ptr + q_place, mask=there[:, None] & inside, other=0.0)
            k = tl.load(k_ptr + k_place, mask=known[:, None] & inside, other=0.0)
            scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
        first_key = j[None, :] * block
        forced = first_key < tl.load(sink_ptr + x)
        forced |= first_key + block > nearest[:, None] - tl.load(window_ptr + x) + 1
        scores = tl.minimum(tl.maximum(scores * scale, -HIGHEST), HIGHEST)
        scores = tl.where(forced, float("inf"), scores)
        scores = tl.where(first_key <= last[:, None], scores, float("-inf"))
        place = ((sequence * X + x) * rows + own).to(tl.int64)[:, None] * k_blocks + j[None, :]
        tl.store(score_ptr + place, scores, mask=there[:, None] & known[None, :])


@triton.jit(do_not_specialize=["row_blocks", "q_blocks", "capacity", "per_block"])
def list_tiles(
    # kept key blocks of each block of queries: (sequences, lists, q_blocks, capacity)
    kept_ptr,
    # results: what row_ptr (sequences, lists, row_blocks + 1) says is listed
    row_ptr_ptr, tile_ptr,
    # sizes: `per_block` tiles in a block
    row_blocks, q_blocks, capacity, per_block,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """List the tiles of one row block: the first of what its block of queries keeps."""
    program = tl.program_id(0).to(tl.int64)  # of a row block
    of, i = program // row_blocks, program % row_blocks
    row_ptr_ptr += of * (row_blocks + 1) + i
    begin, end = tl.load(row_ptr_ptr), tl.load(row_ptr_ptr + 1)
    kept_ptr += (of * q_blocks + i // per_block) * capacity
    for start in range(0, end - begin, BLOCK):
        place = start + tl.arange(0, BLOCK)
        there = place < end - begin
        block = tl.load(kept_ptr + place // per_block, mask=there, other=0)
        first_key = (block * per_block + place % per_block) * TILE
        tl.store(tile_ptr + begin + place, first_key, mask=there)
