"""Attention over an index: one program for each row block of each query head.

    for each tile of 64 keys, then the columns, 64 at a time:
        S = Q K^T                                    # (BLOCK_Q, BLOCK_K)
        top' = max(top, S); P = 2^(S - top')
        acc = 2^(top - top') acc + P V; total = 2^(top - top') total + sum(P)
    out = acc / total; lse = ln(2) (top + log2(total))

Tiles that the causal edge, key 0 or the last key cuts come first and are masked; all others
run without masks, by pointers or by tensor descriptors (TMA). The head dimension is cut into
parts that are powers of two, so 96 costs 64 + 32 and never 128; on Ampere that also keeps a
softmax row within one warp.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsefill.gpu.scores import LOWEST, MASKED, load_parts, scores_of
from sparsefill.kernels.triton.plan import PLANNED
from sparsefill.kernels.triton.tiles import load_tile, online_softmax_update, search_below

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["n", "rows", "slash_capacity", "column_capacity", "words", "steps"])
def attend_kernel(
    # tensors; strides in elements, those of d are 1
    q_ptr, q_sequence, q_head, q_row,
    k_ptr, k_sequence, k_head, k_row,
    v_ptr, v_sequence, v_head, v_row,
    out_ptr, out_sequence, out_head, out_row,
    lse_ptr,
    # tensor descriptors of k and v for each part of the head dimension; None: use pointers
    k_tiles, k_rest, v_tiles, v_rest,
    # lengths of each sequence
    query_length_ptr, key_length_ptr,
    # lists of the index, and what was planned from them
    slash_ptr, column_ptr, row_ptr_ptr, tile_ptr, plan_ptr, covered_ptr,
    # sizes
    n, rows, slash_capacity, column_capacity, words, steps,
    # maths
    factor, cap_inside, cap_outside,
    H: tl.constexpr, G: tl.constexpr, X: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    HAS_SLASHES: tl.constexpr, HAS_COLUMNS: tl.constexpr, HAS_TILES: tl.constexpr,
    SOFTCAP: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, COLUMN_STAGES: tl.constexpr,
):  # fmt: skip
    """Attend one row block; programs of one KV head are neighbours, long row blocks first."""
    R: tl.constexpr = H // G
    program = tl.program_id(0)
    block = rows - 1 - program // R % rows
    rest = program // R // rows
    kv_head, sequence = rest % G, (rest // G).to(tl.int64)
    head = kv_head * R + program % R
    index_head = sequence * X + (head if X == H else kv_head)

    queries = tl.load(query_length_ptr + sequence)
    keys = tl.load(key_length_ptr + sequence)
    end = (block + 1) * BLOCK_Q + keys - queries
    row = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    position = row + keys - queries
    live = row < queries
    near = tl.arange(0, BLOCK_K)

    q_ptr += sequence * q_sequence + head.to(tl.int64) * q_head
    q_ptr += (block * BLOCK_Q).to(tl.int64) * q_row
    k_ptr += sequence * k_sequence + kv_head.to(tl.int64) * k_head
    v_ptr += sequence * v_sequence + kv_head.to(tl.int64) * v_head
    q0, q1 = load_parts(q_ptr, tl.arange(0, BLOCK_Q) * q_row, live, D, D0, D1)
    acc0 = tl.zeros((BLOCK_Q, D0), tl.float32)
    acc1 = tl.zeros((BLOCK_Q, D1 if D1 > 0 else 16), tl.float32)
    top = tl.full((BLOCK_Q,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)

    # ---- which tiles there are: [slashes, further tiles], some of each masked ----
    plan = plan_ptr + (index_head * rows + block) * PLANNED
    slash_ptr += index_head * slash_capacity
    slash_first, slash_last, slashes = 0, 0, 0
    if HAS_SLASHES:
        slashes = tl.load(plan)
        nearest = tl.load(slash_ptr, mask=slashes > 0, other=BLOCK_K)
        farthest = tl.load(slash_ptr + slashes - 1, mask=slashes > 0, other=0)
        slash_first = (nearest < BLOCK_K - 1).to(tl.int32)  # reaches beyond the first query
        overhangs = (farthest > end - BLOCK_K) & (slashes > slash_first)  # begins before key 0
        slash_last = overhangs.to(tl.int32)
    slash_full = slashes - slash_first - slash_last
    tile_begin, tile_end, tile_full, tile_first = 0, 0, 0, 0
    if HAS_TILES:
        tile_begin = tl.load(row_ptr_ptr + index_head * (rows + 1) + block)
        tile_end = tl.load(row_ptr_ptr + index_head * (rows + 1) + block + 1)
        tile_full = tl.load(plan + 2)
        exists = (block * BLOCK_Q < queries) & (tile_full > tile_begin)
        tile_end = tl.where(block * BLOCK_Q < queries, tile_end, tile_begin)
        tile_full = tl.where(block * BLOCK_Q < queries, tile_full, tile_begin)
        least = tl.load(tile_ptr + tile_begin, mask=exists, other=0)
        tile_first = (least < 0).to(tl.int32)

    # ---- tiles that need a mask ----
    edges = slash_first + slash_last + tile_first + tile_end - tile_full
    for e in tl.range(0, edges, num_stages=1):
        start = end - BLOCK_K
        if HAS_SLASHES:
            of_slash = e < slash_first + slash_last
            place = tl.where(e < slash_first, 0, slashes - 1)
            start -= tl.load(slash_ptr + place, mask=of_slash, other=0)
        if HAS_TILES:
            further = e - slash_first - slash_last
            place = tl.where(further < tile_first, tile_begin, tile_full + further - tile_first)
            listed = tl.load(tile_ptr + place, mask=further >= 0, other=0)
            start = tl.where(further >= 0, listed, start)
        key = start + near
        there = (key >= 0) & (key < keys)
        k0, k1 = load_parts(k_ptr + start.to(tl.int64) * k_row, near * k_row, there, D, D0, D1)
        scores = scores_of(q0, q1, k0, k1, factor, cap_inside, cap_outside, SOFTCAP, D1)
        seen = there[None, :] & (key[None, :] <= position[:, None])
        scores = tl.where(seen, scores, MASKED)
        v0, v1 = load_parts(v_ptr + start.to(tl.int64) * v_row, near * v_row, there, D, D0, D1)
        acc0, acc1, top, total = online_softmax_update(scores, v0, v1, acc0, acc1, top, total, D1)

    # ---- whole tiles ----
    for t in tl.range(0, slash_full + tile_full - tile_begin - tile_first, num_stages=STAGES):
        start = end - BLOCK_K
        if HAS_SLASHES:
            of_slash = t < slash_full
            start -= tl.load(slash_ptr + slash_first + t, mask=of_slash, other=0)
        if HAS_TILES:
            further = t - slash_full
            place = tile_begin + tile_first + further
            listed = tl.load(tile_ptr + place, mask=further >= 0, other=0)
            start = tl.where(further >= 0, listed, start)
        if DESCRIPTORS:
            k0, k1 = load_tile(k_tiles, k_rest, sequence, kv_head, start, D0, D1)
        else:
            k0, k1 = load_parts(k_ptr + start.to(tl.int64) * k_row, near * k_row, None, D, D0, D1)
        scores = scores_of(q0, q1, k0, k1, factor, cap_inside, cap_outside, SOFTCAP, D1)
        if DESCRIPTORS:
            v0, v1 = load_tile(v_tiles, v_rest, sequence, kv_head, start, D0, D1)
        else:
            v0, v1 = load_parts(v_ptr + start.to(tl.int64) * v_row, near * v_row, None, D, D0, D1)
        acc0, acc1, top, total = online_softmax_update(scores, v0, v1, acc0, acc1, top, total, D1)

    # ---- columns, gathered ----
    if HAS_COLUMNS:
        column_ptr += index_head * column_capacity
        columns = tl.load(plan + 1)
        for c in tl.range(0, columns, BLOCK_K, num_stages=COLUMN_STAGES):
            listed = c + near < columns
            key = tl.load(column_ptr + c + near, mask=listed, other=0)
            if HAS_SLASHES:
                distance = end - 1 - key
                place = index_head * words + distance // 32
                word = tl.load(covered_ptr + place, mask=listed, other=0)
                listed = listed & ((word >> (distance % 32)) % 2 == 0)
            if HAS_TILES:
                zero = tl.zeros((BLOCK_K,), tl.int32)
                above = search_below(
                    tile_ptr, zero + tile_begin, zero + tile_end, key + 1, steps, listed
                )
                inside = listed & (above > tile_begin)
                before = tl.load(tile_ptr + above - 1, mask=inside, other=0)
                listed = listed & ~(inside & (key < before + BLOCK_K))
            offsets = key.to(tl.int64)
            k0, k1 = load_parts(k_ptr, offsets * k_row, None, D, D0, D1)
            scores = scores_of(q0, q1, k0, k1, factor, cap_inside, cap_outside, SOFTCAP, D1)
            seen = listed[None, :] & (key[None, :] <= position[:, None])
            scores = tl.where(seen, scores, MASKED)
            v0, v1 = load_parts(v_ptr, offsets * v_row, None, D, D0, D1)
            acc0, acc1, top, total = online_softmax_update(
                scores, v0, v1, acc0, acc1, top, total, D1
            )

    # ---- results; rows that saw no key, and padding, give zeros and -inf ----
    some = live & (total > 0.0)
    inverse = tl.where(some, 1.0 / tl.where(some, total, 1.0), 0.0)
    lse = tl.where(some, (top + tl.math.log2(tl.where(some, total, 1.0))) * LN_2, float("-inf"))
    within = row < n
    out_ptr += sequence * out_sequence + head.to(tl.int64) * out_head
    place = out_ptr + row.to(tl.int64)[:, None] * out_row
    column = tl.arange(0, D0)
    tl.store(
        place + column[None, :],
        (acc0 * inverse[:, None]).to(out_ptr.dtype.element_ty),
        mask=within[:, None],
    )
    if D1 > 0:
        column = D0 + tl.arange(0, D1)
        tl.store(
            place + column[None, :],
            (acc1 * inverse[:, None]).to(out_ptr.dtype.element_ty),
            mask=within[:, None] & (column < D)[None, :],
        )
    tl.store(lse_ptr + (sequence * H + head) * n + row, lse, mask=within)
