"""Memory and work of a prefill: never a mask or scores of n * m, windows cost their width."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from sparsefill import AShape, BlockTopK, Dense, TriShape, VerticalSlash
from sparsefill.integrations.transformers import sparse_prefill
from tests.support.models import (
    WINDOW,
    logits_in_chunks,
    logits_of,
    pad,
    positions,
    prompt,
    static_cache,
    tiny_model,
)
from tests.support.watch import watched

N = 4096
SQUARE = N * N
PATTERNS = {
    "dense": Dense(),
    "a-shape": AShape(sink=64, window=256),
    "tri-shape": TriShape(sink=64, window=256, last=64),
    "vertical-slash": VerticalSlash(verticals=64, slashes=64),
    "block-topk": BlockTopK(blocks=8),
}


def test_watch_sees_the_mask_of_the_stock_model():
    """The measure works: stock SDPA makes an n * n mask for windows and for padding."""
    ids, mask = pad([prompt(1024), prompt(900)], "left")
    for family, options in (("gemma3", {}), ("llama-3", {"attention_mask": mask})):
        with watched() as watch:
            tiny_model(family)(ids, **options)
        assert watch.largest >= 1024 * 1024


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("family", ["llama-3", "mistral-window", "gemma2", "gemma3"])
def test_prefill_never_makes_a_square(family: str, pattern: Dense, padded: bool):
    model = tiny_model(family, "eager")
    ids, mask = pad([prompt(N), prompt(N - 700 * padded)], "left")
    with sparse_prefill(model, pattern, min_length=1), watched() as watch:
        model(ids, attention_mask=mask, position_ids=positions(mask), logits_to_keep=1)
    assert watch.largest < SQUARE / 2


@pytest.mark.parametrize("kept", ["grown", "static"])
@pytest.mark.parametrize("pattern", [Dense(), AShape(sink=64, window=256)], ids=["dense", "sparse"])
@pytest.mark.parametrize("family", ["llama-3", "gemma3"])
def test_chunk_never_makes_a_rectangle(family: str, pattern: Dense, kept: str):
    model, ids = tiny_model(family), prompt(2 * N)
    cache = static_cache(model, rows=1, slots=3 * N) if kept == "static" else None
    with sparse_prefill(model, pattern, min_length=1), watched() as watch:
        logits_in_chunks(model, ids, [N], cache=cache)
    assert watch.largest < SQUARE / 2


def test_recall_never_makes_a_square():
    model = tiny_model("llama-3")
    with (
        sparse_prefill(model, PATTERNS["a-shape"], min_length=1, measure_recall=True) as run,
        watched() as watch,
    ):
        model(prompt(N), logits_to_keep=1)
    assert watch.largest < SQUARE / 2
    assert run.recall().numel() == 2 * 4 * N


def scores_of_windows(window: int, ids: Tensor, mask: Tensor, sizes: list[int]) -> tuple[int, int]:
    """Count the scores computed by layers that all have windows, and how many may be."""
    model = tiny_model("mistral-window", sliding_window=window)
    cache = DynamicCache()  # of unknown layers: keeps keys that have left the window
    with sparse_prefill(model, Dense(), min_length=1), watched() as watch:
        logits_in_chunks(model, ids, sizes, mask=mask, cache=cache)
    width = max(64, window)  # a block of so many rows, whose keys reach a window further back
    return watch.scores, 2 * 4 * ids.numel() * (width + window)  # layers, heads, queries


@pytest.mark.parametrize("sizes", [[], [1000, 2000]], ids=["at-once", "chunks"])
@pytest.mark.parametrize("window", [WINDOW, 200])
def test_window_costs_its_width(window: int, sizes: list[int]):
    ids = prompt(N)
    scores, allowed = scores_of_windows(window, ids, torch.ones_like(ids), sizes)
    assert 0 < scores <= allowed


@pytest.mark.parametrize("sizes", [[], [1000, 2000]], ids=["at-once", "chunks"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_window_costs_its_width_beside_a_short_row(side: str, sizes: list[int]):
    ids, mask = pad([prompt(N), prompt(700)], side)
    scores, allowed = scores_of_windows(200, ids, mask, sizes)
    assert 0 < scores <= allowed


def test_estimate_stays_small_whatever_the_probe():
    model, pattern = tiny_model("llama-3"), VerticalSlash(verticals=64, slashes=64, probe=2048)
    with sparse_prefill(model, pattern, min_length=1), watched() as watch:
        logits_of(model, prompt(N))
    assert watch.largest < SQUARE / 2


LOSSES = """
import resource

import torch

from sparsefill.integrations.transformers.answering import ROWS, losses_of
from sparsefill.memory import keep_freed

keep_freed()
head = torch.nn.Linear(64, 8000, bias=False)
for parts in (8, 38):
    with torch.inference_mode():
        losses_of(head, torch.ones(parts * ROWS, 64), torch.zeros(parts * ROWS, dtype=torch.int64))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts KiB, as Linux does")
def test_losses_of_more_tokens_take_no_more_memory():
    """Logits of a part are 31 MiB in float64, and what is freed stays with the process."""
    done = subprocess.run([sys.executable, "-c", LOSSES], stdout=subprocess.PIPE, check=True)
    few, many = map(int, done.stdout.split())
    assert many < few + 100
