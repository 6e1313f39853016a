"""Sums of the probe queries' attention along columns and diagonals: two passes over the keys.

    probe_weights: top, total = online softmax of the probe queries over a span of tiles
    line_sums: P = 2^(S - log2-sum-exp) again; columns = sum(P) by key, diagonals by distance

A tile of 64 queries and 64 keys meets 127 diagonals: those with query >= key in its own order
fill the same 64 distances as those with query < key of the tile before it. Rotating row r of P
by r places makes diagonals columns, and one segment of 64 sums is finished with each tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sparsefill.gpu.scores import LOWEST, MASKED, load_parts, scores_of

TILE = tl.constexpr(64)  # probe queries of a strip, keys of a tile
SPANS = tl.constexpr(64)  # at most: what line_sums puts together


@triton.jit(do_not_specialize=["strip", "span", "spans"])
def probe_weights(
    # tensors; strides in elements, those of d are 1
    q_ptr, q_sequence, q_head, q_row,
    k_ptr, k_sequence, k_head, k_row,
    # lengths of each sequence; query head, and probe queries, of each list
    query_length_ptr, key_length_ptr, head_ptr, probe_ptr,
    # results: (sequences, lists, spans, TILE)
    top_ptr, total_ptr,
    # sizes: 64 probe queries from the end are a strip, `span` tiles a span
    strip, span, spans,
    # maths
    factor, cap_inside, cap_outside,
    X: tl.constexpr, R: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    SOFTCAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Find the online softmax of one strip of probe queries over one span of keys."""
    x, of, sequence = divide(tl.program_id(0), X, spans)
    head = tl.load(head_ptr + x)
    queries, keys = tl.load(query_length_ptr + sequence), tl.load(key_length_ptr + sequence)
    q_ptr += sequence * q_sequence + head.to(tl.int64) * q_head
    k_ptr += sequence * k_sequence + (head // R).to(tl.int64) * k_head
    probe = tl.load(probe_ptr + x)
    q0, q1, position, counted = load_strip(q_ptr, q_row, strip, queries, keys, probe, D, D0, D1)
    top = tl.full((TILE,), LOWEST, tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    end = tl.minimum((of + 1) * span, tl.cdiv(keys, TILE))
    for t in tl.range(of * span, end, num_stages=STAGES):
        scores, _ = probe_scores(
            q0, q1, position, counted, k_ptr, k_row, t, keys,
            factor, cap_inside, cap_outside, D, D0, D1, SOFTCAP,
        )  # fmt: skip
        raised = tl.maximum(top, tl.max(scores, 1))
        weights = tl.math.exp2(scores - raised[:, None])
        total = total * tl.math.exp2(top - raised) + tl.sum(weights, 1)
        top = raised
    place = ((sequence * X + x) * spans + of) * TILE + tl.arange(0, TILE)
    tl.store(top_ptr + place, top)
    tl.store(total_ptr + place, total)


@triton.jit(do_not_specialize=["strip", "span", "spans", "m"])
def line_sums(
    # tensors; strides in elements, those of d are 1
    q_ptr, q_sequence, q_head, q_row,
    k_ptr, k_sequence, k_head, k_row,
    # lengths of each sequence; query head, probe queries and forced lines of each list
    query_length_ptr, key_length_ptr, head_ptr, probe_ptr, sink_ptr, window_ptr,
    # of probe_weights: (sequences, lists, spans, TILE)
    top_ptr, total_ptr,
    # results: columns and diagonals (sequences, 2, lists, m)
    sum_ptr,
    # sizes
    strip, span, spans, m,
    # maths
    factor, cap_inside, cap_outside,
    X: tl.constexpr, R: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    SOFTCAP: tl.constexpr, FIRST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum one span's weights by key and by distance; later strips add to what is there."""
    x, of, sequence = divide(tl.program_id(0), X, spans)
    head = tl.load(head_ptr + x)
    queries, keys = tl.load(query_length_ptr + sequence), tl.load(key_length_ptr + sequence)
    sink, window = tl.load(sink_ptr + x), tl.load(window_ptr + x)
    q_ptr += sequence * q_sequence + head.to(tl.int64) * q_head
    k_ptr += sequence * k_sequence + (head // R).to(tl.int64) * k_head
    probe = tl.load(probe_ptr + x)
    q0, q1, position, counted = load_strip(q_ptr, q_row, strip, queries, keys, probe, D, D0, D1)

    # ---- all spans together: the log-sum-exp of each probe query ----
    row, near = tl.arange(0, TILE), tl.arange(0, TILE)
    one = tl.arange(0, SPANS)[:, None]
    place = ((sequence * X + x) * spans + one) * TILE + row[None, :]
    tops = tl.load(top_ptr + place, mask=one < spans, other=LOWEST)
    totals = tl.load(total_ptr + place, mask=one < spans, other=0.0)
    top = tl.max(tops, 0)
    total = tl.sum(totals * tl.math.exp2(tops - top[None, :]), 0)
    some = total > 0.0
    lse = tl.where(some, top + tl.math.log2(tl.where(some, total, 1.0)), 0.0)

    column_ptr = sum_ptr + (sequence * 2 * X + x) * m
    diagonal_ptr = sum_ptr + (sequence * 2 * X + X + x) * m
    first_position = keys - TILE * (strip + 1)
    place_of = (row[:, None] - near[None, :]) & 63  # after rotation, entry (row, near)
    within = near[None, :] <= row[:, None]  # query >= key in the tile's own order
    begin = of * span
    carry = tl.zeros((TILE,), tl.float32)
    # from one tile earlier on, for what it leaves to the next; the last tile leaves nothing
    end = tl.minimum((of + 1) * span, tl.cdiv(keys, TILE))
    for t in tl.range(tl.maximum(begin - 1, 0), end, num_stages=STAGES):
        scores, key = probe_scores(
            q0, q1, position, counted, k_ptr, k_row, t, keys,
            factor, cap_inside, cap_outside, D, D0, D1, SOFTCAP,
        )  # fmt: skip
        weights = tl.math.exp2(scores - lse[:, None])
        mine = (key < keys) & (t >= begin)
        by_key = tl.sum(weights, 0)
        if not FIRST:
            by_key += tl.load(column_ptr + key, mask=mine, other=0.0)
        by_key = tl.where(key < sink, float("inf"), by_key)
        tl.store(column_ptr + key, by_key, mask=mine)

        rotated = tl.gather(weights, place_of, 1)
        by_distance = tl.sum(tl.where(within, rotated, 0.0), 0) + carry
        carry = tl.sum(tl.where(within, 0.0, rotated), 0)
        distance = first_position - t * TILE + near
        mine = (distance >= 0) & (distance < keys) & (t >= begin)
        if not FIRST:
            by_distance += tl.load(diagonal_ptr + distance, mask=mine, other=0.0)
        by_distance = tl.where(distance < window, float("inf"), by_distance)
        tl.store(diagonal_ptr + distance, by_distance, mask=mine)


@triton.jit
def divide(program, X: tl.constexpr, spans):
    """Return list, span and sequence of a program; the lists of a KV head are neighbours."""
    return program % X, program // X % spans, (program // X // spans).to(tl.int64)


@triton.jit
def load_strip(
    q_ptr, q_row, strip, queries, keys, probe,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
):  # fmt: skip
    """Load a strip of probe queries, their positions, and which of them count."""
    query = queries - TILE * (strip + 1) + tl.arange(0, TILE)
    counted = (query >= 0) & (query >= queries - probe)
    q0, q1 = load_parts(q_ptr, query.to(tl.int64) * q_row, counted, D, D0, D1)
    return q0, q1, query + keys - queries, counted


@triton.jit
def probe_scores(
    q0, q1, position, counted, k_ptr, k_row, t, keys, factor, cap_inside, cap_outside,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Score a strip against one tile of keys; return the keys, too."""
    near = tl.arange(0, TILE)
    key = t * TILE + near
    there = key < keys
    k_rows = k_ptr + tl.cast(t * TILE, tl.int64) * k_row
    k0, k1 = load_parts(k_rows, near * k_row, there, D, D0, D1)
    scores = scores_of(q0, q1, k0, k1, factor, cap_inside, cap_outside, SOFTCAP, D1)
    seen = counted[:, None] & there[None, :] & (key[None, :] <= position[:, None])
    return tl.where(seen, scores, MASKED), key


@triton.jit(do_not_specialize=["capacity", "tile_capacity"])
def merge_slashes(
    # kept columns and, after them, ascending offsets: (sequences, 2 * X, capacity); their counts
    kept_ptr, count_ptr, capacity,
    # results: (sequences, X, tile_capacity) and (sequences, X)
    tile_ptr, tile_count_ptr, tile_capacity,
    X: tl.constexpr,
):  # fmt: skip
    """Cover slash offsets by disjoint tiles, from the smallest on."""
    x, sequence = tl.program_id(0) % X, (tl.program_id(0) // X).to(tl.int64)
    of = (2 * sequence + 1) * X + x
    offset_ptr = kept_ptr + of * capacity
    tile_ptr += (sequence * X + x) * tile_capacity
    count = tl.load(count_ptr + of)
    last = tl.load(offset_ptr, mask=count > 0, other=0)
    tl.store(tile_ptr, last, mask=count > 0)
    tiles = (count > 0).to(tl.int32)
    for i in range(1, count):
        offset = tl.load(offset_ptr + i)
        uncovered = offset > last
        last = tl.where(uncovered & (offset <= last + TILE), last + TILE, tl.maximum(offset, last))
        tl.store(tile_ptr + tiles, last, mask=uncovered)
        tiles += uncovered.to(tl.int32)
    tl.store(tile_count_ptr + sequence * X + x, tiles)
