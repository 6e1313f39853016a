"""What all cases share while they run: settings, the rows so far, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.arguments import DTYPES
from benchmarks.measure import Timed, Timing, interleave
from benchmarks.peak import measured_peak
from benchmarks.problem import Problem
from benchmarks.rows import Key, Ledger, Row, environment
from sparsefill.kernels import choose_backend


@dataclass(kw_only=True)
class Session:
    """One run of the command.

    Args:
        ledger: where rows go, and what need not be measured again.
        asked: backends as the user named them, `"auto"` included.
        repeats: timed rounds.
        max_seconds: limit of the timed runs of one function.
        seed: of inputs, indices and samples.
        tell: shows one line to whoever watches.
        plan: told the amount of work ahead, in any unit.
        advance: told how much of it was done.
    """

    ledger: Ledger
    asked: tuple[str, ...] = ("auto",)
    repeats: int = 5
    max_seconds: float = 60.0
    seed: int = 0
    tell: Callable[[str], None] = lambda text: None
    plan: Callable[[float], None] = lambda work: None
    advance: Callable[[float], None] = lambda work: None
    environment: dict[str, Any] = field(default_factory=environment)

    def backends(self, problem: Problem) -> list[Any]:
        """Resolve the backends for a problem, each once.

        Raises:
            InputError: there is no such backend.
            UnsupportedError: it cannot serve this problem.
        """
        shape = (1, 1, 1, problem.shape.d)
        q = torch.empty(shape, dtype=DTYPES[problem.dtype], device=problem.device)
        return list(dict.fromkeys(choose_backend(name, q) for name in self.asked))

    def key(
        self,
        case: str,
        problem: Problem,
        backend: str,
        pattern: str,
        *,
        target: float | None = None,
        model: str | None = None,
        prompt: str | None = None,
        reader: str | None = None,
    ) -> Key:
        """Name a measurement."""
        return Key(
            case=case,
            backend=backend,
            pattern=pattern,
            target_density=target,
            model=model,
            threads=torch.get_num_threads(),
            prompt=prompt,
            reader=reader,
            **problem.fields,
        )

    def seconds_by_length(self, like: Key) -> dict[int, float]:
        """Collect the times that the rows hold for one measurement at other lengths.

        Dense times do not depend on what the prompt says.
        """
        return {
            row.n: row.median_s
            for row in self.ledger.rows
            if row.median_s is not None and row.key._replace(n=like.n, prompt=like.prompt) == like
        }

    def measure(
        self,
        functions: Mapping[str, Timed],
        *,
        work: float,
        first: Mapping[str, float] | None = None,
    ) -> dict[str, Timing]:
        """Time functions in turn, passing progress on.

        Args:
            work: how much of the plan this is.
            first: seconds of the first runs that the gate made.
        """
        return interleave(
            functions,
            repeats=self.repeats,
            max_seconds=self.max_seconds,
            first=first,
            on_round=lambda share: self.advance(share * work),
        )

    def skip(self, what: object, *, work: float) -> None:
        """Pass over work whose rows are all there."""
        self.tell(f"{what}: all there already")
        self.advance(work)

    def add(self, key: Key, **fields: Any) -> None:
        """Store a row, unless it is there and was only timed for others to compare with."""
        if key not in self.ledger:
            self.ledger.add(Row(**key._asdict(), environment=self.environment, **fields))


def timed(timing: Timing, baseline_s: float, name: str) -> dict[str, Any]:
    """Return the fields of a row that compare a time with its baseline."""
    return {
        "median_s": timing.median_s,
        "iqr_s": timing.iqr_s,
        "repeats": len(timing.samples),
        "baseline": name,
        "baseline_s": baseline_s,
        "speedup": baseline_s / timing.median_s,
    }


def peak_fraction(problem: Problem, kept: float, seconds: float) -> float | None:
    """Return the share of the peak rate that attending to `kept` of the cells reached."""
    peak = measured_peak(problem.dtype, torch.get_num_threads())
    return None if peak is None else problem.flops * kept / seconds / peak
