"""What a report says of each method, task and length, before it is written down."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from sparsefill.errors import InputError
from sparsefill.evals.report.interval import difference_of, interval_of
from sparsefill.evals.results import FULL, Results
from sparsefill.evals.rows import Key, Row, head_of
from sparsefill.evals.statistics import Interval

OURS = "minference"  # methods that begin so stand next


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Times of a cell, in seconds.

    Args:
        ttft: median, with the 10th and 90th percentile.
        ratio: the compared method's median over this one's, of samples that one run read by both
            in one environment.
    """

    n: int
    ttft: float
    p10: float
    p90: float
    attention: float | None
    estimate: float | None
    decode: float | None
    ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task at one length.

    Args:
        score: of its samples; None where nothing is scored.
        difference: to the compared method, sample by sample; None for that method itself.
        values: means of whatever else was measured, by name.
    """

    method: str
    task: str
    length: int
    rows: tuple[Row, ...]
    score: Interval | None
    difference: Interval | None
    values: dict[str, Interval]
    value_differences: dict[str, Interval]
    speed: Speed | None

    @property
    def n(self) -> int:
        """Count the samples."""
        return len(self.rows)

    @property
    def nulls(self) -> int:
        """Count scored samples that were to be answered, and to which nothing was said."""
        asked = [row for row in self.rows if row.score is not None and row.new_tokens]
        return sum(_says_nothing(row.answer) for row in asked)

    @property
    def density(self) -> float | None:
        """Return the mean share of cells kept."""
        return mean_of(row.density for row in self.rows)

    @property
    def recall(self) -> float | None:
        """Return the mean attention mass kept."""
        return mean_of(row.recall for row in self.rows)

    @property
    def fill(self) -> float | None:
        """Return the mean share of the length that prompt and answer may take."""
        return mean_of((row.tokens + row.new_tokens) / row.length for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All cells of a report.

    Args:
        against: the method that others are compared with; None where it was not run.
        methods: in the order of the report.
        cells: by task, length and method.
    """

    results: Results
    against: str | None
    methods: tuple[str, ...]
    cells: dict[tuple[str, int, str], Cell]

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Return all tasks, by name."""
        return tuple(dict.fromkeys(task for task, _, _ in self.cells))

    def lengths(self, *tasks: str) -> list[int]:
        """Return the lengths of some tasks, shortest first."""
        return sorted({length for task, length, _ in self.cells if task in tasks})

    def cell(self, task: str, length: int, method: str) -> Cell | None:
        """Return a cell, if there are any samples in it."""
        return self.cells.get((task, length, method))

    @property
    def others(self) -> tuple[str, ...]:
        """Return the methods that are compared with another one."""
        return tuple(method for method in self.methods if method != self.against)


def summarise(results: Results, *, against: str | None = None, times: bool = True) -> Summary:
    """Sum up results.

    Args:
        against: the method to compare with; full attention, where it was run, if left out.
        times: look at times as well.

    Raises:
        InputError: there are no samples, or none by the method to compare with.
    """
    used = {key.method for key in results.rows}
    if not used:
        raise InputError("the run folders hold no samples yet; run eval first")
    if against is not None and against not in used:
        raise InputError(f"--against must be one of {', '.join(sorted(used))}, got {against!r}")
    base = against or next((name for name in FULL if name in used), None)
    methods = tuple(
        sorted(used, key=lambda m: (m != base, m not in FULL, not m.startswith(OURS), m))
    )
    grouped: dict[tuple[str, int, str], list[Row]] = {}
    for row in results.rows.values():
        grouped.setdefault((row.task, row.length, row.method), []).append(row)
    cells = {}
    for task, length in dict.fromkeys((task, length) for task, length, _ in grouped):
        for method in methods:
            rows = grouped.get((task, length, method))
            if rows:
                cells[task, length, method] = _cell(results, rows, base, times=times)
    return Summary(results=results, against=base, methods=methods, cells=cells)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def counterpart(results: Results, row: Row, against: str | None) -> Row | None:
    """Return the same sample as the compared method read it."""
    if against is None or row.method == against:
        return None
    return results.rows.get(Key(row.task, row.length, row.index, against))


def _says_nothing(answer: str) -> bool:
    return all(character <= " " or character.isspace() for character in answer)


def _cell(results: Results, rows: Sequence[Row], against: str | None, *, times: bool) -> Cell:
    pairs = [(row, counterpart(results, row, against)) for row in rows]
    names = sorted({name for row in rows for name in row.values if head_of(name) is None})
    values: dict[str, Interval] = {}
    changes: dict[str, Interval] = {}
    for name in names:
        mean = interval_of([row.values[name] for row in rows if name in row.values])
        assert mean is not None
        values[name] = mean
        both = [
            (row.values[name], other.values[name])
            for row, other in pairs
            if other is not None and name in row.values and name in other.values
        ]
        change = difference_of(*_columns(both))
        if change is not None:
            changes[name] = change
    scored = [
        (row.score, other.score)
        for row, other in pairs
        if other is not None and row.score is not None and other.score is not None
    ]
    first = rows[0]
    return Cell(
        method=first.method,
        task=first.task,
        length=first.length,
        rows=tuple(rows),
        score=interval_of([row.score for row in rows if row.score is not None]),
        difference=difference_of(*_columns(scored)),
        values=values,
        value_differences=changes,
        speed=_speed(results, rows, against) if times else None,
    )


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [one for one, _ in pairs], [two for _, two in pairs]


def _speed(results: Results, rows: Sequence[Row], against: str | None) -> Speed | None:
    found = [times for row in rows if (times := results.times(row.key)) is not None]
    ttft = sorted(times.ttft_s for times in found if times.ttft_s is not None)
    if not ttft:
        return None
    own, others = [], []
    for row in rows:
        other = counterpart(results, row, against)
        if other is None:
            continue
        run = results.runs[results.run_of[row.key]]
        times, compared = run.times.get(row.key), run.times.get(other.key)
        if not times or not compared or times.environment != compared.environment:
            continue
        if times.ttft_s and compared.ttft_s:
            own.append(times.ttft_s)
            others.append(compared.ttft_s)
    return Speed(
        n=len(ttft),
        ttft=statistics.median(ttft),
        p10=ttft[round(0.1 * (len(ttft) - 1))],
        p90=ttft[round(0.9 * (len(ttft) - 1))],
        attention=_median(times.attention_s for times in found),
        estimate=_median(times.estimate_s for times in found),
        decode=_median(times.decode_s for times in found),
        ratio=statistics.median(others) / statistics.median(own) if own else None,
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
