"""Memory for results that a later call uses again.

The system clears fresh memory page by page, which takes a tenth of a call at 2 % density
over 32K tokens, and PyTorch keeps no freed memory on the CPU. So a large result's memory
comes back here once nobody holds the result, and the next result of its size gets it. Such
a result cannot be resized in place.
"""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST, LARGEST = 4 << 20, 256 << 20  # bytes of a result that is worth it, and worth keeping

NO_MAPS, TRIM = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h

_free: deque[Tensor] = deque(maxlen=1)  # its operations are atomic: any thread may come


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a contiguous tensor on the CPU, not initialised, whatever torch's defaults are."""
    size = math.prod(shape) * dtype.itemsize
    if not SMALLEST <= size <= LARGEST or torch.compiler.is_compiling():
        return torch.empty(shape, dtype=dtype, device="cpu")
    memory = _take(size)
    lease = memory.numpy()[:size]  # what the result's storage holds on to
    weakref.finalize(lease, _free.append, memory).atexit = False
    return torch.from_numpy(lease).view(dtype).view(shape)


def _take(size: int) -> Tensor:
    """Return at least `size` bytes: the kept ones where they fit, else fresh ones."""
    try:
        kept = _free.pop()
    except IndexError:
        kept = None
    if kept is not None and size <= len(kept) <= 2 * size:
        return kept
    del kept  # before more is asked for
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def keep_freed() -> bool:
    """Have this process keep what it frees, for its own next request: for programs, not libraries.

    Each layer of a long prompt asks for the same few large blocks, which the C library
    otherwise hands back and has cleared anew: a fifth of a prefill of 4K tokens.

    Returns:
        whether the C library can be told so: that of GNU can.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is None:
        return False
    return bool(set_option(NO_MAPS, 0)) and bool(set_option(TRIM, -1))
