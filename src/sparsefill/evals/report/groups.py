"""Means over the tasks of a benchmark, as its papers take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparsefill.evals.report.interval import mean_of_tasks
from sparsefill.evals.report.summary import Summary, counterpart
from sparsefill.evals.rows import Row
from sparsefill.evals.statistics import Interval
from sparsefill.evals.tasks.infinitebench import PAPER_TASKS
from sparsefill.evals.tasks.ruler import RULER, SYNTHETIC


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tasks whose scores are averaged, each task once.

    Args:
        name: for files.
        effective: the longest length over RULER's threshold is told.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    effective: bool = False


OFFICIAL = {  # by family
    "ruler": (
        Group(name="ruler-13", title="RULER, mean of 13 tasks", tasks=tuple(RULER), effective=True),
        Group(
            name="ruler-11",
            title="RULER, mean of 11 tasks (without QA)",
            tasks=SYNTHETIC,
            effective=True,
        ),
    ),
    "infinitebench": (  # MInference's table; the benchmark has twelve
        Group(
            name="infinitebench-10",
            title="InfiniteBench, average of ten tasks",
            tasks=tuple(f"infinitebench/{name}" for name in PAPER_TASKS),
        ),
    ),
}


def groups_of(summary: Summary) -> list[Group]:
    """Return the groups whose tasks were all run, and for other families what was run.

    A benchmark's mean is given only where all its tasks are there: others are not comparable.
    """
    found: list[Group] = []
    for family, tasks in families(summary).items():
        scored = [task for task in tasks if is_scored(summary, task)]
        official = OFFICIAL.get(family, ())
        whole = [group for group in official if set(group.tasks) <= set(scored)]
        found += whole
        known = {name for group in official for name in group.tasks}
        part = tuple(task for task in scored if not official or task in known)
        if len(part) > 1 and not any(set(group.tasks) == set(part) for group in whole):
            note = ", not a mean of the benchmark" if official else ""
            title = f"{family}, mean of the {len(part)} tasks run{note}"
            found.append(Group(name=f"{family}-run", title=title, tasks=part))
    return found


def families(summary: Summary) -> dict[str, list[str]]:
    """Return tasks by what stands before the slash of their names."""
    found: dict[str, list[str]] = {}
    for task in summary.tasks:
        found.setdefault(task.partition("/")[0], []).append(task)
    return found


def is_scored(summary: Summary, task: str) -> bool:
    """Tell whether a task's answers are compared with references."""
    return any(cell.score for cell in summary.cells.values() if cell.task == task)


def group_score(summary: Summary, group: Group, length: int, method: str) -> Interval | None:
    """Return a method's mean over tasks; None where one of them has no samples."""
    scores = [list(found) for found in _scores(summary, group, length, method, paired=False)]
    return mean_of_tasks(scores) if all(scores) else None


def group_difference(summary: Summary, group: Group, length: int, method: str) -> Interval | None:
    """Return how a mean differs from the compared method's, on the samples of both."""
    scores = [list(found) for found in _scores(summary, group, length, method, paired=True)]
    return mean_of_tasks(scores) if all(scores) else None


def means_by_length(summary: Summary, group: Group, method: str) -> dict[int, float]:
    """Return a method's means in percent, rounded as RULER rounds them, where there are any."""
    means = {
        length: group_score(summary, group, length, method)
        for length in summary.lengths(*group.tasks)
    }
    return {length: round(100 * own.mean, 2) for length, own in means.items() if own is not None}


def _scores(
    summary: Summary, group: Group, length: int, method: str, *, paired: bool
) -> Iterator[Iterator[float]]:
    for task in group.tasks:
        cell = summary.cell(task, length, method)
        yield _of_rows(summary, cell.rows if cell else (), paired=paired)


def _of_rows(summary: Summary, rows: Sequence[Row], *, paired: bool) -> Iterator[float]:
    for row in rows:
        if row.score is None:
            continue
        if not paired:
            yield row.score
            continue
        other = counterpart(summary.results, row, summary.against)
        if other is not None and other.score is not None:
            yield row.score - other.score
