"""What to compute, as tensors: the cells that a pattern resolved to on one input.

Second of the three stages: `estimate` makes a `SparseIndex`, `attend` computes it.
The format is small at a million tokens because lines are stored once per head and not
once per row block; DESIGN.md tells why.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int, Int32, Int64
from torch import Tensor

from sparsefill.errors import ShapeError
from sparsefill.tile import TILE

SIZES = ("n", "m", "query_lengths", "key_lengths")
NEVER = torch.iinfo(torch.int32).max  # sorts after every key and offset; no query reaches it


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseIndex:
    """The cells to compute, for every sequence and head.

    Basics. Queries are served in row blocks of 64. With `m_b` keys and `n_b` queries in
    a sequence, query `p` sits at key position `p + m_b - n_b` and row block `i` ends
    before `row_block_end = 64 * (i + 1) + m_b - n_b`. Three lists name the keys that a
    row block reads; causality and the bound `m_b` then apply inside:

    * `slash_tiles`: offset `o` means the 64 keys `[row_block_end - 64 - o,
      row_block_end - o)`, in every row block. Ascending, at least 64 apart, `o >= 0`.
    * `column_indices`: single keys, the same in every row block. Ascending, unique.
    * `tile_starts[row_ptr[b, x, i] : row_ptr[b, x, i + 1]]`: first keys of the further
      64-key tiles of row block `i`. Above -64, ascending, at least 64 apart, apart from the
      slash tiles of that row block.

    Details. The head axis `x` is `h`, or `g` when the query heads of a group share one
    index. A key that both a column and a tile name counts once. The part of a tile
    below key 0 does not exist. Entries past a count are never read. `row_ptr` and
    `tile_starts` are None when no head chooses tiles per row block, so an index of
    lines takes O(verticals + slashes) memory per head whatever `n` is.

    Args:
        n: padded query length of the batch.
        m: padded key length of the batch.
    """

    n: int
    m: int
    query_lengths: Int32[Tensor, " b"]
    key_lengths: Int32[Tensor, " b"]
    slash_counts: Int32[Tensor, "b x"]
    slash_tiles: Int32[Tensor, "b x s"]
    column_counts: Int32[Tensor, "b x"]
    column_indices: Int32[Tensor, "b x c"]
    row_ptr: Int32[Tensor, "b x i_plus_1"] | None = None
    tile_starts: Int32[Tensor, " t"] | None = None

    @property
    def b(self) -> int:
        """Number of sequences."""
        return self.slash_counts.shape[0]

    @property
    def x(self) -> int:
        """Number of index heads: query heads, or KV heads when the group shares it."""
        return self.slash_counts.shape[1]

    @property
    def row_blocks(self) -> int:
        """Number of row blocks of the longest sequence."""
        return -(-self.n // TILE)

    @property
    def device(self) -> torch.device:
        """Device of every tensor of the index."""
        return self.slash_counts.device

    @property
    def nbytes(self) -> int:
        """Bytes that the index takes."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))

    def lists(self) -> dict[str, Any]:
        """Return the lists by name, without the lengths."""
        names = (field.name for field in fields(self))
        return {n: getattr(self, n) for n in names if n not in SIZES}

    def check_lists(self) -> None:
        """Raise unless every list has the type and shape that whoever reads it expects.

        Raises:
            ShapeError: a list has another dtype or shape.
        """
        axes = {
            "query_lengths": (self.b,),
            "key_lengths": (self.b,),
            "slash_counts": (self.b, self.x),
            "slash_tiles": (self.b, self.x, -1),
            "column_counts": (self.b, self.x),
            "column_indices": (self.b, self.x, -1),
            "row_ptr": (self.b, self.x, self.row_blocks + 1),
            "tile_starts": (-1,),
        }
        for name, shape in axes.items():
            tensor: Tensor | None = getattr(self, name)
            if tensor is None:  # only the last two may be missing
                continue
            sizes = zip(tensor.shape, shape, strict=False)
            fits = tensor.ndim == len(shape) and all(e in (-1, own) for own, e in sizes)
            if not fits or tensor.dtype != torch.int32 or tensor.device != self.device:
                raise ShapeError(
                    f"{name} of an index must be int32 of shape {shape} (-1: any) on"
                    f" {self.device}, got {tensor.dtype} of shape {tuple(tensor.shape)} on"
                    f" {tensor.device}"
                )

    def to(self, device: torch.device) -> SparseIndex:
        """Return this index with every tensor on a device."""
        if device == self.device:
            return self
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            n: v.to(device) if isinstance(v, Tensor) else v for n, v in values.items()
        }
        return SparseIndex(**moved)

    def contiguous(self) -> SparseIndex:
        """Return this index with every tensor contiguous."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        if all(v.is_contiguous() for v in values.values() if isinstance(v, Tensor)):
            return self
        made: dict[str, Any] = {
            n: v.contiguous() if isinstance(v, Tensor) else v for n, v in values.items()
        }
        return SparseIndex(**made)

    def of_rows(self, rows: slice) -> SparseIndex:
        """Return the cells of some queries, whose keys end at the last that they may see.

        Args:
            rows: from the start of a row block on.

        Example:
            >>> mask = torch.ones(1, 1, 130, 130, dtype=torch.bool).tril()
            >>> one = SparseIndex.from_mask(mask).of_rows(slice(64, 128))
            >>> one.n, one.m, one.key_lengths.tolist(), one.keys_read().tolist()
            (64, 130, [128], [[128]])
        """
        first, end, _ = rows.indices(self.n)
        if first % TILE or end <= first:
            raise ShapeError(
                f"rows of an index must begin at a multiple of {TILE} below {self.n} and hold"
                f" a query, got {rows}"
            )
        shift = self.key_lengths - self.query_lengths + first  # key position of the first one
        queries = (self.query_lengths - first).clamp(min=0, max=end - first)
        queries = queries.masked_fill(shift + queries <= 0, 0)  # all before the first key
        keys = torch.minimum(shift + queries, self.key_lengths).clamp(min=0)
        none = (queries == 0)[:, None]  # lines of such sequences would stand elsewhere
        blocks = slice(first // TILE, -(-end // TILE) + 1)
        return replace(
            self,
            n=end - first,
            query_lengths=queries,
            key_lengths=keys,
            slash_counts=self.slash_counts.masked_fill(none, 0),
            column_counts=self.column_counts.masked_fill(none, 0),
            row_ptr=None if self.row_ptr is None else self.row_ptr[:, :, blocks],
        )

    def sorted_slash_tiles(self) -> Int32[Tensor, "b x s"]:
        """Return the slash tiles with `NEVER` past each count, ready to be searched."""
        return _mask_past(self.slash_tiles, self.slash_counts)

    def sorted_columns(self) -> Int32[Tensor, "b x c"]:
        """Return the columns with `NEVER` past each count and from the key length on."""
        columns = _mask_past(self.column_indices, self.column_counts)
        return columns.masked_fill(columns >= self.key_lengths[:, None, None], NEVER)

    def row_block_ends(self) -> Int32[Tensor, "b i"]:
        """Return the nominal exclusive end of each row block, in key positions."""
        steps = torch.arange(1, self.row_blocks + 1, device=self.device, dtype=torch.int32)
        return steps * TILE + (self.key_lengths - self.query_lengths)[:, None]

    def query_positions(self) -> Int64[Tensor, "b rows"]:
        """Return the key position of every query, -1 where there is none.

        `rows` is `n` rounded up to whole row blocks.
        """
        query = torch.arange(self.row_blocks * TILE, device=self.device)
        position = query + (self.key_lengths - self.query_lengths)[:, None]
        return position.masked_fill(query >= self.query_lengths[:, None], -1)

    def key_counts(self) -> Int64[Tensor, "b x i"]:
        """Count the keys that each row block has in reach, tiles counted whole.

        Columns inside tiles are counted too, although they are not read twice: `keys_read`
        leaves them out.
        """
        ends = self.row_block_ends()[:, None].expand(-1, self.x, -1).contiguous()
        tiles = torch.searchsorted(self.sorted_slash_tiles(), ends)
        columns = torch.searchsorted(self.sorted_columns(), ends)
        if self.row_ptr is not None:
            tiles = tiles + self.row_ptr.diff()
        first_query = torch.arange(self.row_blocks, device=self.device) * TILE
        exists = first_query < self.query_lengths[:, None]
        return (tiles * TILE + columns) * exists[:, None]

    def keys_read(self) -> Int64[Tensor, "b x"]:
        """Count the keys that all row blocks read, tiles counted whole and no key twice.

        This is what attending costs, known before attending: 64 queries times this.

        Example:
            >>> mask = torch.ones(1, 1, 130, 130, dtype=torch.bool).tril()
            >>> SparseIndex.from_mask(mask).keys_read().tolist()
            [[384]]
        """
        rows = (-(-self.query_lengths // TILE)).long()[:, None, None]  # row blocks
        shift = (self.key_lengths - self.query_lengths).long()[:, None, None]
        tiles, columns = self.sorted_slash_tiles().long(), self.sorted_columns().long()
        # a slash tile moves as far as row block ends do: it meets a column in one row block,
        # if that row block is there
        last = torch.searchsorted(tiles, (TILE * rows + shift - columns).contiguous())
        first = torch.searchsorted(tiles, (shift - columns).contiguous())
        covered = (last - first).sum(-1)
        if self.row_ptr is not None and self.tile_starts is not None and columns.shape[-1]:
            covered = covered + self._columns_in_further_tiles(columns)
        return self.key_counts().sum(-1) - covered

    def _columns_in_further_tiles(self, columns: Int64[Tensor, "b x c"]) -> Int64[Tensor, "b x"]:
        """Count the columns inside the tiles that row blocks have of their own."""
        assert self.row_ptr is not None
        assert self.tile_starts is not None
        counts = self.row_ptr.diff().flatten()
        owner = torch.arange(len(counts), device=self.device).repeat_interleave(counts)
        place = self.row_ptr[..., :-1].flatten() - (counts.cumsum(0) - counts)
        starts = self.tile_starts.long()[
            place[owner] + torch.arange(len(owner), device=self.device)
        ]
        ends = self.row_block_ends()[:, None].expand(-1, self.x, -1).flatten()[owner]
        head = owner // self.row_blocks
        apart = 2**32 * torch.arange(self.b * self.x, device=self.device)  # one list of all heads
        ranked = (columns.flatten(0, 1) + apart[:, None]).flatten()
        first, last = (
            torch.searchsorted(ranked, torch.minimum(start, ends) + apart[head])
            for start in (starts, starts + TILE)
        )
        inside = torch.zeros(self.b * self.x, dtype=torch.long, device=self.device)
        return inside.scatter_add_(0, head, last - first).view(self.b, self.x)

    def keys_of(
        self, sequence: Int[Tensor, " w"], head: Int[Tensor, " w"], row_block: Int[Tensor, " w"]
    ) -> Int64[Tensor, "w keys"]:
        """List the keys that some row blocks read: ascending, each once, then `NEVER`.

        Keys that only some queries of the row block may see are included: causality is
        left to the caller.
        """
        end = self.row_block_ends()[sequence, row_block, None]
        tiles = self.sorted_slash_tiles()[sequence, head]
        tiles = _trim(tiles, tiles < end)
        starts = torch.where(tiles < end, end - TILE - tiles, NEVER).long()
        columns = self.sorted_columns()[sequence, head]
        columns = _trim(columns, columns < end)
        nearest = _last_below(tiles, end - columns)  # the one slash tile that may cover it
        covered = end - columns <= nearest + TILE
        if self.row_ptr is not None and self.tile_starts is not None:
            further = self._further_tiles(sequence, head, row_block)
            covered |= columns < _last_below(further, columns + 1) + TILE
            starts = torch.cat([starts, further], dim=1)
        keys = (starts[..., None] + torch.arange(TILE, device=self.device)).flatten(1)
        exists = (keys >= 0) & (keys < self.key_lengths[sequence, None])
        columns = columns.masked_fill(covered, NEVER)
        keys = torch.cat([keys.masked_fill(~exists, NEVER), columns.long()], dim=1)
        keys = keys.masked_fill(keys >= end, NEVER).sort(dim=1).values
        return _trim(keys, keys < NEVER)

    def _further_tiles(
        self, sequence: Int[Tensor, " w"], head: Int[Tensor, " w"], row_block: Int[Tensor, " w"]
    ) -> Int64[Tensor, "w t"]:
        """List the per-row-block tiles of some row blocks, `NEVER` past each count."""
        assert self.row_ptr is not None
        assert self.tile_starts is not None
        first = self.row_ptr[sequence, head, row_block].long()
        count = self.row_ptr[sequence, head, row_block + 1].long() - first
        step = torch.arange(int(count.max()) if len(count) else 0, device=self.device)
        there = step < count[:, None]
        starts = self.tile_starts[torch.where(there, first[:, None] + step, 0)]
        return torch.where(there, starts.long(), NEVER)

    def to_mask(self) -> Bool[Tensor, "b x n m"]:
        """Expand to the dense boolean mask: True where a query reads a key.

        Takes `b * x * n * m` bytes: for tests, drawings and the oracle.

        Example:
            >>> mask = torch.ones(1, 1, 2, 2, dtype=torch.bool).tril()
            >>> SparseIndex.from_mask(mask).to_mask()[0, 0].int().tolist()
            [[1, 0], [1, 1]]
        """
        shape = (self.b, self.x, self.row_blocks, TILE, self.m)
        mask = torch.zeros(shape, dtype=torch.bool, device=self.device)
        position = self.query_positions().view(self.b, self.row_blocks, TILE, 1)
        causal = torch.arange(self.m, device=self.device) <= position
        head = torch.arange(self.x, device=self.device)
        for s in range(self.b):
            for i in range(self.row_blocks):
                keys = self.keys_of(torch.full_like(head, s), head, torch.full_like(head, i))
                kept = mask.new_zeros(self.x, self.m + 1)  # the last place takes every NEVER
                kept.scatter_(1, keys.clamp(max=self.m), True)
                mask[s, :, i] = kept[:, None, :-1] & causal[s, i]
        return mask.flatten(2, 3)[:, :, : self.n]

    @classmethod
    def from_mask(
        cls,
        mask: Bool[Tensor, "b x n m"],
        *,
        query_lengths: Int[Tensor, " b"] | None = None,
        key_lengths: Int[Tensor, " b"] | None = None,
    ) -> SparseIndex:
        """Build the index of exactly the cells that are True in `mask`.

        An index keeps 64-key tiles per row block and whole columns per head, so not
        every mask has one; a `ShapeError` says which row block does not fit.

        Args:
            mask: causal; False outside each sequence's lengths.
            query_lengths: queries of each sequence; all `n` when None.
            key_lengths: keys of each sequence; all `m` when None.
        """
        from sparsefill.from_mask import index_of_mask

        return index_of_mask(mask, query_lengths=query_lengths, key_lengths=key_lengths)

    def __str__(self) -> str:
        lines = int(self.slash_counts.max()), int(self.column_counts.max())
        further = 0 if self.tile_starts is None else len(self.tile_starts)
        return (
            f"SparseIndex(b={self.b}, x={self.x}, n={self.n}, m={self.m},"
            f" up to {lines[0]} slash tiles and {lines[1]} columns per head,"
            f" {further} further tiles, {self.nbytes} bytes)"
        )


def _mask_past(entries: Int32[Tensor, "b x k"], counts: Int32[Tensor, "b x"]):
    """Write `NEVER` over the entries past each count."""
    step = torch.arange(entries.shape[-1], device=entries.device)
    return entries.masked_fill(step >= counts[..., None], NEVER)


def _trim(entries: Int[Tensor, "w k"], wanted: Bool[Tensor, "w k"]) -> Int[Tensor, "w trimmed"]:
    """Drop trailing places that no row wants (wanted entries come first)."""
    return entries[:, : int(wanted.sum(1).max()) if len(entries) else 0]


def _last_below(ascending: Int[Tensor, "w k"], bound: Int[Tensor, "w c"]) -> Int64[Tensor, "w c"]:
    """Return the last entry below each bound, or a value far below 0 if there is none."""
    rows = ascending.long().contiguous()
    place = torch.searchsorted(rows, bound.long().contiguous())
    far_below = rows.new_full((len(rows), 1), -NEVER)
    return torch.cat([far_below, rows], dim=1).gather(1, place)
