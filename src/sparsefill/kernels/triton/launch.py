"""How kernels are launched on a device: warps, pipeline depth and loads, from a small table.

Nothing is tuned on a user's first prompt. The table was chosen by what compiles without
spilling registers for the targets of docs/triton-kernels.md; it is not yet measured on any GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton

from sparsefill.gpu import FIRST_WITH_DESCRIPTORS, WIDEST_WITH_DESCRIPTORS, Variant, cut
from sparsefill.gpu.scores import INTERPRETED


class Settings(NamedTuple):
    """How the attend kernel is launched for a head dimension.

    A loop that loads the place of its tile first needs 1 + 2 * depth stages to keep `depth`
    tiles in flight: half of the stages go to the places.

    Args:
        warps: of a program.
        stages: of the loop over whole tiles.
        column_stages: of the loop over columns.
        parts: the two parts of the head dimension, powers of two; the second may be 0.
        descriptors: whole tiles are loaded by tensor descriptors, not by pointers.
    """

    warps: int
    stages: int
    column_stages: int
    parts: tuple[int, int]
    descriptors: bool


def settings_for(d: int, variant: Variant | None = None) -> Settings:
    """Choose for the current device.

    Args:
        d: head dimension.
        variant: how whole tiles are loaded; None takes what the device is best at.
    """
    parts, descriptors = cut(d), variant == "descriptors"
    if INTERPRETED:  # it takes no notice of warps and stages
        return Settings(4, 1, 1, parts, descriptors)
    target: Any = triton.runtime.driver.active.get_current_target()
    if target.backend == "hip":
        return Settings(4, 2 if d <= 128 else 1, 1, parts, descriptors)
    if variant is None:
        newer = divmod(target.arch, 10) >= FIRST_WITH_DESCRIPTORS
        descriptors = newer and d <= WIDEST_WITH_DESCRIPTORS
    if 90 <= target.arch < 120:  # from 120 on with the matrix units of 80 again
        warps, stages, column_stages = (4, 5, 1) if d <= 128 else (8, 3, 3)
        return Settings(warps, stages, column_stages, parts, descriptors)
    warps = 4 if d <= 64 else 8  # with 4 registers spill
    return Settings(warps, 5 if d <= 128 else 3, 1, parts, descriptors)
