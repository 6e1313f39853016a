"""Rotary embeddings whose frequencies depend on how long the prompt is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

BY_LENGTH = ("dynamic", "longrope")


@contextmanager
def positions_of_the_whole(model: nn.Module, tokens: int) -> Iterator[None]:
    """Show such embeddings the last position of the prompt with every chunk.

    They choose their frequencies by the largest position that they are given. One more
    position is shown to them, and what they return for it is dropped.
    """

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        positions = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        end = torch.full_like(positions[..., :1], tokens - 1)
        longer = torch.cat([positions, end], dim=-1)
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": longer}
        return (args[0], longer, *args[2:]), kwargs

    def after(module: nn.Module, args: Any, out: Any) -> Any:
        return tuple(part[..., :-1, :] for part in out)

    def depends(module: nn.Module) -> bool:
        kinds = getattr(module, "rope_type", None)
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        return any(kind in BY_LENGTH for kind in kinds)

    handles = []
    for module in model.modules():
        if depends(module):
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
