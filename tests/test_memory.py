"""Memory of results comes back once nobody holds the result, and never before."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefill import AShape, memory, sparse_attention
from tests.support.inputs import random_qkv

PATTERN = AShape(sink=4, window=100)
SHAPE = (1024, memory.SMALLEST // 2048)  # in bfloat16: the smallest that is kept


def fresh(*, rows: int = SHAPE[0]) -> Tensor:
    return memory.empty((rows, SHAPE[1]), torch.bfloat16)


def kept() -> list[int]:
    """Return the addresses of memory that waits for a result."""
    return [memory_.data_ptr() for memory_ in memory._free]


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
    assert kept() == []
    del first
    assert kept() == [place]
    second = fresh()
    assert second.data_ptr() == place
    assert kept() == []


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
    assert kept() == []
    others = [fresh().fill_(1) for _ in range(3)]
    assert place not in [other.data_ptr() for other in others]
    assert held is not None


def test_results_in_use_never_share_memory():
    results = [fresh().fill_(value) for value in range(4)]
    assert all(bool((result == value).all()) for value, result in enumerate(results))


def test_memory_of_another_size_is_not_used():
    large = fresh(rows=4096)
    del large
    assert [len(memory_) for memory_ in memory._free] == [4 * memory.SMALLEST]
    small = fresh()  # four times as much would be too much to hold
    assert kept() == []
    del small
    assert [len(memory_) for memory_ in memory._free] == [memory.SMALLEST]


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
        assert first.is_inference()
        del first
    assert kept() == [place]
    second = fresh()
    assert second.data_ptr() == place
    assert not second.is_inference()


@pytest.mark.parametrize("n", [100, 4096])
def test_results_stay_on_the_cpu_whatever_the_default_device_is(n: int):
    q, k, v = random_qkv(h=8, g=2, n=n, d=64, dtype=torch.bfloat16)
    expected = sparse_attention(q, k, v, PATTERN)
    with torch.device("meta"):
        got = sparse_attention(q, k, v, PATTERN)
    assert torch.equal(got, expected)


COMPILED = """
import torch
from sparsefill import AShape, sparse_attention

pattern = AShape(sink=4, window=100)
compiled = torch.compile(sparse_attention, backend="eager")
for n in (100, 4096):
    q, k = torch.randn(1, 8, n, 64).bfloat16(), torch.randn(1, 2, n, 64).bfloat16()
    assert torch.equal(compiled(q, k, k, pattern), sparse_attention(q, k, k, pattern))
"""


def test_calls_can_be_compiled():
    # in a process of its own: torch.compile cannot read functions whose types are checked
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


FAULTS = """
import resource, sys, torch
from sparsefill.memory import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

freed = sum([faults() for _ in range(6)])
if not keep_freed():
    sys.exit(77)
[faults() for _ in range(12)]  # until the heap has grown to what is asked for
print(freed, sum([faults() for _ in range(6)]))
"""


def test_a_program_can_keep_what_it_frees():
    told = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=False
    )
    if told.returncode == 77:
        pytest.skip("this C library cannot be told to keep freed memory: not that of GNU")
    assert told.returncode == 0, told.stderr
    freed, kept_faults = map(int, told.stdout.split())
    assert freed > 0
    assert kept_faults < freed / 10
