"""The largest values of each row, as ascending places: one program for each row.

    threshold = the value that `budget` others reach, found 8 bits at a time by histograms
    kept = places whose value is above it, and the first of those equal to it

Five passes over a row, nothing sorted. A value of minus infinity is never kept; infinite ones
are forced, and all of them are kept whatever the budget.
"""

from __future__ import annotations

import triton
import triton.language as tl

DIGIT = tl.constexpr(256)  # 8 bits of a value at a time
FORCED = tl.constexpr(255)  # the highest digit holds infinity (and whatever exceeds 1.7e38)


@triton.jit(do_not_specialize=["first", "strip", "lists", "places", "width", "capacity"])
def keep_largest(
    # values (sequences, lists, strip, width), of which the first `length` of a row count;
    # lengths (sequences, places); budgets (lists)
    value_ptr, length_ptr, budget_ptr,
    # results: (sequences, lists, places, capacity) and (sequences, lists, places)
    kept_ptr, count_ptr,
    # sizes: the strip holds the rows of places first .. first + strip
    first, strip, lists, places, width, capacity,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """List where one row's largest values are."""
    row = tl.program_id(0).to(tl.int64)
    of, place = row // strip, first + row % strip
    exists = place < places
    length = tl.load(length_ptr + of // lists * places + place, mask=exists, other=0)
    wanted = tl.load(budget_ptr + of % lists)
    value_ptr += row * width
    kept_ptr += (of * places + place) * capacity
    digit = tl.arange(0, DIGIT)

    prefix = tl.full((), 0, tl.uint32)
    for step in tl.static_range(4):
        counts = tl.zeros((DIGIT,), tl.int32)
        for start in range(0, length, BLOCK):
            key, there = load_keys(value_ptr, start, length, BLOCK)
            if step > 0:
                there &= (key >> (32 - 8 * step)) == prefix
            own = (key >> (24 - 8 * step)) & 255
            counts += tl.histogram(own.to(tl.int32), DIGIT, mask=there)
        if step == 0:
            wanted = tl.maximum(wanted, tl.sum(tl.where(digit == FORCED, counts, 0)))
            wanted = tl.minimum(wanted, tl.sum(counts))
        reached = tl.sum(counts) - tl.cumsum(counts) + counts  # by this digit and all above
        chosen = tl.max(tl.where(reached >= wanted, digit, 0))
        wanted -= tl.sum(tl.where(digit > chosen, counts, 0))
        prefix = prefix * 256 + chosen.to(tl.uint32)

    # `wanted` is now how many of those equal to the threshold are kept
    kept, equal = 0, 0
    for start in range(0, length, BLOCK):
        key, there = load_keys(value_ptr, start, length, BLOCK)
        same = there & (key == prefix)
        early = equal + tl.cumsum(same.to(tl.int32)) <= wanted
        keep = (there & (key > prefix)) | (same & early)
        order = kept + tl.cumsum(keep.to(tl.int32)) - 1
        tl.store(kept_ptr + order, start + tl.arange(0, BLOCK), mask=keep & (order < capacity))
        kept += tl.sum(keep.to(tl.int32))
        equal += tl.sum(same.to(tl.int32))
    tl.store(count_ptr + of * places + place, tl.minimum(kept, capacity), mask=exists)


@triton.jit
def load_keys(value_ptr, start, length, BLOCK: tl.constexpr):
    """Load values as unsigned integers of the same order, and which of them may be kept."""
    place = start + tl.arange(0, BLOCK)
    value = tl.load(value_ptr + place, mask=place < length, other=float("-inf"))
    bits = (value + 0.0).to(tl.int32, bitcast=True)  # of -0, too, that of 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = ordered.to(tl.uint32, bitcast=True) ^ 0x80000000
    return key, value > float("-inf")
