"""Attending at one length: dense by all, then our kernels on every index, in turn.

Before a kernel is timed, its result is compared with the float64 oracle, in a sample of row
blocks of the very tensors that are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from benchmarks.gate import check_result
from benchmarks.gpu import peers
from benchmarks.gpu.check import REPEATED, VARIANTS, Check, variants
from benchmarks.gpu.limits import attend_work, rates_of
from benchmarks.indices import (
    PATTERNS,
    adjacent_index,
    dense_index,
    static_index,
    top_block_index,
)
from benchmarks.kept import dense_sample, mean_density, mean_recall
from benchmarks.measure import Timing
from benchmarks.peers import compile_flex, flex_blocks
from benchmarks.problem import Problem, Qkv, random_inputs
from sparsefill import AShape, Attended, SparseIndex
from sparsefill.kernels import attend_unchecked

DENSITIES = (0.05, 0.02, 0.01)
BUDGETS: dict[str, Callable[[Problem, int], SparseIndex]] = {  # MInference's
    "vertical-slash 1000+6096": lambda problem, seed: adjacent_index(problem, 1000, 6096, seed),
    "vertical-slash 30+2048": lambda problem, seed: adjacent_index(problem, 30, 2048, seed),
    "block-topk 100": lambda problem, seed: top_block_index(problem, 100, seed),
    "a-shape 1024+4096": lambda problem, _: static_index(problem, AShape(sink=1024, window=4096)),
}
LONGEST_UNSHARED = 2**18  # beyond, blocks are one list per KV head: others fill gigabytes
LONGEST_VARIANTS = 2**17
LONGEST_FLEX = 2**17  # its mask takes memory that grows with the square of the length
FLEX_SECONDS = 60  # what must be left to begin compiling it
SAMPLED_HEADS = 4  # whose recall is measured
DENSE_SHARE = 0.15  # of the time left that one dense run may take
LONG_RUN = 5.0  # seconds from which a dense kernel is not run twice, to leave out its start


class Entry(NamedTuple):
    """One thing that is timed."""

    backend: str
    pattern: str
    target: float | None


class Case(NamedTuple):
    """What an entry runs, on which cells."""

    function: Callable[[], Any]
    cells: SparseIndex


class Sample:
    """The dense log-sum-exp of some heads and row blocks, to measure recall by."""

    def __init__(self, qkv: Qkv) -> None:
        h, g = qkv.q.shape[1], qkv.k.shape[1]
        self.heads = sorted({i * (h - 1) // (SAMPLED_HEADS - 1) for i in range(SAMPLED_HEADS)})
        shared = [head * g // h for head in self.heads]
        self.rows = dense_sample(Qkv(qkv.q[:, self.heads], qkv.k[:, shared], qkv.v[:, shared]))

    def recall(self, lse: Float[Tensor, "1 h n"]) -> float:
        """Return the attention mass kept."""
        return mean_recall(lse[:, self.heads], self.rows)


class Group:
    """What is timed in turn on one layer's inputs."""

    def __init__(self, check: Check, problem: Problem, qkv: Qkv) -> None:
        self.check = check
        self.problem = problem
        self.qkv = qkv
        self.sample = Sample(qkv)
        self.recalls: dict[tuple[str, float | None], float] = {("dense", 1.0): 1.0}
        self.dense: dict[str, float] = {}  # seconds, by backend
        self.cases: dict[Entry, Case] = {}
        self.first: dict[str, float] = {}

    def prove(self, entry: Entry, case: Case) -> bool:
        """Judge a first result, and keep the case for timing if it is right.

        What a first run took is no guide to the next: it compiles, or loads a library.
        """
        backend, pattern, target = entry
        with self.check.attempt("attend", backend, pattern, self.problem, target_density=target):
            result, seconds = self.check.run(case.function)
            out, lse = (result, None) if isinstance(result, Tensor) else result
            name = f"{backend} on {pattern}, {self.problem},"
            check_result(name, out, lse, self.qkv, case.cells, seed=self.check.seed)
            if lse is not None:
                self.recalls.setdefault((pattern, target), self.sample.recall(lse))
            del result, out, lse  # of gigabytes at a million tokens
            expected = self.check.expected(backend, self.problem.n)
            if pattern != "dense" or expected < LONG_RUN:
                _, seconds = self.check.run(case.function)
            self.first[repr(entry)] = seconds
            self.cases[entry] = case
        return entry in self.cases

    def prove_dense(self, name: str, find: Callable[[], peers.Attend], every: SparseIndex) -> None:
        """Prove a peer; if it fails, also on keys and values repeated for every query head."""
        entry = Entry(name, "dense", 1.0)
        with self.check.attempt("attend", *entry[:2], self.problem, target_density=1.0):
            attend = find()
            if not self.prove(entry, Case(partial(attend, self.qkv), every)):
                again = entry._replace(backend=f"{name}{REPEATED}")
                repeated = partial(attend, peers.repeat_heads(self.qkv))
                self.prove(again, Case(repeated, every))

    def prove_ours(self, name: str, pattern: str, target: float | None, cells: SparseIndex) -> None:
        """Prove one of our own kernels."""
        entry = Entry(name, pattern, target)
        self.prove(entry, Case(attend_by(name, self.qkv, cells), cells))

    def finish(self) -> None:
        """Time what was proved, append the rows, and begin anew."""
        functions = {repr(entry): case.function for entry, case in self.cases.items()}
        found = self.check.interleave(functions, self.first)
        timings = {entry: found[repr(entry)] for entry in self.cases}
        n = self.problem.n
        for entry, timing in timings.items():
            if entry.pattern == "dense":
                self.dense[entry.backend] = timing.median_s
                self.check.known[entry.backend] = (n, timing.median_s)
        others = {name: s for name, s in self.dense.items() if name not in VARIANTS}
        if others:
            best = min(others, key=lambda name: others[name])
            self.check.baselines[n] = (best, others[best])
        for entry, timing in timings.items():
            with self.check.attempt("attend", entry.backend, entry.pattern, self.problem):
                self.store(entry, timing)
        self.cases.clear()
        self.first.clear()

    def store(self, entry: Entry, timing: Timing) -> None:
        """Append a row."""
        cells = self.cases[entry].cells
        kept = mean_density(cells)
        work = attend_work(self.problem, kept, cells if entry.backend in VARIANTS else None)
        whole = self.dense.get(entry.backend)
        self.check.add(
            "attend",
            entry.backend,
            entry.pattern,
            self.problem,
            target_density=entry.target,
            density=kept,
            recall=self.recalls.get((entry.pattern, entry.target)),
            dense_s=whole,
            efficiency=whole and whole * kept / timing.median_s,
            parameters={"index_heads": cells.x},
            tflops=work.flops / timing.median_s / 1e12,
            work=work.fields(rates_of(self.check.device), timing.median_s),
            **timed(self.check, n=self.problem.n, timing=timing, density=kept),
        )


def time_attend(check: Check, n: int) -> None:
    """Time a layer at one length, and append its rows."""
    problem = check.problem(n)
    group = Group(check, problem, random_inputs(problem, check.seed))
    every, blocks = dense_index(problem), {}
    for name, find in peers.DENSE.items():
        if fits(check, name, problem):
            group.prove_dense(name, find, every)
    for pattern, target, cells in indices(problem, check.seed):
        if check.left <= 0:
            break
        for name in variants():
            if name == VARIANTS[0] or (n <= LONGEST_VARIANTS and target in (None, DENSITIES[0])):
                group.prove_ours(name, pattern, target, cells)
        if pattern == "block" and target is not None:
            blocks[target] = cells
    for name in variants():
        if (name == VARIANTS[0] or n <= LONGEST_VARIANTS) and fits(check, name, problem):
            group.prove_ours(name, "dense", 1.0, every)
    group.finish()
    if n <= LONGEST_FLEX:
        prove_flex(group, blocks)
        group.finish()


def indices(problem: Problem, seed: int) -> Iterator[tuple[str, float | None, SparseIndex]]:
    """Build what is attended to: blocks first, each family at all densities, then budgets."""
    shared = problem.n > LONGEST_UNSHARED
    for name in ("shared-block" if shared else "block", "vertical-slash", "a-shape"):
        for target in DENSITIES:
            yield name, target, PATTERNS[name](problem, target, seed)
    if not shared:
        yield "shared-block", DENSITIES[0], PATTERNS["shared-block"](problem, DENSITIES[0], seed)
    for name, build in BUDGETS.items():
        yield name, None, build(problem, seed)


def prove_flex(group: Group, blocks: dict[float, SparseIndex]) -> None:
    """Prove FlexAttention on the same blocks; its first run compiles."""
    check, problem = group.check, group.problem
    with check.attempt("attend", "flex", "block", problem):
        if check.left < FLEX_SECONDS:
            check.add("attend", "flex", "block", problem, skipped="no time left to compile it")
            return
        compiled = compile_flex()
        options = peers.FLEX_OPTIONS if check.device.type == "cuda" else None
        for target, cells in blocks.items():
            function = partial(
                compiled,
                *group.qkv,
                block_mask=flex_blocks(problem, cells),
                enable_gqa=True,
                kernel_options=options,
            )
            group.prove(Entry("flex", "block", target), Case(function, cells))


def attend_by(
    name: str, qkv: Qkv, cells: SparseIndex, *, softcap: float | None = None
) -> Callable[[], Attended]:
    """Return a call of one of our own kernels."""
    backend: Any = name
    scale = qkv.q.shape[-1] ** -0.5
    return partial(attend_unchecked, *qkv, cells, scale=scale, softcap=softcap, backend=backend)


def fits(check: Check, backend: str, problem: Problem) -> bool:
    """Tell whether a dense run fits the time left, by what a shorter one took."""
    expected = check.expected(backend, problem.n)
    if expected <= DENSE_SHARE * check.left:
        return True
    why = f"a run would take about {expected:.0f} s of the {check.left:.0f} s left"
    check.add("attend", backend, "dense", problem, target_density=1.0, skipped=why)
    return False


def timed(check: Check, *, n: int, timing: Timing, density: float) -> dict[str, Any]:
    """Return the fields of a row that compare a time with the best dense attention."""
    name, seconds = check.baselines.get(n, (None, None))
    speedup = seconds and seconds / timing.median_s
    return {
        "median_s": timing.median_s,
        "iqr_s": timing.iqr_s,
        "repeats": len(timing.samples),
        "baseline": name,
        "baseline_s": seconds,
        "speedup": speedup,
        "proportional": speedup and speedup * density,
    }
