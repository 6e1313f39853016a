"""What each head loses to dense attention, measured while a prompt is read.

A few row blocks of each layer are attended to densely as well, with the queries, keys and
values of the sparse reading itself: at long lengths a small share of its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from sparsefill.attention import attend_rows_densely
from sparsefill.integrations.transformers.hook import Call
from sparsefill.integrations.transformers.run import LayerCall, layer_of
from sparsefill.kernels import Attended
from sparsefill.metrics import output_error, recall
from sparsefill.profile import Architecture
from sparsefill.reader import Heads
from sparsefill.tile import sample_rows

SAMPLES = 8  # row blocks of a layer: 512 queries, evenly over the prompt


@dataclass(kw_only=True, eq=False)
class HeadsWatched:
    """Compares each sparse call of one prompt with dense attention: for `on_attended`."""

    _recall: dict[int, Float64[Tensor, " h"]] = field(default_factory=dict, init=False)
    _error: dict[int, Float64[Tensor, " h"]] = field(default_factory=dict, init=False)

    def __call__(self, call: Call, attended: Attended) -> None:
        """Measure one layer."""
        maths = {"scale": call.scale, "softcap": call.softcap, "backend": call.run.backend}
        own, dense = list[Attended](), list[Attended]()
        for rows in sample_rows(call.q.shape[2], SAMPLES):
            dense.append(attend_rows_densely(call.q, call.k, call.v, rows, **maths))
            own.append(Attended(*(part[:, :, rows] for part in attended)))
        whole, exact = (Attended(*map(_along_queries, zip(*x, strict=True))) for x in (own, dense))
        layer = layer_of(call.module)
        self._recall[layer] = recall(whole.lse, exact.lse).double().mean((0, 2)).cpu()
        self._error[layer] = output_error(whole.out, exact.out).double().mean(0).cpu()

    def found(self, architecture: Architecture, calls: Sequence[LayerCall]) -> Heads:
        """Return what was measured; layers that attended densely lost nothing."""
        shape = architecture.layers, architecture.heads
        kept, density = torch.ones(2, *shape, dtype=torch.float64)
        error = torch.zeros(shape, dtype=torch.float64)
        for layer, own in self._recall.items():
            kept[layer], error[layer] = own, self._error[layer]
        for call in calls:
            if call.density is not None:
                density[call.layer] = call.density.double().mean(0)
        return Heads(kept, error, density)


def _along_queries(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=2)
