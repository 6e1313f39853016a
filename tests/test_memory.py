"""Memory of results comes back once nobody holds the result, and never before."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefill import memory

SHAPE = (1024, memory.SMALLEST // 2048)  # in bfloat16: the smallest that is kept


def fresh(*, rows: int = SHAPE[0]) -> Tensor:
    return memory.empty((rows, SHAPE[1]), torch.bfloat16)


@pytest.fixture(autouse=True)
def _nothing_kept():
    memory._free.clear()
    yield
    memory._free.clear()


def test_a_tensor_like_any_other():
    result = fresh()
    assert (result.shape, result.dtype, result.device.type) == (SHAPE, torch.bfloat16, "cpu")
    assert result.is_contiguous()
    assert result.data_ptr() % 64 == 0
    assert not result.requires_grad


def test_a_result_that_nobody_holds_gives_its_memory_to_the_next():
    first = fresh()
    place = first.data_ptr()
    del first
    assert fresh().data_ptr() == place


def in_a_cycle(result: Tensor) -> list[Any]:
    """Return what only the garbage collector can free."""
    loop: list[Any] = [result]
    loop.append(loop)
    return loop


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "itself": lambda x: x,
    "view": lambda x: x[3:, 1].unsqueeze(0),
    "detached": lambda x: x.detach(),
    "numpy": lambda x: x.view(torch.int16).numpy(),
    "storage": lambda x: x.untyped_storage(),
    "parameter": lambda x: torch.nn.Parameter(x),
    "saved-for-backward": lambda x: torch.ones((), dtype=x.dtype, requires_grad=True) * x,
    "dlpack": lambda x: torch.from_dlpack(x),
    "cycle": in_a_cycle,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_whoever_holds_a_result_keeps_it(holder: str):
    result = fresh().fill_(7)
    held = HOLDERS[holder](result)
    place = result.data_ptr()
    del result
    gc.collect()
    others = [fresh().fill_(1) for _ in range(3)]
    assert place not in [other.data_ptr() for other in others]
    assert held is not None


def test_results_in_use_never_share_memory():
    results = [fresh().fill_(value) for value in range(4)]
    assert all(bool((result == value).all()) for value, result in enumerate(results))


def test_memory_of_another_size_is_not_used():
    kept = fresh(rows=4096)
    place = kept.data_ptr()
    del kept
    assert fresh(rows=1024).data_ptr() != place  # four times as much: too much to hold


def test_only_one_result_is_kept():
    results = [fresh() for _ in range(5)]
    del results
    assert len(memory._free) == 1


@pytest.mark.parametrize("rows", [1, SHAPE[0] // 2, 1 + memory.LARGEST // (2 * SHAPE[1])])
def test_small_and_huge_results_are_not_kept(rows: int):
    result = fresh(rows=rows)
    del result
    assert not memory._free


def test_across_inference_mode():
    with torch.inference_mode():
        first = fresh()
        place = first.data_ptr()
        del first
    second = fresh()
    assert second.data_ptr() == place
    assert not second.is_inference()
