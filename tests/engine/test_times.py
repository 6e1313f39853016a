"""The times that the engine records are those of the run's clock, which waits for the device."""

from __future__ import annotations

import itertools

import pytest
import torch

from sparsefill import AShape, Dense, Pattern, prefill
from sparsefill.integrations.transformers import Run
from tests.support.models import prompt, tiny_model

CHUNKS = 3


@pytest.mark.parametrize(
    ("attending", "groups"), [(64, 3), (128, 2), (192, 1)], indirect=["attending"]
)
@pytest.mark.parametrize("pattern", [AShape(sink=1, window=1), Dense()], ids=["sparse", "dense"])
def test_times_are_those_of_the_runs_clock(
    pattern: Pattern, groups: int, attending: int, monkeypatch: pytest.MonkeyPatch
):
    devices: set[str] = set()
    ticks = itertools.count()

    def clock(run: Run, device: torch.device):
        devices.add(device.type)
        return lambda: float(next(ticks))

    monkeypatch.setattr(Run, "clock", clock)
    read = prefill(tiny_model("llama-3"), prompt(CHUNKS * 64), pattern, chunk=64, min_length=1)
    # one tick to estimate for the whole prompt, and one to cut that to each group of chunks
    estimate_s = 1 if pattern == Dense() else 1 + groups
    assert [(c.estimate_s, c.attention_s) for c in read.run.calls] == [(estimate_s, groups)] * 2
    assert devices == {"cpu"}
