"""Attention over an index on Hopper: a producer and two consumers for two row blocks.

    producer: for each tile that either row block reads, then 64 columns at a time:
        K, V -> the next slot of a ring in shared memory
    each consumer (64 queries, Q in registers): for each slot, if its row block reads it:
        S = Q K^T; top' = max(top, S); P = 2^(S - top')
        acc = 2^(top - top') acc + P V; total = 2^(top - top') total + sum(P)
    out = acc / total; lse = ln(2) (top + log2(total))

A tile that both row blocks read is copied once; a whole one is not masked. `hopper_ring.py`
tells in which order tiles come and how slots change hands.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparsefill.gpu.scores import LOWEST, MASKED
from sparsefill.kernels.triton.attend import LN_2
from sparsefill.kernels.triton.hopper_ring import (
    FAR,
    TILE,
    first_tiles,
    gather_layout,
    pass_tiles,
    produce,
    release_slot,
    stand,
)
from sparsefill.kernels.triton.plan import PLANNED


@gluon.jit(do_not_specialize=["n", "rows", "slash_capacity", "column_capacity", "words", "steps"])
def hopper_kernel(
    # tiles of tensors (b, heads, length, d)
    q_tiles, k_tiles, v_tiles,
    # tensors; strides in elements, those of d are 1
    k_ptr, k_sequence, k_head, k_row,
    v_ptr, v_sequence, v_head, v_row,
    out_ptr, out_sequence, out_head, out_row,
    lse_ptr,
    # lengths of each sequence
    query_length_ptr, key_length_ptr,
    # lists of the index, and what was planned from them
    slash_ptr, column_ptr, row_ptr_ptr, tile_ptr, plan_ptr, covered_ptr,
    # sizes
    n, rows, slash_capacity, column_capacity, words, steps,
    # maths
    factor, cap_inside, cap_outside,
    H: gl.constexpr, G: gl.constexpr, X: gl.constexpr, D: gl.constexpr,
    HAS_SLASHES: gl.constexpr, HAS_COLUMNS: gl.constexpr, HAS_TILES: gl.constexpr,
    SOFTCAP: gl.constexpr, STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Attend two row blocks; programs of one KV head are neighbours, long row blocks first."""
    R: gl.constexpr = H // G
    program = gl.program_id(0)
    pairs = (rows + 1) // 2
    block = (pairs - 1 - program // R % pairs) * 2
    rest = program // R // pairs
    kv_head, sequence = rest % G, rest // G
    head = kv_head * R + program % R
    index_head = sequence.to(gl.int64) * X + (head if X == H else kv_head)

    queries = gl.load(query_length_ptr + sequence)
    keys = gl.load(key_length_ptr + sequence)
    end = (block + 1) * TILE + keys - queries  # of the first row block
    second = block + 1 < rows  # whether there is a second one

    # ---- what each row block reads ----
    plan = plan_ptr + (index_head * rows + block) * PLANNED
    slash_ptr += index_head * slash_capacity
    slashes0, slashes1, columns0, columns1 = 0, 0, 0, 0
    if HAS_SLASHES:
        slashes0 = gl.load(plan)
        slashes1 = gl.load(plan + PLANNED, mask=second, other=0)
    column_ptr += index_head * column_capacity
    if HAS_COLUMNS:
        columns0 = gl.load(plan + 1)
        columns1 = gl.load(plan + PLANNED + 1, mask=second, other=0)
    tile0, tile1, tile2 = 0, 0, 0
    if HAS_TILES:
        row_ptr = row_ptr_ptr + index_head * (rows + 1) + block
        tile0 = gl.load(row_ptr)
        tile1 = gl.load(row_ptr + 1)
        tile2 = gl.load(row_ptr + 2, mask=second, other=0)
        tile1 = gl.where(block * TILE < queries, tile1, tile0)
        tile2 = gl.where((block + 1) * TILE < queries, tile2, tile1)
    # of each row block: first entry, how many, what to add to an entry for its distance
    slash_lists = (slash_ptr, slashes0, TILE, slash_ptr, slashes1, 0)
    further_lists = slash_lists
    if HAS_TILES:
        last0, last1 = tile_ptr + tile1 - 1, tile_ptr + tile2 - 1
        further_lists = (last0, tile1 - tile0, end, last1, tile2 - tile1, end)
    columns = gl.maximum(columns0, columns1)

    # ---- a slot of Q for each consumer, a ring of K and V ----
    dtype: gl.constexpr = k_tiles.dtype
    q_slots = gl.allocate_shared_memory(dtype, [2, 1, 1, TILE, D], q_tiles.layout)
    k_slots = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, TILE, D], k_tiles.layout)
    v_slots = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, TILE, D], v_tiles.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_full.index(slot), count=1)
        mbarrier.init(v_full.index(slot), count=1)
        mbarrier.init(k_empty.index(slot), count=2)  # consumers
        mbarrier.init(v_empty.index(slot), count=2)
    ring = (k_slots, v_slots, k_full, v_full, k_empty, v_empty)

    out_ptr += sequence.to(gl.int64) * out_sequence + head.to(gl.int64) * out_head
    lse_ptr += (sequence.to(gl.int64) * H + head) * n
    covered_ptr += index_head * words
    results = (out_ptr, out_row, lse_ptr, n)
    maths = (factor, cap_inside, cap_outside)
    first_row, second_row = block * TILE, block * TILE + TILE
    gl.warp_specialize(
        [
            (consume, (
                0, q_slots, q_full, ring, first_row, queries, keys, end, slash_lists,
                further_lists, columns, columns0, column_ptr, covered_ptr, tile_ptr, tile0, tile1,
                steps, maths, results, D, HAS_SLASHES, HAS_COLUMNS, HAS_TILES, SOFTCAP, STAGES,
            )),
            (consume, (
                1, q_slots, q_full, ring, second_row, queries, keys, end, slash_lists,
                further_lists, columns, columns1, column_ptr, covered_ptr, tile_ptr, tile1, tile2,
                steps, maths, results, D, HAS_SLASHES, HAS_COLUMNS, HAS_TILES, SOFTCAP, STAGES,
            )),
            (produce, (
                q_tiles, k_tiles, v_tiles,
                k_ptr + sequence.to(gl.int64) * k_sequence + kv_head.to(gl.int64) * k_head, k_row,
                v_ptr + sequence.to(gl.int64) * v_sequence + kv_head.to(gl.int64) * v_head, v_row,
                q_slots, q_full, ring, sequence, head, kv_head, first_row, keys, end,
                slash_lists, further_lists, columns, column_ptr,
                D, HAS_SLASHES, HAS_COLUMNS, HAS_TILES, STAGES,
            )),
        ],
        [4, 4],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


# ---- consumers ----


@gluon.constexpr_function
def product_layout(COLUMNS):
    """Lay out (64, COLUMNS) elements as four warps' matrix units put them."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])


@gluon.jit
def consume(
    WHICH: gl.constexpr, q_slots, q_full, ring, first_row, queries, keys, end, slash_lists,
    further_lists, columns, own_columns, column_ptr, covered_ptr, tile_ptr, tile_begin, tile_end,
    steps, maths, results, D: gl.constexpr, HAS_SLASHES: gl.constexpr, HAS_COLUMNS: gl.constexpr,
    HAS_TILES: gl.constexpr, SOFTCAP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attend one of the two row blocks."""
    out_ptr, out_row, lse_ptr, n = results
    S: gl.constexpr = product_layout(TILE)
    A: gl.constexpr = product_layout(D)
    row = first_row + gl.arange(0, TILE, gl.SliceLayout(1, S))
    position = row + keys - queries
    acc = gl.zeros([TILE, D], gl.float32, A)
    top = gl.full([TILE], LOWEST, gl.float32, gl.SliceLayout(1, S))
    total = gl.zeros([TILE], gl.float32, gl.SliceLayout(1, S))
    mbarrier.wait(q_full, 0)
    q = q_slots.index(WHICH).reshape([TILE, D]).load(gl.DotOperandLayout(0, S, 2))

    turn = 0
    if HAS_SLASHES:
        turn, acc, top, total = consume_tiles(
            WHICH, turn, acc, top, total, q, ring, position, end, slash_lists, maths,
            1, D, SOFTCAP, STAGES,
        )  # fmt: skip
    if HAS_TILES:
        turn, acc, top, total = consume_tiles(
            WHICH, turn, acc, top, total, q, ring, position, end, further_lists, maths,
            -1, D, SOFTCAP, STAGES,
        )  # fmt: skip
    if HAS_COLUMNS:
        covers = (covered_ptr, tile_ptr, tile_begin, tile_end, steps)
        acc, top, total = consume_columns(
            turn, acc, top, total, q, ring, position, end + WHICH * TILE, columns, own_columns,
            column_ptr, covers, maths, D, HAS_SLASHES, HAS_TILES, SOFTCAP, STAGES,
        )  # fmt: skip

    # rows that saw no key, and padding, give zeros and -inf
    some = (row < queries) & (total > 0.0)
    total = gl.where(some, total, 1.0)
    lse = gl.where(some, (top + gl.log2(total)) * LN_2, float("-inf"))
    gl.store(lse_ptr + row, lse, mask=row < n)
    inverse = gl.convert_layout(1.0 / total, gl.SliceLayout(1, A))
    some = gl.convert_layout(some, gl.SliceLayout(1, A))
    out = gl.where(some[:, None], acc * inverse[:, None], 0.0)
    W: gl.constexpr = gather_layout(D)
    out = gl.convert_layout(out.to(q.dtype), W)
    row = first_row + gl.arange(0, TILE, gl.SliceLayout(1, W))
    column = gl.arange(0, D, gl.SliceLayout(0, W))
    place = out_ptr + (row.to(gl.int64) * out_row)[:, None] + column[None, :]
    gl.store(place, out, mask=(row < n)[:, None])


@gluon.jit
def consume_tiles(
    WHICH: gl.constexpr, turn, acc, top, total, q, ring, position, end, lists, maths,
    SIGN: gl.constexpr, D: gl.constexpr, SOFTCAP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attend to those tiles of one kind of list that this row block reads."""
    S: gl.constexpr = product_layout(TILE)
    near = gl.arange(0, TILE, gl.SliceLayout(0, S))
    last_whole = end + (WHICH - 2) * TILE + 1  # its last key is the first query's own
    place0, place1, distance0, distance1 = first_tiles(lists, SIGN)
    while gl.minimum(distance0, distance1) < FAR:
        nearest = gl.minimum(distance0, distance1)
        start = end - nearest
        passed0, passed1 = distance0 == nearest, distance1 == nearest
        place0, place1, distance0, distance1 = pass_tiles(
            passed0, passed1, place0, place1, distance0, distance1, lists, SIGN
        )
        slot, phase = stand(turn, STAGES)
        if passed1 if WHICH else passed0:
            scores = score_slot(slot, phase, q, ring, maths, D, SOFTCAP)
            if (start < 0) | (start > last_whole):
                scores = mask_scores(scores, start + near, position)
            acc, top, total = add_slot(slot, phase, scores, acc, top, total, q.dtype, ring, D)
        else:
            release_slot(slot, phase, ring)
        turn += 1
    return turn, acc, top, total


@gluon.jit
def consume_columns(
    turn, acc, top, total, q, ring, position, own_end, columns, own_columns, column_ptr, covers,
    maths, D: gl.constexpr, HAS_SLASHES: gl.constexpr, HAS_TILES: gl.constexpr,
    SOFTCAP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attend to columns that no tile of this row block covers.

    Which columns the next 64 are is loaded with the present 64, and what covers these is
    loaded before their scores are made and used after: nobody waits for either.
    """
    near = gl.arange(0, TILE, gl.BlockedLayout([1], [32], [4], [0]))
    key = gl.load(column_ptr + near, mask=near < own_columns, other=0)
    for c in range(0, columns, TILE):
        slot, phase = stand(turn, STAGES)
        if c < own_columns:
            place = c + near
            listed = place < own_columns
            word, before = look_up(key, listed, own_end, covers, HAS_SLASHES, HAS_TILES)
            following = gl.load(column_ptr + TILE + place, mask=place + TILE < own_columns, other=0)
            scores = score_slot(slot, phase, q, ring, maths, D, SOFTCAP)
            in_slash_tile = ((word >> ((own_end - 1 - key) % 32)) & 1) != 0
            covered = in_slash_tile | (key < before + TILE)
            own = gl.where(listed & ~covered, key, FAR)
            own = gl.convert_layout(own, gl.SliceLayout(0, product_layout(TILE)))
            scores = mask_scores(scores, own, position)
            acc, top, total = add_slot(slot, phase, scores, acc, top, total, q.dtype, ring, D)
            key = following
        else:
            release_slot(slot, phase, ring)
        turn += 1
    return acc, top, total


@gluon.jit
def look_up(key, listed, own_end, covers, HAS_SLASHES: gl.constexpr, HAS_TILES: gl.constexpr):
    """Load what tells whether tiles cover columns.

    Returns:
        the word with a bit for each column's distance; where the further tile begins that is
        the last one to begin at or before the column, or far enough before key 0.
    """
    covered_ptr, tile_ptr, tile_begin, tile_end, steps = covers
    word = gl.full_like(key, 0)
    before = gl.full_like(key, 0) - TILE
    if HAS_SLASHES:
        word = gl.load(covered_ptr + (own_end - 1 - key) // 32, mask=listed, other=0)
    if HAS_TILES:
        first, last = gl.full_like(key, 0) + tile_begin, gl.full_like(key, 0) + tile_end
        for _ in range(steps):  # the first tile that begins after the key
            middle = first + (last - first) // 2
            open_ = listed & (first < last)
            start = gl.load(tile_ptr + middle, mask=open_, other=0)
            first = gl.where(open_ & (start <= key), middle + 1, first)
            last = gl.where(open_ & (start > key), middle, last)
        some = listed & (first > tile_begin)
        before = gl.load(tile_ptr + first - 1, mask=some, other=-TILE)
    return word, before


# ---- one slot ----


@gluon.jit
def score_slot(slot, phase, q, ring, maths, D: gl.constexpr, SOFTCAP: gl.constexpr):
    """Score the queries against the keys of a slot, in powers of two, and release the keys."""
    factor, cap_inside, cap_outside = maths
    k_slots, _, k_full, _, k_empty, _ = ring
    k = k_slots.index(slot).reshape([TILE, D])
    nothing = gl.zeros([TILE, TILE], gl.float32, product_layout(TILE))
    mbarrier.wait(k_full.index(slot), phase)
    scores = warpgroup_mma(q, k.permute([1, 0]), nothing, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(k_empty.index(slot), count=1)
    if SOFTCAP:
        # tanh(x) = 1 - 2 / (e^2x + 1)
        power = gl.exp2(scores * cap_inside)
        scores = (1.0 - 2.0 / (power + 1.0)) * cap_outside
    else:
        scores = scores * factor
    return scores


@gluon.jit
def mask_scores(scores, key, position):
    """Hide the keys below 0, and from each query those after it."""
    seen = (key >= 0)[None, :] & (key[None, :] <= position[:, None])
    return gl.where(seen, scores, MASKED)


@gluon.jit
def add_slot(slot, phase, scores, acc, top, total, dtype: gl.constexpr, ring, D: gl.constexpr):
    """Add the values of a slot to the running softmax, and release them."""
    _, v_slots, _, v_full, _, v_empty = ring
    A: gl.constexpr = product_layout(D)
    v = v_slots.index(slot).reshape([TILE, D])
    raised = gl.maximum(top, gl.max(scores, 1))
    weights = gl.exp2(scores - raised[:, None])
    alpha = gl.exp2(top - raised)
    total = total * alpha + gl.sum(weights, 1)
    weights = gl.convert_layout(weights.to(dtype), gl.DotOperandLayout(0, A, 2))
    acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, A))[:, None]
    mbarrier.wait(v_full.index(slot), phase)
    acc = warpgroup_mma(weights, v, acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=[acc])
    mbarrier.arrive(v_empty.index(slot), count=1)
    return acc, raised, total
