"""The whole method at one length: find the cells on planted inputs, and attend to them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.budget import pattern_for
from benchmarks.gate import check_result
from benchmarks.gpu.attend import LONGEST_UNSHARED, Sample, attend_by, timed
from benchmarks.gpu.check import VARIANTS, Check
from benchmarks.gpu.limits import attend_work, estimate_work, rates_of
from benchmarks.indices import keys_per_query
from benchmarks.kept import mean_density
from benchmarks.measure import Timing
from benchmarks.problem import Problem, Qkv, planted_inputs
from sparsefill import BlockTopK, Pattern, SparseIndex, VerticalSlash, estimate
from sparsefill.patterns import to_dict
from sparsefill.profile import DEFAULT_PATTERN
from sparsefill.tile import TILE

TARGET = 0.05  # the density at which the share of the estimate is judged
LONGEST_SEARCH = 2**17  # for the budget of a density, which estimates some thirty times
TORCH_LENGTH = 8192  # at which the estimate by torch operations is timed as well


def time_estimate(check: Check, n: int) -> None:
    """Time estimate and attend in turn, pattern by pattern, and append their rows."""
    problem = check.problem(n)
    qkv = planted_inputs(problem, check.seed)
    sample = Sample(qkv)
    for name, target, pattern in patterns(problem, qkv):
        for by in ("auto", "torch") if n == TORCH_LENGTH else ("auto",):
            if check.left > 0:
                time_pattern(check, problem, qkv, sample, name, target, pattern, by)


def patterns(problem: Problem, qkv: Qkv) -> Iterator[tuple[str, float | None, Pattern]]:
    """Choose what is estimated: the default, MInference's budget, and budgets of a density."""
    n = problem.n
    yield "vertical-slash default", None, DEFAULT_PATTERN
    yield "vertical-slash 1000+6096", None, VerticalSlash(verticals=1000, slashes=6096)
    if n <= LONGEST_UNSHARED:
        blocks = max(1, round(keys_per_query(n, TARGET) / TILE))
        yield "block-topk", TARGET, BlockTopK(blocks=blocks)
    if n <= LONGEST_SEARCH:
        yield "vertical-slash", TARGET, pattern_for("vertical-slash", TARGET, qkv)


def time_pattern(
    check: Check,
    problem: Problem,
    qkv: Qkv,
    sample: Sample,
    name: str,
    target: float | None,
    pattern: Pattern,
    by: str,
) -> None:
    """Judge what attending to the estimated cells gives, time both stages, append a row.

    Args:
        by: the backend of the estimate.
    """
    backend = VARIANTS[0] if by == "auto" else f"{by}+{VARIANTS[0]}"
    with check.attempt("estimate", backend, name, problem, target_density=target):
        find = partial(estimate, pattern, qkv.q, qkv.k, backend=by)
        cells, _ = check.run(find)
        attend = attend_by(VARIANTS[0], qkv, cells)
        (out, lse), _ = check.run(attend)
        check_result(f"{backend} on {name}, {problem},", out, lse, qkv, cells, seed=check.seed)
        recall = sample.recall(lse)
        del out, lse
        first = {"estimate": check.run(find)[1], "attend": check.run(attend)[1]}
        found = check.interleave({"estimate": find, "attend": attend}, first)
        finding, attending = found["estimate"], found["attend"]
        kept = mean_density(cells)
        check.add(
            "estimate",
            backend,
            name,
            problem,
            target_density=target,
            density=kept,
            recall=recall,
            estimate_s=finding.median_s,
            attend_s=attending.median_s,
            share=finding.median_s / attending.median_s,
            parameters={**to_dict(pattern), "estimate": by},
            work=work_of(check, problem, pattern, cells, kept, finding, attending),
            **timed(check, n=problem.n, timing=finding.plus(attending), density=kept),
        )


def work_of(
    check: Check,
    problem: Problem,
    pattern: Pattern,
    cells: SparseIndex,
    kept: float,
    finding: Timing,
    attending: Timing,
) -> dict[str, Any]:
    """Count the work of both stages, that of the estimate under names of its own."""
    rates = rates_of(check.device)
    work = attend_work(problem, kept, cells).fields(rates, attending.median_s)
    own = estimate_work(problem, pattern)
    if own is not None:
        counted = own.fields(rates, finding.median_s)
        work |= {f"estimate_{name}": counted[name] for name in ESTIMATE_FIELDS}
    return work


ESTIMATE_FIELDS = ("flops", "bytes", "limit_s", "of_limit")
