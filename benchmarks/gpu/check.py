"""One run of the GPU check: where its rows go, the time that is left, and the one clock."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from benchmarks.arguments import Shape
from benchmarks.measure import Timed, Timing, interleave, run_once
from benchmarks.problem import Problem
from benchmarks.rows import Ledger, Row, environment
from sparsefill.errors import UnsupportedError
from sparsefill.kernels import BACKENDS

LLAMA_3_8B = Shape(h=32, g=8, d=128)
VARIANTS = ("triton", "triton-descriptors", "triton-hopper", "triton-pointers")  # default first
REPEATED = "-repeated"  # ends the name of a peer that got each query head's own keys
FLUSHED_BYTES = 2**29  # more than any L2; clearing them takes longer than the host's next launch


class DeviceLostError(Exception):
    """The device answers no more: whatever would follow could only fail as well."""


@dataclass(kw_only=True)
class Check:
    """What all parts of a run share.

    Args:
        model: what is read end to end; None to leave that out.
        until: when to begin nothing new, on the monotonic clock.
        max_seconds: limit of the timed runs of one function.
        baselines: the fastest dense attention and its seconds, by length.
        known: what attending densely took, by backend: the longest length and its seconds.
    """

    ledger: Ledger
    device: torch.device
    until: float
    shape: Shape = LLAMA_3_8B
    model: str | None = None
    repeats: int = 7
    max_seconds: float = 1.5
    seed: int = 0
    environment: dict[str, Any] = field(default_factory=lambda: {**environment(), **_driver()})
    baselines: dict[int, tuple[str, float]] = field(default_factory=dict)
    known: dict[str, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = len(self.ledger.rows)

    @property
    def rows(self) -> list[Row]:
        """The rows of this run."""
        return self.ledger.rows[self.before :]

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - monotonic()

    def problem(self, n: int) -> Problem:
        """Return the layer that is timed, at one length."""
        return Problem(n, self.shape, "bf16", self.device.type)

    def add(self, case: str, backend: str, pattern: str, problem: Problem, **fields: Any) -> None:
        """Append a row at once."""
        row = Row(
            case=case,
            backend=backend,
            pattern=pattern,
            threads=torch.get_num_threads(),
            environment=self.environment,
            **problem.fields,
            **fields,
        )
        self.ledger.add(row)

    @contextmanager
    def attempt(
        self, case: str, backend: str, pattern: str, problem: Problem, **fields: Any
    ) -> Iterator[None]:
        """Record what fails and go on: the next row may tell why.

        Raises:
            DeviceLostError: what failed took the device with it.
        """
        try:
            yield
        except DeviceLostError:
            raise
        except UnsupportedError as error:
            self.add(case, backend, pattern, problem, skipped=_line(error), **fields)
        except Exception as error:  # of Triton, Inductor or a peer: any kind
            text = f"{type(error).__name__}: {_line(error)}"
            self.add(case, backend, pattern, problem, error=text[:400], **fields)
            self._recover(text)

    def _recover(self, text: str) -> None:
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                raise DeviceLostError(text) from None
            torch.cuda.empty_cache()

    def run(self, function: Callable[[], Any]) -> tuple[Any, float]:
        """Return a function's result and the seconds that it took on the device.

        What is cleared before empties the L2 and lets the host queue its launches meanwhile.
        """
        if self.device.type != "cuda":
            return run_once(function)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()
        begin.record()
        result = function()
        end.record()
        end.synchronize()
        return result, begin.elapsed_time(end) / 1000

    def interleave(
        self, functions: Mapping[str, Timed], first: Mapping[str, float]
    ) -> dict[str, Timing]:
        """Time functions in turn, in fewer rounds where little time is left."""

        def seconds(function: Timed) -> float:
            return self.run(function)[1]

        return interleave(
            {name: partial(seconds, function) for name, function in functions.items()},
            repeats=self.repeats,
            max_seconds=min(self.max_seconds, max(0.0, self.left) / 40),
            first=first,
        )

    def expected(self, backend: str, n: int) -> float:
        """Predict seconds of attending densely from a shorter length; 0 if none is known."""
        repeated = self.known.get(backend + REPEATED, (n, 0.0))
        length, seconds = self.known.get(backend, repeated)
        return seconds * (n / length) ** 2

    @cached_property
    def _flushed(self) -> Tensor:
        return torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=self.device)


def variants() -> Iterator[str]:
    """Name our own kernels that this installation knows, the default first."""
    return (name for name in VARIANTS if name in BACKENDS)


def _line(error: BaseException) -> str:
    """Return the first line of an error's text that says something."""
    return next(filter(None, map(str.strip, str(error).splitlines())), "")


def _driver() -> dict[str, Any]:
    """Name the versions that only an NVIDIA machine has."""
    if not torch.cuda.is_available():
        return {}
    found = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        found["driver"] = done.stdout.strip().partition("\n")[0]
    return found
