"""Every cell that a layer computes: its index, and the parts of interleaved heads."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsefill.density import causal_cells, count_cells
from sparsefill.estimate.interleaved import ParityPart
from sparsefill.index import SparseIndex


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """What a layer computes.

    Args:
        index: of all query heads; the lists of interleaved ones are empty.
        parts: what interleaved heads keep, if there are any.
    """

    index: SparseIndex
    parts: tuple[ParityPart, ...] = ()

    def density(self) -> Float[Tensor, "b x"]:
        """Return the cells kept by each head ÷ the causal cells of its sequence."""
        kept = count_cells(self.index)
        for part in self.parts:
            kept[part.sequence] += count_cells(part.index)[0]
        return kept / causal_cells(self.index).clamp(min=1)[:, None]

    def keys_read(self) -> Int64[Tensor, "b x"]:
        """Count the keys that all row blocks of each head read, as `SparseIndex.keys_read`."""
        read = self.index.keys_read()
        for part in self.parts:
            read[part.sequence] += part.index.keys_read()[0]
        return read

    def to_mask(self) -> Bool[Tensor, "b x n m"]:
        """Expand to the dense boolean mask, as `SparseIndex.to_mask` does."""
        mask = self.index.to_mask()
        for part in self.parts:
            mask[part.sequence, :, part.rows, part.keys] |= part.index.to_mask()[0]
        return mask
