"""What commands that go through the layers of a model share: a reader and a progress bar."""

from __future__ import annotations

from typing import Any

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

from sparsefill.integrations.transformers import Shown, show_layers
from sparsefill.integrations.transformers.layers import output_projection, window_of
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
        def show(shown: Shown) -> None:
            window = window_of(shown.module)
            h, d = shown.q.shape[1], shown.v.shape[3]
            look(
                Layer(
                    number=shown.layer,
                    q=shown.q,
                    k=shown.k,
                    v=shown.v,
                    scale=shown.scale,
                    projection=output_projection(shown.module, h=h, d=d),
                    softcap=shown.softcap,
                    windowed=window is not None and window < shown.k.shape[2],
                )
            )

        show_layers(model, ids, show, backend=backend)

    return read
