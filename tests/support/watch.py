"""What a computation makes and does, seen below torch's composite operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watch(TorchDispatchMode):
    """Watches every operation: the largest tensor made, and the scores attended to.

    Args:
        largest: elements of the largest storage.
        scores: query-key pairs, over all heads, that fused attention was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.scores = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.largest = max(self.largest, elements)
        if "scaled_dot_product" in str(func):
            q, k = args[:2]
            self.scores += q.shape[:3].numel() * k.shape[2]
        return made


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch the operations of a `with` block, composite ones taken apart."""
    with torch.no_grad(), Watch() as watch:
        yield watch
