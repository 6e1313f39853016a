"""The names of Gluon's operations that changed from one Triton to the next (3.6 to 3.9)."""

from __future__ import annotations

from typing import Any

from triton.experimental.gluon import language
from triton.experimental.gluon.language.nvidia.hopper import tma

_tma: Any = tma
_language: Any = language

if hasattr(_tma, "async_load"):  # 3.8
    load_tile = _tma.async_load
else:
    load_tile = _tma.async_copy_global_to_shared

if hasattr(_language, "barrier"):  # 3.7
    meet = _language.barrier
else:
    meet = _language.thread_barrier
