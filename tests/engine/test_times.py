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
    ("pattern", "estimate_s"),
    # one tick to estimate for the whole prompt, and one to cut that to each chunk
    [(AShape(sink=1, window=1), 1 + CHUNKS), (Dense(), 1)],
    ids=["sparse", "dense"],
)
def test_times_are_those_of_the_runs_clock(
    pattern: Pattern, estimate_s: int, monkeypatch: pytest.MonkeyPatch
):
    devices: set[str] = set()
    ticks = itertools.count()

    def clock(run: Run, device: torch.device):
        devices.add(device.type)
        return lambda: float(next(ticks))

    monkeypatch.setattr(Run, "clock", clock)
    read = prefill(tiny_model("llama-3"), prompt(CHUNKS * 64), pattern, chunk=64, min_length=1)
    assert [(c.estimate_s, c.attention_s) for c in read.run.calls] == [(estimate_s, CHUNKS)] * 2
    assert devices == {"cpu"}
