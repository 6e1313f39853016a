"""The names of Gluon's operations that changed from one Triton to the next (3.6 to 3.9)."""

from __future__ import annotations

from typing import Any

from triton.experimental.gluon import language
from triton.experimental.gluon.language.nvidia.hopper import async_copy, tma


def either(module: Any, newer: str, older: str) -> Any:
    """Return what a module calls by one of two names."""
    return getattr(module, newer if hasattr(module, newer) else older)


load_tile = either(tma, "async_load", "async_copy_global_to_shared")  # from 3.8 on
load_rows = either(async_copy, "async_load", "async_copy_global_to_shared")  # from 3.9 on
meet = either(language, "barrier", "thread_barrier")  # from 3.7 on
