"""The caches that transformers sees: of a chunk while the prompt is read, and for decoding."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import cache_utils

from sparsefill.engine.store import ROOM, KVStore
from sparsefill.errors import UnsupportedError

if not hasattr(cache_utils, "DynamicLayer"):
    raise UnsupportedError(
        "the prefill engine needs caches made of layers, which transformers has from release"
        f" 4.56 on, got {transformers.__version__}; install a newer one, or use sparse_prefill"
    )

from transformers.cache_utils import Cache, DynamicLayer


class ChunkLayer(DynamicLayer):
    """One layer, as a chunk of the prompt sees it: the chunks before it are cached."""

    def __init__(self, store: KVStore, layer: int, first: int, *, keep: bool) -> None:
        super().__init__()
        self.store, self.layer, self.first, self.keep = store, layer, first, keep

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add the tokens of a chunk; return all so far."""
        k, v = self.store.put(self.layer, self.first, key_states, value_states)
        if self.keep:
            self.store.keep(self.layer, self.first, k.shape[2])
        return k, v

    def get_seq_length(self, *args: Any) -> int:
        """Count the tokens before the chunk."""
        return self.first

    def get_mask_sizes(self, query_length: Any, *args: Any) -> tuple[int, int]:
        """Return the number of keys that a mask must show, and where they start."""
        return self.first + _count(query_length), 0


class DecodeLayer(DynamicLayer):
    """One layer after the prompt: what the store kept, and the tokens decoded since."""

    def __init__(self, store: KVStore, layer: int) -> None:
        super().__init__()
        self.store, self.layer = store, layer
        self.new: list[tuple[Tensor, Tensor]] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add decoded tokens; return all so far."""
        self.new.append((key_states, value_states))
        k, v = (torch.cat(parts, dim=2) for parts in zip(*self.new, strict=True))
        self.new = [(k, v)]
        kept = self.store.buffer(self.layer)
        last = self.store.tokens + k.shape[2]
        if last > kept.k.shape[2]:
            kept = self.store.grow(self.layer, last + ROOM)
        kept.write(self.store.tokens, k, v)
        return kept.upto(last)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let beams go on from one another: all of a prompt share what was read."""
        self.new = [(k[beam_idx], v[beam_idx]) for k, v in self.new]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last decoded tokens.

        Args:
            tokens_to_remove: negative: how many; positive, as in older releases: the length
                that is to be left.

        Raises:
            UnsupportedError: the prompt would be cut.
        """
        whole = self.get_seq_length()
        length = tokens_to_remove if tokens_to_remove > 0 else whole + tokens_to_remove
        if length < self.store.tokens:
            raise UnsupportedError(
                f"a prompt of {self.store.tokens} tokens is kept whole, got a cache to be cut to"
                f" {length} of {whole} tokens; read the shorter prompt again"
            )
        rest = length - self.store.tokens
        self.new = [(k[:, :, :rest], v[:, :, :rest]) for k, v in self.new] if rest else []

    def reset(self) -> None:
        """Refuse: the prompt is what this cache is for."""
        raise UnsupportedError(
            "a cache that a prompt was read into cannot be reset; make a new one"
        )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refuse: rows of the prompt are kept once."""
        raise UnsupportedError(_fixed_rows(f"each row repeated {repeats} times"))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refuse: rows of the prompt are kept as they were read."""
        raise UnsupportedError(_fixed_rows(f"rows {indices.tolist()} selected"))

    def get_seq_length(self, *args: Any) -> int:
        """Count the tokens of the prompt and those decoded."""
        return self.store.tokens + (self.new[0][0].shape[2] if self.new else 0)

    def get_mask_sizes(self, query_length: Any, *args: Any) -> tuple[int, int]:
        """Return the number of keys that a mask must show, and where they start."""
        return self.get_seq_length() + _count(query_length), 0


def _fixed_rows(asked: str) -> str:
    return (
        f"a cache that the engine filled keeps its rows, got {asked}; read the prompt with that"
        " many rows, or use sparse_prefill"
    )


def _count(query_length: Any) -> int:
    """Read the number of queries: older releases pass their positions."""
    return query_length.shape[0] if isinstance(query_length, Tensor) else int(query_length)


def chunk_cache(store: KVStore, layers: int, first: int, *, keep: bool) -> Cache:
    """Return the cache that a chunk is read with.

    Args:
        keep: what a layer adds is kept at once, not when all chunks have passed it.
    """
    return Cache(layers=[ChunkLayer(store, layer, first, keep=keep) for layer in range(layers)])


def decode_cache(store: KVStore, layers: int) -> Cache:
    """Return the cache to decode from."""
    return Cache(layers=[DecodeLayer(store, layer) for layer in range(layers)])
