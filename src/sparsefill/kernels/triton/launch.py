"""How kernels are launched on a device: warps and pipeline depth, from a small table.

Nothing is tuned on a user's first prompt. The table was chosen by what compiles without
spilling registers; it is not yet measured on any GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from triton.runtime.interpreter import InterpretedFunction

from sparsefill.kernels.triton.attend import attend_kernel

INTERPRETED = isinstance(attend_kernel, InterpretedFunction)  # Triton runs kernels on the CPU


class Settings(NamedTuple):
    """Warps of a program, and stages of its loops over tiles and over columns.

    A loop that loads the place of its tile first needs 1 + 2 * depth stages to keep `depth`
    tiles in flight: half of the stages go to the places.
    """

    warps: int
    stages: int
    column_stages: int


def settings_for(d: int) -> Settings:
    """Choose for the current device.

    Args:
        d: head dimension.
    """
    if INTERPRETED:
        return Settings(4, 1, 1)  # it takes no notice
    target: Any = triton.runtime.driver.active.get_current_target()
    if target.backend == "hip":
        return Settings(4, 2 if d <= 128 else 1, 1)
    if 90 <= target.arch < 120:  # from 120 on with the matrix units of 80 again
        return Settings(4, 5, 1) if d <= 128 else Settings(8, 3, 3)
    warps = 4 if d <= 64 else 8  # with 4 registers spill
    return Settings(warps, 5 if d <= 128 else 3, 1)
