"""Which keys are real: the mask function given to transformers, and how to read it.

transformers builds a mask before the first layer with a function registered under the
attention implementation's name. Ours never makes an n * m mask: it hands on the 2-D
padding mask, cut to the cache slots that are written, or None when all keys are real.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsefill.errors import UnsupportedError


def padding_mask(
    batch_size: int,
    kv_length: int,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    cache_position: Tensor | None = None,
    q_length: Any = None,
    q_offset: Any = 0,
    **others: Any,
) -> Tensor | None:
    """Return which written keys are real, shape (batch, written), or None for all.

    A preallocated cache hands its whole buffer to the layers, so its mask always tells
    how much is written. Older releases pass `cache_position`, newer ones `q_length` and
    `q_offset`; the rest of what they pass does not matter here.
    """
    if others.get("allow_is_bidirectional_skip") is not None:  # encoder or cross-attention
        return None if attention_mask is None else attention_mask.bool()
    if cache_position is not None:
        end = int(cache_position[-1]) + 1
    else:
        end = int(q_offset) + int(q_length)
    written = min(end - int(kv_offset), int(kv_length))
    real = None if attention_mask is None else attention_mask[:, end - written : end].bool()
    if written < kv_length:
        if real is not None:
            return real
        device = others.get("device")
        device = cache_position.device if device is None and cache_position is not None else device
        return torch.ones(batch_size, written, dtype=torch.bool, device=device)
    return None if real is not None and bool(real.all()) else real


class Spans:
    """The real queries and keys of a padded batch: one contiguous span per sequence.

    Args:
        mask: which written keys are real.
        n: query length; the last query stands at the last written key.
    """

    def __init__(self, mask: Bool[Tensor, "b written"], n: int) -> None:
        written = mask.shape[1]
        place = torch.arange(written, device=mask.device)
        start = place.masked_fill(~mask, written).amin(1)
        end = (place + 1).masked_fill(~mask, 0).amax(1)
        if bool(((end - start).clamp(min=0) != mask.sum(1)).any()):
            raise UnsupportedError(
                "attention_mask must be one run of ones per sequence (left or right padding),"
                " got a mask with holes; remove the masked tokens from the prompt"
            )
        first_query = written - n
        self.n = n
        self.key_start = torch.minimum(start, end).tolist()
        self.key_lengths = (end - start).clamp(min=0).int()
        self.query_start = (start - first_query).clamp(0, n).tolist()
        query_end = torch.maximum(
            (end - first_query).clamp(min=0), (start - first_query).clamp(0, n)
        )
        self.query_lengths = (query_end - torch.tensor(self.query_start).to(query_end)).int()

    def queries(self, q: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Move each sequence's real queries to the front."""
        return _to_front(q, self.query_start)

    def keys(self, k: Float[Tensor, "b g m d"]) -> Float[Tensor, "b g m d"]:
        """Move each sequence's real keys to the front."""
        return _to_front(k, self.key_start)

    def back(self, out: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Move each sequence's outputs to where its queries came from."""
        moved = torch.zeros_like(out)
        for s, start in enumerate(self.query_start):
            moved[s, :, start:] = out[s, :, : out.shape[2] - start]
        return moved


def _to_front(x: Float[Tensor, "b heads n d"], start: list[int]) -> Float[Tensor, "b heads n d"]:
    if not any(start):
        return x
    moved = torch.zeros_like(x)
    for s, first in enumerate(start):
        moved[s, :, : x.shape[2] - first] = x[s, :, first:]
    return moved


def require_one_sequence(position_ids: Tensor | None) -> None:
    """Raise if the positions of a row restart: several prompts packed into one row."""
    if position_ids is None or position_ids.ndim != 2:
        return
    if bool((position_ids.diff(dim=1) != 1).any()):
        raise UnsupportedError(
            "position_ids must rise by one along a row, got positions that restart or jump"
            " (packed sequences); pass one prompt per row with an attention_mask"
        )
