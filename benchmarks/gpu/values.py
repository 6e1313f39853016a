"""Right first: our kernels against the float64 oracle, by the error-budget rule of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.arguments import Shape
from benchmarks.gpu.attend import attend_by
from benchmarks.gpu.check import Check, variants
from benchmarks.problem import Problem, Qkv
from sparsefill import Attended, SparseIndex
from tests.support.closeness import assert_attended
from tests.support.inputs import PATTERNS
from tests.support.table import CASES, Case, case_inputs, rows

SIZES = ((1, 1), (64, 64), (65, 65), (127, 127), (1000, 1000), (65, 190), (200, 77))
EACH = Case("mixed", h=2 * len(PATTERNS), g=len(PATTERNS), d=128, dtype="bf16")
TABLE_SECONDS = 80  # of the whole table before the slow tools: most of it is compiling
NARROW = {"bf16": "bf16", "f16": "fp16"}  # what the tests and the benchmarks call a dtype


def timed_cases() -> Iterator[Case]:
    """List what is judged first: head dimension and dtype as timed, a head of every pattern."""
    for n, m in SIZES:
        for shared in (False, True):
            yield EACH._replace(b=rows(n, m), n=n, m=m, shared=shared)


def table_cases() -> list[Case]:
    """Take the tests' table, of 32-bit cases every second in the other dtype; mixtures first."""
    own = [case for case in CASES if case.dtype in NARROW]
    wide = [case for case in CASES if case.dtype == "f32"]
    other = [case._replace(dtype=list(NARROW)[i % 2]) for i, case in enumerate(wide)]
    every = dict.fromkeys([*own, *other])
    return sorted(every, key=lambda case: case.pattern != "mixed")


def check_timed(check: Check) -> None:
    """Judge every kernel of ours as it is timed."""
    for backend in variants():
        for case in timed_cases():
            judge(check, backend, case)


def check_table(check: Check, cases: list[Case], seconds: float) -> None:
    """Judge the default on cases of the table for some time; what was judged leaves the list."""
    end = check.left - seconds
    while cases and check.left > max(0.0, end):
        judge(check, next(variants()), cases.pop(0))


def check_rest(check: Check, cases: list[Case]) -> None:
    """Use what time is left for the rest of the table, and say how much was not judged."""
    check_table(check, cases, check.left)
    if cases:
        why = f"no time left for {len(cases)} more cases of the table"
        add(check, next(variants()), cases[0], skipped=why)


def judge(check: Check, backend: str, case: Case) -> None:
    """Append a row that says whether a case is within the error budget."""
    problem, parameters = problem_of(case), _parameters(case)
    with check.attempt("values", backend, case.pattern, problem, **parameters):
        attend_and_judge(backend, check.device, case)
        add(check, backend, case)


def attend_and_judge(backend: str, device: torch.device, case: Case) -> None:
    """Attend on a device, and fail unless the CPU's oracle says that it is right."""
    qkv, index = case_inputs(case)
    there = Qkv(*(t.to(device) for t in qkv))
    got = attend_by(backend, there, moved(index, device), softcap=case.softcap)()
    assert_attended(Attended(*(t.cpu() for t in got)), qkv, index, softcap=case.softcap)


def moved(index: SparseIndex, device: torch.device) -> SparseIndex:
    """Copy an index to a device."""
    lists = {
        **index.lists(),
        "query_lengths": index.query_lengths,
        "key_lengths": index.key_lengths,
    }
    there: dict[str, Any] = {k: v if v is None else v.to(device) for k, v in lists.items()}
    return SparseIndex(n=index.n, m=index.m, **there)


def add(check: Check, backend: str, case: Case, **fields: Any) -> None:
    """Append a row of `values`."""
    check.add("values", backend, case.pattern, problem_of(case), **fields, **_parameters(case))


def problem_of(case: Case) -> Problem:
    """Describe a case as the rows do."""
    return Problem(case.n, Shape(case.h, case.g, case.d), NARROW[case.dtype])


def _parameters(case: Case) -> dict[str, Any]:
    others = {"b": case.b, "m": case.m, "shared": case.shared, "softcap": case.softcap}
    return {"parameters": others}
