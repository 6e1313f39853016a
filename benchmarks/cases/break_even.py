"""Case `break_even`: from which prompt length on finding cells first pays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from benchmarks.cases import estimate
from benchmarks.rows import Row
from benchmarks.session import Session

Request = estimate.Request


def run(request: Request, session: Session) -> None:
    """Time estimate and attend by length, beside dense through the same backend and SDPA."""
    estimate.run(replace(request, dense=True), session, case="break_even")
    for line in summary(session.ledger.rows):
        session.tell(line)


def summary(rows: Iterable[Row]) -> list[str]:
    """Say for each curve of the rows where it begins to win, against either baseline."""
    curves: dict[tuple[object, ...], dict[int, Row]] = {}
    for row in rows:
        if row.case == "break_even" and row.estimate_s is not None:
            name = (row.backend, row.pattern, row.target_density, row.dtype, row.h, row.g, row.d)
            curves.setdefault(name, {})[row.n] = row
    lines = []
    for (backend, pattern, target, dtype, *shape), curve in curves.items():
        what = f"{backend} {pattern}" + ("" if target is None else f" at {target:.0%}")
        sdpa = {n: row.speedup or 0.0 for n, row in curve.items()}
        own = {n: (row.dense_s or 0.0) / (row.median_s or 1.0) for n, row in curve.items()}
        lines.append(
            f"break-even of {what}, {'x'.join(map(str, shape))} {dtype}:"
            f" {_said(sdpa)} against sdpa, {_said(own)} against dense through {backend}"
        )
    return lines


def break_even(speedups: dict[int, float]) -> int | None:
    """Return the shortest length from which on every measured length wins; None if none.

    Example:
        >>> break_even({64: 1.1, 128: 0.8, 256: 1.2, 512: 2.0})
        256
    """
    winning = None
    for n in sorted(speedups, reverse=True):
        if speedups[n] < 1:
            break
        winning = n
    return winning


def _said(speedups: dict[int, float]) -> str:
    n = break_even(speedups)
    return f"not by {max(speedups)} tokens" if n is None else f"{n} tokens"
