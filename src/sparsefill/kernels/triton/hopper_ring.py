"""What the partitions of the Hopper kernel share, and its producer: tiles through a ring.

Tiles are named by their distance: from their first key to the end of the first row block.
Slash tile `o` lies at distance `o + 64` for the first row block and at `o` for the second, so
one ascending merge of both gives the order in which all three partitions meet the tiles;
each partition merges for itself. Further tiles are listed by where they begin, and read from
the last one on: then their distances ascend too.

A slot of the ring holds 64 rows of K and 64 of V, each with a barrier that says it is full
(one arrival, and the bytes of a copy) and one that says it is empty (one arrival of each
consumer). A consumer also awaits and releases what it does not read: else it could arrive
twice at a turn of the ring in which the other one did not yet.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
)

from sparsefill.kernels.triton.gluon_names import load_rows, load_tile, meet

TILE = gl.constexpr(64)
FAR = gl.constexpr(1 << 30)  # beyond every key and distance, and twice it still fits int32


# ---- the tiles of two row blocks, in one order ----


@gluon.jit
def pass_tile(passed, place, distance, first_ptr, count, shift, SIGN: gl.constexpr):
    """Step over a tile that was passed: place and distance of the next one of its row block."""
    place += passed.to(gl.int32)
    there = passed & (place < count)
    listed = gl.load(first_ptr + SIGN * place, mask=there, other=0)
    following = gl.where(there, shift + SIGN * listed, FAR)
    return place, gl.where(passed, following, distance)


@gluon.jit
def pass_tiles(passed0, passed1, place0, place1, distance0, distance1, lists, SIGN: gl.constexpr):
    """Step over the tiles that were passed, of both row blocks."""
    first0, count0, shift0, first1, count1, shift1 = lists
    place0, distance0 = pass_tile(passed0, place0, distance0, first0, count0, shift0, SIGN)
    place1, distance1 = pass_tile(passed1, place1, distance1, first1, count1, shift1, SIGN)
    return place0, place1, distance0, distance1


@gluon.jit
def first_tiles(lists, SIGN: gl.constexpr):
    """Stand at the first tile of each row block; an empty list begins FAR away."""
    first0, count0, shift0, first1, count1, shift1 = lists
    listed0 = gl.load(first0, mask=count0 > 0, other=0)
    listed1 = gl.load(first1, mask=count1 > 0, other=0)
    distance0 = gl.where(count0 > 0, shift0 + SIGN * listed0, FAR)
    distance1 = gl.where(count1 > 0, shift1 + SIGN * listed1, FAR)
    return 0, 0, distance0, distance1


@gluon.jit
def stand(turn, STAGES: gl.constexpr):
    """Tell the slot of a turn of the ring, and the phase in which its barriers are."""
    return turn % STAGES, (turn // STAGES) & 1


@gluon.jit
def release_slot(slot, phase, ring):
    """Release a slot that the other row block reads."""
    _, _, k_full, v_full, k_empty, v_empty = ring
    mbarrier.wait(k_full.index(slot), phase)
    mbarrier.arrive(k_empty.index(slot), count=1)
    mbarrier.wait(v_full.index(slot), phase)
    mbarrier.arrive(v_empty.index(slot), count=1)


# ---- producer ----


@gluon.jit
def produce(
    q_tiles, k_tiles, v_tiles, k_ptr, k_row, v_ptr, v_row,
    q_slots, q_full, ring, sequence, head, kv_head, first_row, keys, end,
    slash_lists, further_lists, columns, column_ptr,
    D: gl.constexpr, HAS_SLASHES: gl.constexpr, HAS_COLUMNS: gl.constexpr,
    HAS_TILES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy Q, and K and V of every tile and column that either row block reads."""
    mbarrier.expect(q_full, 2 * TILE * D * 2)
    for which in gl.static_range(2):
        place = [sequence, head, first_row + which * TILE, 0]
        load_tile(q_tiles, place, q_full, q_slots.index(which))
    source = (k_ptr, k_row, v_ptr, v_row)
    tiles = (k_tiles, v_tiles, sequence, kv_head)
    turn = 0
    if HAS_SLASHES:
        turn = produce_tiles(turn, tiles, source, ring, keys, end, slash_lists, 1, D, STAGES)
    if HAS_TILES:
        turn = produce_tiles(turn, tiles, source, ring, keys, end, further_lists, -1, D, STAGES)
    if HAS_COLUMNS:
        produce_columns(turn, source, ring, columns, column_ptr, D, STAGES)


@gluon.jit
def produce_tiles(
    turn, tiles, source, ring, keys, end, lists,
    SIGN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy the tiles of one kind of list; those with keys past the last are gathered.

    A sequence's padding may hold NaN, which a weight of 0 would not hide; the copy engine
    only knows where the batch ends, and puts zeros there and before key 0.
    """
    k_tiles, v_tiles, sequence, kv_head = tiles
    k_slots, v_slots, k_full, v_full, k_empty, v_empty = ring
    BYTES: gl.constexpr = TILE * D * 2
    place0, place1, distance0, distance1 = first_tiles(lists, SIGN)
    while gl.minimum(distance0, distance1) < FAR:
        nearest = gl.minimum(distance0, distance1)
        start = end - nearest
        slot, phase = stand(turn, STAGES)
        if start + TILE <= keys:
            mbarrier.wait(k_empty.index(slot), phase ^ 1)
            mbarrier.expect(k_full.index(slot), BYTES)
            place = [sequence, kv_head, start, 0]
            load_tile(k_tiles, place, k_full.index(slot), k_slots.index(slot))
            mbarrier.wait(v_empty.index(slot), phase ^ 1)
            mbarrier.expect(v_full.index(slot), BYTES)
            load_tile(v_tiles, place, v_full.index(slot), v_slots.index(slot))
        else:
            near = gl.arange(0, TILE, gl.SliceLayout(1, gather_layout(D)))
            key = gl.maximum(gl.minimum(start + near, keys - 1), 0)
            gather(slot, phase, source, ring, key, D)
            async_copy.wait_group(0)
            tell_gathered(slot, ring)
        place0, place1, distance0, distance1 = pass_tiles(
            distance0 == nearest, distance1 == nearest,
            place0, place1, distance0, distance1, lists, SIGN,
        )  # fmt: skip
        turn += 1
    return turn


@gluon.jit
def produce_columns(turn, source, ring, columns, column_ptr, D: gl.constexpr, STAGES: gl.constexpr):
    """Gather columns, 64 at a time; consumers hear of them while the next 64 are gathered."""
    near = gl.arange(0, TILE, gl.SliceLayout(1, gather_layout(D)))
    for c in range(0, columns, TILE):
        slot, phase = stand(turn, STAGES)
        key = gl.load(column_ptr + gl.minimum(c + near, columns - 1))
        gather(slot, phase, source, ring, key, D)
        if c > 0:
            async_copy.wait_group(1)
            tell_gathered((turn - 1) % STAGES, ring)
        turn += 1
    if columns > 0:
        async_copy.wait_group(0)
        tell_gathered((turn - 1) % STAGES, ring)


@gluon.constexpr_function
def gather_layout(D):
    """Lay out (64, D) elements for copies of 16 bytes."""
    return gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])


@gluon.jit
def gather(slot, phase, source, ring, key, D: gl.constexpr):
    """Begin to copy 64 rows of K and V, as one group."""
    k_ptr, k_row, v_ptr, v_row = source
    k_slots, v_slots, _, _, k_empty, v_empty = ring
    column = gl.arange(0, D, gl.SliceLayout(0, gather_layout(D)))
    key = key.to(gl.int64)
    mbarrier.wait(k_empty.index(slot), phase ^ 1)
    k_rows = k_ptr + (key * k_row)[:, None] + column[None, :]
    load_rows(k_slots.index(slot).reshape([TILE, D]), k_rows)
    mbarrier.wait(v_empty.index(slot), phase ^ 1)
    v_rows = v_ptr + (key * v_row)[:, None] + column[None, :]
    load_rows(v_slots.index(slot).reshape([TILE, D]), v_rows)
    async_copy.commit_group()


@gluon.jit
def tell_gathered(slot, ring):
    """Hand a slot whose rows have arrived to the consumers."""
    _, _, k_full, v_full, _, _ = ring
    fence_async_shared()  # matrix units read through another proxy than these copies wrote
    meet()  # one thread arrives for all
    mbarrier.arrive(k_full.index(slot), count=1)
    mbarrier.arrive(v_full.index(slot), count=1)
