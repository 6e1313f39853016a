"""The input of an estimate, the query heads of one family, and the dispatch on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from sparsefill.index import SparseIndex
from sparsefill.patterns import BlockTopK, Pattern, VerticalSlash
from sparsefill.tile import TILE

Entries = tuple[Int[Tensor, "b x _"], Int[Tensor, "b x"]]  # ascending values and their counts
Further = tuple[Int[Tensor, "b x _"], Int[Tensor, " _"]]  # row_ptr and tile_starts


@runtime_checkable
class EstimateKernels(Protocol):
    """A module of kernels that do what the dynamic families define, faster."""

    def vertical_slash(self, patterns: Sequence[VerticalSlash], heads: Heads) -> SparseIndex:
        """Keep the best columns and diagonals of each head."""
        ...

    def block_topk(self, patterns: Sequence[BlockTopK], heads: Heads) -> SparseIndex:
        """Keep the best key blocks of each block of queries."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """Some query heads of a layer, with everything that an estimate may look at.

    Args:
        members: which query heads, ascending; `x` of them.
        scale: what scores are multiplied by.
        softcap: bound of the scores, or None.
        kernels: what estimates dynamic patterns; None: torch operations.
        isa: instruction set of the compiled kernels; the best when None.
    """

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b g m d"]
    members: Int64[Tensor, " x"]
    scale: float
    softcap: float | None
    query_lengths: Int32[Tensor, " b"]
    key_lengths: Int32[Tensor, " b"]
    kernels: EstimateKernels | None = None
    isa: str | None = None

    @property
    def b(self) -> int:
        """Number of sequences."""
        return self.q.shape[0]

    @property
    def x(self) -> int:
        """Number of member heads."""
        return len(self.members)

    @property
    def n(self) -> int:
        """Padded query length."""
        return self.q.shape[2]

    @property
    def m(self) -> int:
        """Padded key length."""
        return self.k.shape[2]

    @property
    def device(self) -> torch.device:
        """Device of every tensor."""
        return self.q.device

    @property
    def r(self) -> int:
        """Query heads of a KV head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def kv_members(self) -> Int64[Tensor, " x"]:
        """KV head that each member reads."""
        return self.members // self.r

    @property
    def shift(self) -> Int32[Tensor, " b"]:
        """Key position of each sequence's first query."""
        return self.key_lengths - self.query_lengths

    def useful_block(self, block: int) -> int:
        """Return a block size that is not longer than the layer: more would only be padding."""
        return min(block, -(-max(self.n, self.m) // TILE) * TILE)

    def per_head(self, patterns: Sequence[Pattern], field: str) -> Int64[Tensor, " x"]:
        """Collect one integer field of the members' patterns."""
        return torch.tensor([getattr(p, field) for p in patterns], device=self.device)

    def scores(
        self, q: Float[Tensor, "b x rows d"], k: Float[Tensor, "b x keys d"]
    ) -> Float[Tensor, "b x rows keys"]:
        """Score queries against keys as attention does, in at least float32."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        scores = (q.to(dtype) * self.scale) @ k.to(dtype).transpose(-1, -2)
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def index(
        self, *, slash: Entries, columns: Entries, further: Further | None = None
    ) -> SparseIndex:
        """Assemble the members' index."""
        return SparseIndex(
            n=self.n,
            m=self.m,
            query_lengths=self.query_lengths,
            key_lengths=self.key_lengths,
            slash_tiles=slash[0].int(),
            slash_counts=slash[1].int(),
            column_indices=columns[0].int(),
            column_counts=columns[1].int(),
            row_ptr=None if further is None else further[0].int(),
            tile_starts=None if further is None else further[1].int(),
        )


@singledispatch
def estimate_heads(first: Pattern, patterns: Sequence[Pattern], heads: Heads) -> SparseIndex:
    """Estimate heads of one pattern family; each family registers its own.

    Args:
        first: the first of `patterns`; its type selects the family.
        patterns: one for each member of `heads`, all of one type.
    """
    raise AssertionError(f"no estimate is registered for {type(first).__name__}")
