"""Case `attend`: kernels alone, on random indices of known density, against dense SDPA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from benchmarks import peers
from benchmarks.gate import check_result
from benchmarks.indices import PATTERNS
from benchmarks.kept import dense_sample, mean_density, mean_recall
from benchmarks.measure import Timed, Timing, run_once
from benchmarks.problem import Grid, Problem, random_inputs
from benchmarks.rows import Key
from benchmarks.session import Session, peak_fraction, timed
from sparsefill import SparseIndex, attend
from sparsefill.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure: every combination.

    Args:
        flex: also time FlexAttention on the indices of pattern `block`.
    """

    grid: Grid
    densities: Sequence[float]
    patterns: Sequence[str] = ("block",)
    flex: bool = False


class Entry(NamedTuple):
    """One thing to time."""

    backend: str
    pattern: str
    target: float


SDPA = Entry("sdpa", "dense", 1.0)


def run(request: Request, session: Session) -> None:
    """Measure one problem after the other; each is one interleaved group."""
    problems = request.grid.problems()
    session.plan(sum(problem.flops for problem in problems))
    for problem in problems:
        Group(problem, request, session).run()


class Group:
    """Everything that is timed in turn on one problem's inputs."""

    def __init__(self, problem: Problem, request: Request, session: Session) -> None:
        self.problem = problem
        self.session = session
        self.entries = list_entries(request, session.backends(problem))
        self.indices: dict[tuple[str, float], SparseIndex] = {}
        self.recalls = {("dense", 1.0): 1.0}
        self.first: dict[str, float] = {}  # what each run for the gate took

    def run(self) -> None:
        """Check, time, and store what is missing, with what that is compared to."""
        missing = [entry for entry in self.entries if self.key(entry) not in self.session.ledger]
        if not missing:
            self.session.skip(self.problem, work=self.problem.flops)
            return
        beside = {SDPA, *(Entry(entry.backend, "dense", 1.0) for entry in missing)}
        wanted = [entry for entry in self.entries if entry in beside or entry in missing]
        self.qkv = random_inputs(self.problem, self.session.seed)
        self.sample = dense_sample(self.qkv)
        functions: dict[Entry, Timed] = {}
        for entry in wanted:
            if entry.backend != "flex":
                functions[entry] = self.prove(entry)
        functions |= self.prove_flex([entry for entry in wanted if entry.backend == "flex"])
        named = {repr(entry): function for entry, function in functions.items()}
        found = self.session.measure(named, work=self.problem.flops, first=self.first)
        self.store({entry: found[repr(entry)] for entry in functions})

    def key(self, entry: Entry) -> Key:
        """Name the row of an entry."""
        return self.session.key(
            "attend", self.problem, entry.backend, entry.pattern, target=entry.target
        )

    def index(self, pattern: str, target: float) -> SparseIndex:
        """Build an index once for all backends."""
        place = (pattern, target)
        if place not in self.indices:
            self.indices[place] = PATTERNS[pattern](self.problem, target, self.session.seed)
        return self.indices[place]

    def prove(self, entry: Entry) -> Timed:
        """Return what to time, after its result passed the gate."""
        index, place = self.index(entry.pattern, entry.target), entry[1:]
        if entry == SDPA:
            function = partial(peers.sdpa, self.qkv)
            out, self.first[repr(entry)] = run_once(function)
            lse = None
        else:
            backend: Any = entry.backend
            function = partial(attend, *self.qkv, index, backend=backend)
            (out, lse), self.first[repr(entry)] = run_once(function)
            self.recalls.setdefault(place, mean_recall(lse, self.sample))
        name = f"{entry.backend} on {entry.pattern} at {entry.target:g}, {self.problem},"
        check_result(name, out, lse, self.qkv, index, seed=self.session.seed)
        return function

    def prove_flex(self, entries: Sequence[Entry]) -> dict[Entry, Timed]:
        """Do the same for FlexAttention, whose first run compiles; rows say if it is missing."""
        functions: dict[Entry, Timed] = {}
        try:
            compiled = peers.compile_flex() if entries else None
            for entry in entries:
                index = self.index("block", entry.target)
                blocks = peers.flex_blocks(self.problem, index)
                assert compiled is not None
                function = partial(compiled, *self.qkv, block_mask=blocks, enable_gqa=True)
                name = f"FlexAttention at {entry.target:g}, {self.problem},"
                check_result(name, function(), None, self.qkv, index, seed=self.session.seed)
                functions[entry] = function
        except UnsupportedError as error:
            self.session.tell(f"no FlexAttention: {error}")
            for entry in entries:
                self.session.add(self.key(entry), error=str(error))
            return {}
        return functions

    def store(self, timings: dict[Entry, Timing]) -> None:
        """Compute the ratios and append the rows."""
        for entry, timing in timings.items():
            kept = mean_density(self.index(entry.pattern, entry.target))
            whole = timings.get(Entry(entry.backend, "dense", 1.0))
            self.session.add(
                self.key(entry),
                density=kept,
                recall=self.recalls.get(entry[1:]),
                dense_s=whole and whole.median_s,
                efficiency=whole and whole.median_s * kept / timing.median_s,
                peak_fraction=peak_fraction(self.problem, kept, timing.median_s),
                **timed(timing, timings[SDPA].median_s, "sdpa"),
            )


def list_entries(request: Request, backends: Sequence[str]) -> list[Entry]:
    """List what to time: the baseline first, then every backend and pattern, then peers.

    At density 1 all patterns are the dense index, which is one entry.
    """
    entries = [SDPA]
    for backend in (*backends, *(["flex"] if request.flex else [])):
        for target in request.densities:
            for pattern in ("block",) if backend == "flex" else request.patterns:
                if target == 1:
                    entries.append(Entry(backend, "dense", 1.0))
                elif pattern != "dense":
                    entries.append(Entry(backend, pattern, target))
        if "dense" in request.patterns and backend != "flex":
            entries.append(Entry(backend, "dense", 1.0))
    return list(dict.fromkeys(entries))
