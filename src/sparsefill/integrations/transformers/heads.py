"""What each head loses to dense attention, measured while a prompt is read.

A few row blocks of each call are attended to densely as well, with the queries, keys and
values of the sparse reading itself: of long calls a small share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from sparsefill.attention import attend_rows_densely
from sparsefill.integrations.transformers.hook import Call
from sparsefill.integrations.transformers.run import LayerCall, density_of_layers, layer_of
from sparsefill.kernels import Attended
from sparsefill.metrics import output_error, recall
from sparsefill.profile import Architecture
from sparsefill.reader import Heads
from sparsefill.tile import sample_rows

SAMPLES = 8  # row blocks of a layer: 512 queries, evenly over the prompt


class Found(NamedTuple):
    """What one sparse call lost.

    Args:
        queries: of the call.
    """

    layer: int
    queries: int
    lost: Float64[Tensor, " h"]
    error: Float64[Tensor, " h"]


@dataclass(kw_only=True, eq=False)
class HeadsWatched:
    """Compares each sparse call of one prompt with dense attention: for `on_attended`.

    Of a prompt that is read in chunks, recall and error are means over the chunks, by their
    queries; density is that of all cells.
    """

    _found: list[Found] = field(default_factory=list, init=False)

    def __call__(self, call: Call, attended: Attended) -> None:
        """Measure one layer."""
        maths = {"scale": call.scale, "softcap": call.softcap, "backend": call.run.backend}
        own, dense = list[Attended](), list[Attended]()
        for rows in sample_rows(call.q.shape[2], SAMPLES):
            dense.append(attend_rows_densely(call.q, call.k, call.v, rows, **maths))
            own.append(Attended(*(part[:, :, rows] for part in attended)))
        whole, exact = (Attended(*map(_along_queries, zip(*x, strict=True))) for x in (own, dense))
        kept = recall(whole.lse, exact.lse).double().mean((0, 2)).cpu()
        error = output_error(whole.out, exact.out).double().mean(0).cpu()
        self._found.append(Found(layer_of(call.module), call.q.shape[2], 1 - kept, error))

    def found(self, architecture: Architecture, calls: Sequence[LayerCall]) -> Heads:
        """Return what was measured; calls that attended densely lost nothing.

        Args:
            calls: all of the prompt, the dense ones too.
        """
        shape = architecture.layers, architecture.heads
        lost, error = torch.zeros(2, *shape, dtype=torch.float64)
        density = torch.ones(shape, dtype=torch.float64)
        queries = Counter[int]()
        for call in calls:
            queries[call.layer] += call.n
        for layer, n, own_lost, own_error in self._found:
            lost[layer] += own_lost * (n / queries[layer])
            error[layer] += own_error * (n / queries[layer])
        for layer, own in density_of_layers(calls).items():
            density[layer] = own
        return Heads(1 - lost, error, density)


def _along_queries(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=2)
