"""The index format: its words made executable, its invariants, and what it costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool
from torch import Tensor

from sparsefill import ShapeError, SparseIndex, estimate
from sparsefill.index import NEVER
from sparsefill.tile import TILE
from tests.support.inputs import PATTERNS, causal_mask, patterns_of, random_qkv
from tests.support.strategies import Recipe, estimates, indices


def keys_in_words(index: SparseIndex, s: int, x: int, i: int) -> set[int]:
    """List the keys that a row block reads, following the docstring word by word."""
    n, m = int(index.query_lengths[s]), int(index.key_lengths[s])
    end = TILE * (i + 1) + m - n
    offsets = index.slash_tiles[s, x, : index.slash_counts[s, x]].tolist()
    starts = [end - TILE - offset for offset in offsets]
    if index.row_ptr is not None and index.tile_starts is not None:
        starts += index.tile_starts[slice(*index.row_ptr[s, x, i : i + 2].tolist())].tolist()
    keys = {key for start in starts for key in range(start, start + TILE)}
    keys |= set(index.column_indices[s, x, : index.column_counts[s, x]].tolist())
    return {key for key in keys if 0 <= key < min(end, m)}


def mask_in_words(index: SparseIndex) -> Bool[Tensor, "b x n m"]:
    mask = torch.zeros(index.b, index.x, index.n, index.m, dtype=torch.bool)
    for s in range(index.b):
        n, m = int(index.query_lengths[s]), int(index.key_lengths[s])
        for x in range(index.x):
            for i in range(-(-n // TILE)):
                keys = torch.tensor(sorted(keys_in_words(index, s, x, i)), dtype=torch.long)
                kept = torch.zeros(index.m, dtype=torch.bool)
                kept[keys] = True
                rows = slice(i * TILE, min(n, (i + 1) * TILE))
                mask[s, x, rows, :m] = kept[:m] & causal_mask(n, m)[rows]
    return mask


def check_invariants(index: SparseIndex) -> None:
    assert bool((index.slash_counts <= index.slash_tiles.shape[-1]).all())
    assert bool((index.column_counts <= index.column_indices.shape[-1]).all())
    for s in range(index.b):
        for x in range(index.x):
            slash = index.slash_tiles[s, x, : index.slash_counts[s, x]].long()
            columns = index.column_indices[s, x, : index.column_counts[s, x]].long()
            assert bool((slash >= 0).all())
            assert bool((slash.diff() >= TILE).all())
            assert bool((columns.diff() > 0).all())
            assert bool(((columns >= 0) & (columns < index.m)).all())
            if index.row_ptr is None or index.tile_starts is None:
                assert index.row_ptr is index.tile_starts
                continue
            assert index.row_ptr.shape[-1] == index.row_blocks + 1
            for i, end in enumerate(index.row_block_ends()[s].tolist()):
                tiles = index.tile_starts[slice(*index.row_ptr[s, x, i : i + 2].tolist())].long()
                assert bool((tiles.diff() >= TILE).all())
                if i * TILE < int(index.query_lengths[s]):
                    assert bool(((tiles[:, None] - (end - TILE - slash)).abs() >= TILE).all())


def round_trip(index: SparseIndex) -> SparseIndex:
    return SparseIndex.from_mask(
        index.to_mask(), query_lengths=index.query_lengths, key_lengths=index.key_lengths
    )


def block_mask(*runs: tuple[int, int, int], n: int = 128) -> Bool[Tensor, "1 1 n n"]:
    """Keep keys `first..end-1` in row block `i`, for each (i, first, end)."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i, first, end in runs:
        mask[i * TILE : (i + 1) * TILE, first:end] = True
    return (mask & causal_mask(n, n))[None, None]


@given(recipe=indices() | estimates())
def test_the_mask_is_what_the_docstring_says(recipe: Recipe):
    index = recipe()
    check_invariants(index)
    assert torch.equal(index.to_mask(), mask_in_words(index))


@given(recipe=indices() | estimates(), data=st.data())
def test_cells_of_rows_are_those_of_the_whole(recipe: Recipe, data: st.DataObject):
    index = recipe()
    first = TILE * data.draw(st.integers(0, index.row_blocks - 1))
    rows = slice(first, data.draw(st.integers(first + 1, index.n)))
    own = index.of_rows(rows)
    own.check_lists()
    mask = mask_in_words(own)  # of queries that there are, at the positions that they had
    assert torch.equal(mask, index.to_mask()[:, :, rows])
    assert torch.equal(own.to_mask(), mask)


@pytest.mark.parametrize("rows", [slice(1, 130), slice(64, 64), slice(192, 256), slice(128, 64)])
def test_rows_that_begin_inside_a_row_block_are_refused(rows: slice):
    index = SparseIndex.from_mask(causal_mask(130, 130)[None, None])
    with pytest.raises(ShapeError, match="rows of an index must begin at a multiple of 64"):
        index.of_rows(rows)


@given(recipe=indices() | estimates())
def test_a_round_trip_through_a_mask_changes_no_cell(recipe: Recipe):
    index = recipe()
    again = round_trip(index)
    check_invariants(again)
    assert torch.equal(again.to_mask(), index.to_mask())


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(block_mask(), id="nothing"),
        pytest.param(block_mask((0, 0, 64), (1, 0, 128)), id="everything"),
        pytest.param(block_mask((1, 17, 81)), id="unaligned-tile"),
        pytest.param(block_mask((1, 0, 5)), id="tile-cut-by-key-0"),
        pytest.param(block_mask((1, 120, 128)), id="tile-cut-by-the-diagonal"),
        pytest.param(block_mask((0, 9, 10), (1, 9, 10)), id="column"),
        pytest.param(block_mask((0, 9, 10), (1, 8, 73), (1, 100, 128)), id="column-beside-tile"),
        pytest.param(block_mask((0, 0, 64), (1, 3, 131), n=130), id="partial-last-row-block"),
    ],
)
def test_hand_made_masks_survive_a_round_trip(mask: Tensor):
    index = SparseIndex.from_mask(mask)
    check_invariants(index)
    assert torch.equal(index.to_mask(), mask)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        pytest.param(torch.ones(1, 1, 8, 8, dtype=torch.bool), "beyond causality", id="future"),
        pytest.param(torch.eye(8, dtype=torch.bool)[None, None], "different keys", id="per-query"),
        pytest.param(block_mask((1, 9, 10)), "row block 1 keeps keys 9..9", id="lone-key"),
        pytest.param(
            block_mask((2, 9, 74), n=192), "row block 2 keeps keys 9..73", id="tile-and-a-key"
        ),
    ],
)
def test_a_mask_without_an_index_is_refused(mask: Tensor, why: str):
    with pytest.raises(ShapeError, match=why):
        SparseIndex.from_mask(mask)


def test_a_mask_outside_the_lengths_is_refused():
    mask, five = block_mask((0, 0, 64)), torch.tensor([5])
    with pytest.raises(ShapeError, match="outside the 5 queries and 128 keys"):
        SparseIndex.from_mask(mask, query_lengths=five)


@given(recipe=indices() | estimates())
def test_a_row_block_lists_each_key_once(recipe: Recipe):
    index = recipe()
    counts = index.key_counts()
    for s in range(index.b):
        for x in range(index.x):
            for i in range(-(-int(index.query_lengths[s]) // TILE)):
                place = (torch.tensor([p]) for p in (s, x, i))
                keys = index.keys_of(*place)[0]
                keys = keys[keys < NEVER].tolist()
                assert keys == sorted(keys_in_words(index, s, x, i))
                assert len(keys) <= int(counts[s, x, i])


def keys_by_hand(index: SparseIndex, s: int, x: int, i: int) -> tuple[int, int]:
    """Count tiles whole; with the columns in reach, and with those that no tile covers."""
    end = int(index.row_block_ends()[s, i])
    starts = [end - TILE - o for o in index.sorted_slash_tiles()[s, x].tolist() if o < end]
    if index.row_ptr is not None and index.tile_starts is not None:
        first, last = index.row_ptr[s, x, i : i + 2].tolist()
        starts += index.tile_starts[first:last].tolist()
    inside = {key for start in starts for key in range(start, start + TILE)}
    columns = index.sorted_columns()[s, x].tolist()
    tiles, reached = TILE * len(starts), [c for c in columns if c < end]
    return tiles + len(reached), tiles + sum(c not in inside for c in reached)


@given(recipe=indices() | estimates())
def test_keys_read_leave_out_columns_inside_tiles(recipe: Recipe):
    index = recipe()
    counts, read = index.key_counts(), index.keys_read()
    for s in range(index.b):
        for x in range(index.x):
            row_blocks = range(-(-int(index.query_lengths[s]) // TILE))
            found = [keys_by_hand(index, s, x, i) for i in row_blocks]
            assert counts[s, x, : len(found)].tolist() == [reached for reached, _ in found]
            assert int(read[s, x]) == sum(alone for _, alone in found)


@given(recipe=indices() | estimates())
def test_key_counts_are_whole_tiles_and_columns(recipe: Recipe):
    index = recipe()
    counts = index.key_counts()
    beyond = torch.arange(index.row_blocks) * TILE >= index.query_lengths[:, None]
    assert not counts.masked_select(beyond[:, None].expand_as(counts)).any()
    further = 0 if index.row_ptr is None else index.row_ptr.diff()
    lines = (TILE * index.slash_counts + index.column_counts)[..., None]
    assert bool((counts <= lines + TILE * further).all())
    # disjoint tiles that exist reach at most 63 keys past either end of what can be seen
    end = index.row_block_ends()[:, None].clamp(min=0)
    tiles = (counts - index.column_counts[..., None]).clamp(min=0)
    assert bool((tiles <= end + 2 * TILE).all())


@pytest.mark.parametrize("name", [*PATTERNS, "mixed"])
def test_an_index_prints_its_size(name: str):
    qkv = random_qkv(h=6)
    index = estimate(patterns_of(name, 6), qkv.q, qkv.k)
    assert str(index).startswith("SparseIndex(b=1, x=6, n=200, m=200")
    assert f"{index.nbytes} bytes" in str(index)
