"""The benchmarks, registered by name."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.session import Session

CASES = {  # name: module, imported when it runs; each has a function `run`
    "attend": "benchmarks.cases.attend",
    "estimate": "benchmarks.cases.estimate",
    "break_even": "benchmarks.cases.break_even",
    "patterns": "benchmarks.cases.patterns",
    "prefill": "benchmarks.cases.prefill",
    "calibrate": "benchmarks.cases.calibrate",
}


def run_case(name: str, request: Any, session: Session) -> None:
    """Measure what a request asks for.

    Args:
        request: the dataclass that the case's module defines.
    """
    importlib.import_module(CASES[name]).run(request, session)
