"""Case `calibrate`: the constants of `sparsefill.cost.COSTS`, measured on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from benchmarks import peers
from benchmarks.fit import fit_terms
from benchmarks.gate import check_result
from benchmarks.indices import dense_index, slash_index
from benchmarks.measure import Timed, Timing, run_once
from benchmarks.problem import Grid, Problem, Qkv, planted_inputs, random_inputs
from benchmarks.rows import Row
from benchmarks.session import Session
from benchmarks.table import percent, seconds
from sparsefill import BlockTopK, Dense, Pattern, SparseIndex, VerticalSlash, attend, estimate
from sparsefill.cost import COSTS, Costs, dense_cost, sparse_cost
from sparsefill.errors import InputError
from sparsefill.kernels import attend_unchecked
from sparsefill.tile import TILE

CONSTANTS = tuple(field.name for field in fields(Costs))
FITS = {  # what is timed: the constants that tell its time; `head` counts from the last
    "dense": ("unit",),
    "attend": ("tile", "row_block"),
    "block-topk": ("pooled_row", "pooled_pair", "head"),
    "vertical-slash": ("probe_tile", "head"),
}
ESTIMATES: dict[str, Pattern] = {  # budgets that are less than all there is, also if short
    "block-topk": BlockTopK(blocks=4),
    "vertical-slash": VerticalSlash(verticals=500, slashes=200),
}
SHORTER = (1, 2, 4)  # estimates are timed at the lengths divided by these as well
MOST_TILES = 64  # slash tiles per row block


Request = Grid  # every combination of shape and dtype is measured, over all lengths at once


class Sample(NamedTuple):
    """One thing to time.

    Args:
        fit: which fit it counts for.
        work: how often each constant of the fit counts in it, all heads together.
        cells: what its result is checked with; None for an estimate.
    """

    fit: str
    work: list[float]
    function: Timed
    qkv: Qkv
    cells: SparseIndex | None = None


def run(request: Request, session: Session) -> None:
    """Measure one backend, shape and dtype after the other; each is one interleaved group."""
    lengths = request.lengths
    problems = replace(request, lengths=[max(lengths)]).problems()
    jobs = [(problem, own) for problem in problems for own in session.backends(problem)]
    for _, backend in jobs:
        if backend.partition("-")[0] not in COSTS:
            raise InputError(f"--backends must be among {', '.join(COSTS)}, got {backend!r}")
    session.plan(len(jobs))
    for problem, backend in jobs:
        key = session.key("calibrate", problem, backend, f"costs at {'+'.join(map(str, lengths))}")
        if key in session.ledger:
            session.skip(f"{backend}, {problem}", work=1)
            continue
        samples = dict(_samples(lengths, problem, backend, session.seed))
        first = {name: _prove(f"{backend} on {name},", own) for name, own in samples.items()}
        other = samples[f"dense {min(lengths)}"].function
        functions = {name: partial(_cold, own.function, other) for name, own in samples.items()}
        timings = session.measure(functions, work=1, first=first)
        dense = timings[f"dense {problem.n}"]
        session.add(
            key,
            dense_s=dense.median_s,
            repeats=len(dense.samples),
            parameters=solve(samples, timings),
        )
    for line in summary(session.ledger.rows):
        session.tell(line)


def solve(samples: Mapping[str, Sample], timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Fit the constants to the times, each fit with the residual (RMS of relative errors)."""
    found: dict[str, dict[str, float]] = {}
    for fit, names in FITS.items():
        own = {name: sample for name, sample in samples.items() if sample.fit == fit}
        work = np.array([sample.work for sample in own.values()])
        took = np.array([timings[name].median_s for name in own])
        constants = fit_terms(work, took)
        residual = np.sqrt(np.square(work @ constants / took - 1).mean())
        found[fit] = dict(zip(names, constants.tolist(), strict=True))
        found[fit]["residual"] = float(residual)
    unit = found["dense"].pop("unit")
    for constants in found.values():
        constants |= {name: constants[name] / unit for name in constants if name != "residual"}
    every = {name: value for own in found.values() for name, value in own.items()}
    costs = {name: every[name] for name in CONSTANTS}
    return {"unit_s": unit, "costs": costs, "fits": found}


def summary(rows: Iterable[Row]) -> Iterator[str]:
    """Say for each row what was measured, what `cost.py` has, and their ratio."""
    fit_of = {name: fit for fit, names in FITS.items() for name in names}
    for row in rows:
        if row.case == "calibrate" and row.parameters is not None:
            unit, fits = row.parameters["unit_s"], row.parameters["fits"]
            yield (
                f"{row.backend} {row.h}x{row.g}x{row.d} {row.dtype}, {row.pattern}:"
                f" unit {seconds(unit)} (residual {percent(fits['dense']['residual'])})"
            )
            yield f"  {'':12}{'measured':>10}{'cost.py':>10}{'ratio':>8}{'residual':>10}"
            for name, value in row.parameters["costs"].items():
                now = getattr(COSTS[row.backend.partition("-")[0]], name)
                missed = percent(fits[fit_of[name]]["residual"])
                yield f"  {name:12}{value:10.4f}{now:10.4f}{value / now:8.2f}{missed:>10}"


def _samples(
    lengths: Sequence[int], longest: Problem, backend: Any, seed: int
) -> Iterator[tuple[str, Sample]]:
    """Yield what to time: dense and slash tiles at the lengths, estimates at more of them."""
    h = longest.shape.h
    for n in sorted({max(1, own // divisor) for own in lengths for divisor in SHORTER}):
        problem = Problem(n, longest.shape, longest.dtype)
        qkv = planted_inputs(problem, seed)
        for fit, pattern in ESTIMATES.items():
            work = [h * _count(name, pattern, n) for name in FITS[fit]]
            function = partial(estimate, pattern, qkv.q, qkv.k, backend=backend)
            yield f"{fit} {n}", Sample(fit, work, function, qkv)
        if n not in lengths:
            continue
        qkv = random_inputs(problem, seed)  # what attending costs does not depend on values
        every, work = dense_index(problem), [h * dense_cost(n, n)]
        yield f"dense {n}", Sample("dense", work, partial(_dense, qkv, backend), qkv, every)
        tiles, rows = 1, -(-n // TILE)
        while tiles <= min(MOST_TILES, rows):
            index = slash_index(problem, tiles, seed)
            work = [float(index.keys_read().sum()) / TILE, float(h * rows)]
            function = partial(attend, *qkv, index, backend=backend)
            yield f"attend {n} {tiles}", Sample("attend", work, function, qkv, index)
            tiles *= 2


def _count(name: str, pattern: Pattern, n: int) -> float:
    """Count how often the cost model charges a constant for one head."""
    return sparse_cost(pattern, n, n, Costs(**{own: float(own == name) for own in CONSTANTS}))


def _dense(qkv: Qkv, backend: Any) -> tuple[Tensor, Tensor | None]:
    """Attend densely the fastest way: torch's own kernel, or the compiled ones."""
    if backend == "torch":
        return peers.sdpa(qkv), None
    index = estimate(Dense(), qkv.q[:, : qkv.k.shape[1]], qkv.k)  # one for each KV head
    scale = qkv.q.shape[-1] ** -0.5
    return attend_unchecked(*qkv, index, scale=scale, softcap=None, backend=backend)


def _cold(function: Timed, other: Timed) -> float:
    """Time a function after other work, as in a model: nothing of it is in a cache."""
    other()
    return run_once(function)[1]


def _prove(name: str, sample: Sample) -> float:
    """Run once, compare what was attended with the oracle, and return the seconds."""
    result, took = run_once(sample.function)
    if sample.cells is not None:
        out, lse = result
        check_result(name, out, lse, sample.qkv, sample.cells)
    return took
