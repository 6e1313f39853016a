"""The most memory that a piece of work held, apart from what came before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REFERENCES, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"  # proc(5)


def with_peak(function: Callable[[], Any], device: torch.device) -> tuple[Any, int | None]:
    """Return a function's result and the peak in bytes: of the accelerator, else resident.

    None where the system cannot begin a peak anew (it takes Linux's /proc).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return function(), torch.cuda.max_memory_allocated(device)
    if not REFERENCES.exists():
        return function(), None
    REFERENCES.write_text(RESET_PEAK, "ascii")
    result = function()
    lines = STATUS.read_text("ascii").splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return result, int(kibibytes) * 1024
