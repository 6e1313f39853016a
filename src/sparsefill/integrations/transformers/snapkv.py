"""Decoding with some of the keys: SnapKV (Li et al. 2024, arXiv:2404.14469).

Each layer keeps, for each of its key heads, the keys that the prompt's last queries attend to
most, and those queries' own. The choice is made of what the layer attends with, so it holds for
every model that is read sparsely, whatever it does to queries, keys and scores before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d
from transformers import DynamicCache

from sparsefill.errors import UnsupportedError
from sparsefill.integrations.transformers.layers import softcap_of, window_of
from sparsefill.integrations.transformers.run import layer_of

WINDOW, POOLED = 32, 5  # queries that choose, and neighbours that share a score: MInference's


def chosen_keys(
    q: Float[Tensor, "1 h n d"],
    k: Float[Tensor, "1 g n d"],
    keys: int,
    *,
    scale: float,
    softcap: float | None = None,
) -> Int[Tensor, "g keys"]:
    """Choose the keys of one prompt that are kept, one choice for the queries of a key head.

    Args:
        keys: how many, more than 32 and fewer than there are.

    Returns:
        Their places in the prompt, ascending.

    Example:
        >>> q = torch.zeros(1, 2, 200, 4)
        >>> k = torch.zeros(1, 1, 200, 4)
        >>> q[..., -1, 0], k[..., 50, 0] = 9.0, 9.0
        >>> places = chosen_keys(q, k, 64, scale=1.0)
        >>> places.shape, 50 in places[0], places[0, -32:].tolist() == [*range(168, 200)]
        (torch.Size([1, 64]), True, True)
    """
    n, group = k.shape[2], q.shape[1] // k.shape[1]
    rows = torch.arange(n - WINDOW, n, device=q.device)
    unseen = torch.arange(n, device=q.device) > rows[:, None]
    chosen = []
    for own, head in zip(q[0, :, -WINDOW:].float().split(group), k[0], strict=True):
        scores = own @ head.float().T * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.masked_fill_(unseen, -math.inf).softmax(-1)
        before = weights[..., :-WINDOW].mean((0, 1))
        shared = avg_pool1d(before[None], POOLED, stride=1, padding=POOLED // 2)[0]
        most = shared.topk(keys - WINDOW).indices.sort().values
        chosen.append(torch.cat([most, rows]))
    return torch.stack(chosen)


@dataclass(frozen=True, eq=False)
class Keeping:
    """Chooses the keys of one prompt while it is read, and keeps them once it was.

    Args:
        keys: of each head.
        longest: tokens of the prompt and of what follows it.
    """

    keys: int
    longest: int
    places: dict[int, Int[Tensor, "g keys"]] = field(default_factory=dict)

    def choose(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        """Choose the keys of a layer, as `sparse_prefill(on_qkv=...)` shows it.

        Raises:
            UnsupportedError: the layer does not attend to all of the prompt and the answer.
        """
        window = window_of(module)
        if window is not None and window < self.longest:
            raise UnsupportedError(
                f"layer {layer_of(module)} attends to the last {window} tokens; SnapKV chooses"
                f" among all keys of prompt and answer, {self.longest}; use the method without"
                " +snapkv"
            )
        self.places[layer_of(module)] = chosen_keys(
            q, k, self.keys, scale=scale, softcap=softcap_of(module)
        )

    def keep(self, cache: Any) -> DynamicCache:
        """Return a cache of what was chosen.

        Raises:
            UnsupportedError: the model's cache does not hold each layer's keys.
        """
        layers = getattr(cache, "layers", ())
        if not layers or {*self.places} != {*range(len(layers))}:
            raise UnsupportedError(
                f"SnapKV needs a cache of keys for each of the {len(self.places)} attention"
                f" layers, got {type(cache).__name__} of {len(layers)}; use the method without"
                " +snapkv"
            )
        kept = DynamicCache()
        for layer, own in enumerate(layers):
            places = self.places[layer][None, :, :, None]
            keys, values = (
                held.gather(2, places.expand(-1, -1, -1, held.shape[3]))
                for held in (own.keys, own.values)
            )
            kept.update(keys, values, layer)
        return kept
