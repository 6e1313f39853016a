"""The machine's measured peak rate, which `peak_fraction` is a fraction of."""

from __future__ import annotations

import ctypes
import functools

from sparsefill import native

KINDS = {"fp32": 0, "bf16": 1}  # what sparsefill_peak calls them
SECONDS = 0.5  # of the micro-benchmark: long enough for the clock to settle


@functools.cache
def measured_peak(dtype: str, threads: int) -> float | None:
    """Measure how many multiply-add operations per second the cores can do.

    Returns:
        FLOP/s; None where the compiled library or the dtype's own instructions are missing.
    """
    library = native.library()
    if dtype not in KINDS or library is None:
        return None
    function = library.sparsefill_peak
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_double)
    function.restype = ctypes.c_double
    rate = float(function(KINDS[dtype], threads, SECONDS))
    return rate if rate > 0 else None
