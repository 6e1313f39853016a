"""Case `estimate`: finding the cells and attending to them, on inputs with planted lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from benchmarks import peers
from benchmarks.budget import pattern_for, targets_of
from benchmarks.fit import EXTRAPOLATED, fit_seconds, seconds_at
from benchmarks.gate import check_result
from benchmarks.indices import dense_index
from benchmarks.kept import dense_sample, mean_density, mean_recall
from benchmarks.measure import Timed, Timing, run_once
from benchmarks.problem import Grid, Problem, Qkv, planted_inputs
from benchmarks.rows import Key
from benchmarks.session import Session, peak_fraction, timed
from sparsefill import Pattern, SparseIndex, attend, estimate
from sparsefill.patterns import to_dict


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure: every combination.

    Args:
        patterns: as typed; one without parameters gets the budget of each density.
        dense: also time dense attention through each backend.
        dense_up_to: longest length that dense is measured at; all when None.
    """

    grid: Grid
    densities: Sequence[float]
    patterns: Sequence[str] = ("vertical-slash", "block-topk")
    dense: bool = False
    dense_up_to: int | None = None


class Found(NamedTuple):
    """A pattern on these inputs."""

    text: str
    target: float | None
    pattern: Pattern
    cells: SparseIndex
    density: float


def run(request: Request, session: Session, *, case: str = "estimate") -> None:
    """Measure one problem after the other; each is one interleaved group."""
    asked = [
        (text, target)
        for text in request.patterns
        for target in targets_of(text, list(request.densities))
    ]
    problems = request.grid.problems()
    session.plan(sum(problem.flops for problem in problems))
    for problem in problems:
        _measure(case, problem, asked, request, session)


def _measure(
    case: str,
    problem: Problem,
    asked: Sequence[tuple[str, float | None]],
    request: Request,
    session: Session,
) -> None:
    """Search budgets, pass the gate, time everything in turn, and store rows."""

    def key(backend: str, text: str, target: float | None) -> Key:
        return session.key(case, problem, backend, text, target=target)

    backends = session.backends(problem)
    measured = request.dense_up_to is None or problem.n <= request.dense_up_to
    dense = backends if request.dense and measured else []
    plain = [key(name, "dense", 1.0) for name in (*(["sdpa"] if measured else []), *dense)]
    sparse = [key(name, text, target) for name in backends for text, target in asked]
    if all(own in session.ledger for own in (*plain, *sparse)):
        session.skip(problem, work=problem.flops)
        return

    # raises before anything is timed if there are too few lengths to extrapolate from
    fitted = None if measured else fit_seconds(session.seconds_by_length(key("sdpa", "dense", 1.0)))
    qkv = planted_inputs(problem, session.seed)
    every, sample = dense_index(problem), dense_sample(qkv)
    functions: dict[str, Timed] = {}
    first: dict[str, float] = {}
    if measured:
        functions["sdpa"] = partial(peers.sdpa, qkv)
        out, first["sdpa"] = run_once(functions["sdpa"])
        check_result(f"sdpa, {problem},", out, None, qkv, every)
        del out
    for backend in dense:
        functions[backend], _, first[backend] = _proved(backend, qkv, every, f"dense, {problem}")
    found: list[tuple[Found, dict[str, float]]] = []
    for text, target in asked:
        pattern = pattern_for(text, target, qkv)
        index = estimate(pattern, qkv.q, qkv.k)
        own = Found(text, target, pattern, index, mean_density(index))
        functions[f"{text} {target}"] = partial(estimate, pattern, qkv.q, qkv.k)
        recalls = {}
        for backend in backends:
            name = f"{text} {target} {backend}"
            functions[name], lse, first[name] = _proved(backend, qkv, index, f"{text}, {problem}")
            recalls[backend] = mean_recall(lse, sample)
        found.append((own, recalls))

    timings = session.measure(functions, work=problem.flops, first=first)
    _store_dense(problem, timings, plain, session)
    if fitted is None:
        baseline = (timings["sdpa"].median_s, "sdpa")
    else:
        baseline = (seconds_at(fitted, problem.n), EXTRAPOLATED)
    for own, recalls in found:
        for backend, recall in recalls.items():
            finding = timings[f"{own.text} {own.target}"]
            attending = timings[f"{own.text} {own.target} {backend}"]
            whole = timings.get(backend)
            session.add(
                key(backend, own.text, own.target),
                density=own.density,
                recall=recall,
                estimate_s=finding.median_s,
                attend_s=attending.median_s,
                share=finding.median_s / attending.median_s,
                dense_s=whole and whole.median_s,
                efficiency=whole and whole.median_s * own.density / attending.median_s,
                peak_fraction=peak_fraction(problem, own.density, attending.median_s),
                parameters=to_dict(own.pattern),
                **timed(finding.plus(attending), *baseline),
            )


def _proved(
    backend: Any, qkv: Qkv, index: SparseIndex, what: str
) -> tuple[Timed, Float[Tensor, "1 h n"], float]:
    """Return what to time, its LSE and its first seconds, after the result passed the gate."""
    function = partial(attend, *qkv, index, backend=backend)
    (out, lse), seconds = run_once(function)
    check_result(f"{backend} on {what},", out, lse, qkv, index)
    return function, lse, seconds


def _store_dense(
    problem: Problem, timings: dict[str, Timing], keys: Sequence[Key], session: Session
) -> None:
    """Store the rows of dense attention."""
    for key in keys:
        timing = timings[key.backend]
        session.add(
            key,
            density=1.0,
            recall=1.0,
            efficiency=1.0,
            attend_s=timing.median_s,
            peak_fraction=peak_fraction(problem, 1.0, timing.median_s),
            **timed(timing, timings["sdpa"].median_s, "sdpa"),
        )
