"""Which files run: in one process, Triton's kernels are either interpreted or compiled.

Triton decides that by the environment when a kernel is defined; `make test-triton` does both.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NoReturn

import pytest

MISSING = importlib.util.find_spec("triton") is None
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETED = {  # all others compile
    "test_estimates.py",
    "test_gpu_check.py",
    "test_guard.py",
    "test_interpreted.py",
    "test_plans.py",
}

if INTERPRETING and not MISSING:
    from tests.triton import guard

    guard.install()


class Skipped(pytest.File):
    """A file that this process cannot run."""

    def collect(self) -> NoReturn:
        if MISSING:
            pytest.skip("Triton is not installed")
        if INTERPRETING:
            pytest.skip("compiles kernels: run it without TRITON_INTERPRET=1")
        pytest.skip("interprets kernels: run it with TRITON_INTERPRET=1")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Skipped | None:
    """Skip a file before it is imported, saying why."""
    if MISSING or (module_path.name in INTERPRETED) != INTERPRETING:
        return Skipped.from_parent(parent, path=module_path)
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Let the interpreter of Triton 3.6 do what numpy warns of."""
    if INTERPRETING:
        line = "ignore:Conversion of an array:DeprecationWarning"
        config.addinivalue_line("filterwarnings", line)
