"""The emulator is as strict as it says; `test_hopper.py` plants bugs in a whole kernel."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparsefill.kernels.triton.gluon_names import load_rows, load_tile, meet
from tests.triton.emulator import Emulator
from tests.triton.gluon_values import DTYPES, FaultError, Value

# the emulator replaces names, and wants all of them there
_ = async_copy, fence_async_shared, warpgroup_mma, warpgroup_mma_wait, load_rows, load_tile, meet


@gluon.jit
def copy(to_ptr, from_ptr, first, count, N: gl.constexpr):
    """Copy `count` of N elements."""
    place = gl.arange(0, N, None)
    there = place < count
    gl.store(to_ptr + place, gl.load(from_ptr + first + place, mask=there), mask=there)


@gluon.jit
def say(bar):
    """Arrive once."""
    mbarrier.arrive(bar, count=1)


@gluon.jit
def hear(bar, to_ptr):
    """Wait for one phase, and say so."""
    mbarrier.wait(bar, 0)
    gl.store(to_ptr, 1)


@gluon.jit
def meeting(to_ptr, COUNT: gl.constexpr):
    """Let two partitions meet at a barrier that takes COUNT arrivals."""
    bar = gl.allocate_shared_memory(gl.int64, [1], None)
    mbarrier.init(bar, count=COUNT)
    gl.warp_specialize([(say, (bar,)), (hear, (bar, to_ptr)), (say, (bar,))], [4, 4], [24, 24])


def emulator(kernel: str, seed: int = 0) -> Any:
    launch = Emulator([sys.modules[__name__]], kernel, seed)[(1,)]
    return lambda *arguments, **constants: launch(*arguments, num_warps=4, **constants)


def test_copies():
    source, target = torch.arange(8.0), torch.zeros(8)
    emulator("copy")(target, source, 0, 8, N=8)
    assert torch.equal(target, source)


@pytest.mark.parametrize(("first", "count"), [(1, 8), (-1, 8)])
def test_memory_outside_of_a_tensor_is_refused(first: int, count: int):
    with pytest.raises(FaultError, match="load outside"):
        emulator("copy")(torch.zeros(8), torch.zeros(8), first, count, N=8)


def test_gaps_of_a_view_are_outside():
    with pytest.raises(FaultError, match="load outside"):
        emulator("copy")(torch.zeros(4), torch.zeros(8)[::2], 0, 4, N=4)


def test_what_is_never_stored_is_found():
    with pytest.raises(FaultError, match="1 never stored"):
        emulator("copy")(torch.zeros(8), torch.zeros(8), 0, 7, N=8)


def test_what_is_stored_twice_is_found():
    launch = Emulator([sys.modules[__name__]], "copy", 0)[(2,)]
    with pytest.raises(FaultError, match="8 repeatedly"):
        launch(torch.zeros(8), torch.zeros(8), 0, 8, N=8, num_warps=4)


@pytest.mark.parametrize("seed", range(5))
def test_partitions_meet(seed: int):
    heard = torch.zeros(1, dtype=torch.int32)
    emulator("meeting", seed)(heard, COUNT=2)
    assert heard.item() == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_count_is_found(count: int):
    """Too high, and a phase never ends; too low, and two may end before who waits looks."""

    def meet_often() -> None:
        for seed in range(20):
            emulator("meeting", seed)(torch.zeros(1, dtype=torch.int32), COUNT=count)

    with pytest.raises(FaultError, match="wait for ever"):
        meet_often()


@pytest.mark.parametrize("factor", [2, 2**15, -(2**17)])
def test_32_bit_overflow_is_found(factor: int):
    numbers: Any = Value(np.array([3, 1 << 16], np.int32))
    if abs(factor) < 2**15:
        assert (numbers * factor).data.tolist() == [3 * factor, factor << 16]
        return
    with pytest.raises(FaultError, match="overflow"):
        _ = numbers * factor
    assert (numbers.to(DTYPES["int64"]) * factor).data[1] == factor << 16


def test_division_truncates():
    numbers: Any = Value(np.array([-65, -64, 64, 65], np.int32))
    assert (numbers // 32).data.tolist() == [-2, -2, 2, 2]
    assert (numbers % 32).data.tolist() == [-1, 0, 0, 1]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_narrow_floats_are_rounded(name: str):
    numbers = torch.randn(99)
    rounded = Value(numbers.numpy()).to(DTYPES[name]).data
    assert np.array_equal(rounded, numbers.to(getattr(torch, name)).float().numpy())
