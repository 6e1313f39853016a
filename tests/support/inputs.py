"""Queries, keys and values: random, with something planted, or ragged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    FixedSlash,
    InfLLM,
    Pattern,
    TriShape,
    VerticalSlash,
)

STRENGTH = 8.0  # what is planted scores 64 / sqrt(d) more than the rest: e**11 for d = 32

PATTERNS: dict[str, Pattern] = {  # sized for a few hundred tokens
    "dense": Dense(),
    "a-shape": AShape(sink=3, window=70),
    "tri-shape": TriShape(sink=2, window=30, last=70),
    "vertical-slash": VerticalSlash(verticals=9, slashes=6, probe=20, sink=2, window=3),
    "fixed-slash": FixedSlash(offsets=(0, 20, 64, 150), verticals=9, probe=20, sink=2),
    "block-topk": BlockTopK(blocks=3),
    "block-topk-128": BlockTopK(blocks=2, block=128, sink=0),
    "infllm": InfLLM(sink=2, window=9, blocks=1, block=64, representatives=2, queries=64, every=3),
}


def patterns_of(name: str, h: int) -> list[Pattern]:
    """Give `h` heads the pattern called `name`, or all patterns in turn if it is `mixed`."""
    every = list(PATTERNS.values())
    return [every[head % len(every)] if name == "mixed" else PATTERNS[name] for head in range(h)]


class Qkv(NamedTuple):
    """The three inputs of attention."""

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b g m d"]
    v: Float[Tensor, "b g m d"]

    def map(self, change: Callable[[Tensor], Tensor]) -> Qkv:
        """Change all three alike."""
        return Qkv(change(self.q), change(self.k), change(self.v))

    def to(self, dtype: torch.dtype) -> Qkv:
        """Convert all three."""
        return self.map(lambda t: t.to(dtype))

    def alone(self, sequence: int, n: int, m: int) -> Qkv:
        """Cut one sequence out of the batch, without its padding."""
        own = slice(sequence, sequence + 1)
        return Qkv(self.q[own, :, :n], self.k[own, :, :m], self.v[own, :, :m])


def random_qkv(
    *,
    b: int = 1,
    h: int = 2,
    g: int = 1,
    n: int = 200,
    m: int | None = None,
    d: int = 32,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Qkv:
    """Make normally distributed inputs; `m` is `n` when None."""
    generator = torch.Generator().manual_seed(seed)
    m = n if m is None else m
    q, k, v = (
        torch.randn(b, *shape, d, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((h, n), (g, m), (g, m))
    )
    return Qkv(q, k, v)


def plant_column(qkv: Qkv, key: int) -> Qkv:
    """Make every query attend to one key."""
    return plant_block(qkv, slice(None), slice(key, key + 1))


def plant_block(qkv: Qkv, queries: slice, keys: slice) -> Qkv:
    """Make some queries attend to some keys."""
    q, k = qkv.q.clone(), qkv.k.clone()
    q[..., -1] = k[..., -1] = 0
    q[..., queries, -1] = k[..., keys, -1] = STRENGTH
    return qkv._replace(q=q, k=k)


def plant_slash(qkv: Qkv, offset: int) -> Qkv:
    """Make every query attend to the key at one distance before it."""
    r = qkv.q.shape[1] // qkv.k.shape[1]
    q, k = qkv.q.clone(), qkv.k * 2
    position = torch.arange(q.shape[2]) + k.shape[2] - q.shape[2]
    reaches = position >= offset
    q[:, :, reaches] = k.repeat_interleave(r, dim=1)[:, :, position[reaches] - offset]
    return qkv._replace(q=q, k=k)


def with_garbage(qkv: Qkv, query_lengths: Tensor, key_lengths: Tensor) -> Qkv:
    """Fill the padding of each sequence with NaN."""

    def fill(x: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(x.shape[2]) >= lengths[:, None]
        return x.masked_fill(padding[:, None, :, None], torch.nan)

    return Qkv(fill(qkv.q, query_lengths), fill(qkv.k, key_lengths), fill(qkv.v, key_lengths))


def far_apart(x: Tensor, axis: int) -> Tensor:
    """Copy 16-bit elements to where offsets along an axis overflow 32 bits, the stride does not.

    The memory between is never touched, so it is not really there.
    """
    overflow = max(2, x.shape[axis] // 2)  # the place from which on they do
    others = [size for i, size in enumerate(x.shape) if i != axis]
    strides = list(torch.empty(others, device="meta").stride())
    strides.insert(axis, 16 + 2**31 // overflow // 16 * 16)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    memory = torch.from_numpy(np.empty(extent, dtype=np.int16)).view(x.dtype)
    return memory.as_strided(x.shape, strides).copy_(x)


def causal_mask(n: int, m: int) -> Bool[Tensor, "n m"]:
    """Tell which keys each query may see, the last query standing at the last key."""
    return torch.arange(m) <= (torch.arange(n) + m - n)[:, None]


def offsets(n: int, m: int) -> Tensor:
    """Return the distance from each query back to each key, negative in the future."""
    return (torch.arange(n) + m - n)[:, None] - torch.arange(m)
