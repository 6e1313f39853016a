"""Layers of one attention shape each, for searches: what every family should win."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefill.search import Layer

D = 32
WAVES = torch.logspace(-3.5, -1.5, D // 2 - 4)
STRENGTH = 6.0


def random_layer(n: int, *, number: int = 0, h: int = 4, g: int = 2, seed: int = 0) -> Layer:
    """Draw a layer without any structure."""
    draw = torch.Generator().manual_seed(1000 * seed + number)
    q, k, v = (torch.randn(1, heads, n, D, generator=draw) for heads in (h, g, g))
    return layer_of(q, k, v, number=number)


def layer_of(q: Tensor, k: Tensor, v: Tensor, *, number: int = 0) -> Layer:
    """Give a layer of these inputs a random output projection."""
    draw = torch.Generator().manual_seed(number)
    projection = torch.randn(48, q.shape[1], q.shape[3], generator=draw)
    return Layer(number=number, q=q, k=k, v=v, scale=D**-0.5, projection=projection)


def places(position: Tensor) -> Tensor:
    """Describe positions so that near ones, within some 40 keys, are alike."""
    angle = position[:, None] * WAVES * 6.28
    waves = torch.cat([angle.cos(), angle.sin()], dim=1) * STRENGTH / 2
    return torch.nn.functional.pad(waves, (0, 8))


def planted_layer(kind: str, n: int = 2048) -> Layer:
    """Make a layer of one head that one family serves best.

    * "a-shape": queries look at keys some way before them; the last ones, which a
      vertical-slash estimate sees, look elsewhere.
    * "vertical-slash": queries look at a few scattered keys and at one distance.
    * "block-topk": each block of queries looks at a block of keys of its own.
    """
    draw = torch.Generator().manual_seed(1)
    position = torch.arange(n).float()
    k = 0.1 * torch.randn(n, D, generator=draw)
    q, v = 0.1 * torch.randn(n, D, generator=draw), torch.randn(n, D, generator=draw)
    if kind == "a-shape":
        k += places(position)
        q += places(torch.cat([position[:-64] - 220, position[-64:] - 900]))
        # one query of each block looks elsewhere, so hard that it alone makes the block's mean
        k[:, -8:] = torch.randn(n // 64, 8, generator=draw).repeat_interleave(64, 0)
        q[::64] = 0
        q[::64, -8:] = 4000 * torch.randn(n // 64, 8, generator=draw)
    elif kind == "vertical-slash":
        own = torch.nn.functional.normalize(torch.randn(n, D - 1, generator=draw), dim=1)
        k[:, :-1] += STRENGTH * own
        q[:, :-1] += STRENGTH * own.roll(300, 0)
        columns = torch.randperm(n, generator=draw)[: n // 32]
        k[columns, -1], q[:, -1] = STRENGTH, STRENGTH
    else:
        block = torch.arange(n) // 64
        own = torch.nn.functional.normalize(torch.randn(n // 64, D, generator=draw), dim=1)
        looked = torch.stack([torch.randint(0, i + 1, (), generator=draw) for i in range(n // 64)])
        k += STRENGTH * own[block]
        q += STRENGTH * own[looked[block]]
    return layer_of(*(x[None, None] for x in (q, k, v)))
