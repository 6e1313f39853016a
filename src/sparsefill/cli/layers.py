"""What a search and its held-out check share: reading layers, and a progress bar."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from sparsefill.integrations.transformers import sparse_prefill
from sparsefill.integrations.transformers.layers import output_projection, softcap_of, window_of
from sparsefill.integrations.transformers.run import layer_of
from sparsefill.patterns import Dense
from sparsefill.search import Layer
from sparsefill.search.session import Look, Read


def progress_of_layers(console: Console) -> Progress:
    """Make a progress bar over layers, with the time that is left."""
    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("layers"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def layer_reader(model: nn.Module, backend: Any) -> Read:
    """Return what reads a prompt densely and shows each layer's queries, keys and values."""

    def read(ids: Int[Tensor, "1 n"], look: Look) -> None:
        def show(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
            window = window_of(module)
            look(
                Layer(
                    number=layer_of(module),
                    q=q,
                    k=k,
                    v=v,
                    scale=scale,
                    projection=output_projection(module, h=q.shape[1], d=v.shape[3]),
                    softcap=softcap_of(module),
                    windowed=window is not None and window < k.shape[2],
                )
            )

        call: Any = model
        device = next(model.parameters()).device
        dense = sparse_prefill(model, Dense(), backend=backend, record=False, on_qkv=show)
        with torch.inference_mode(), dense:
            call(ids.to(device), logits_to_keep=1, use_cache=False)

    return read
