"""Which pictures a report has: curves of scores, perplexity and TTFT, and maps of needles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from sparsefill.evals.report import words
from sparsefill.evals.report.axis import PROPORTION, RATIO, SIGNED_RATIO, Axis
from sparsefill.evals.report.colours import CHANGE, PAPER, SAFE, stroke
from sparsefill.evals.report.curve import Curves, Point, Series
from sparsefill.evals.report.figure import Figure, Number, file_name
from sparsefill.evals.report.groups import Group, group_score
from sparsefill.evals.report.heat import HeatMap
from sparsefill.evals.report.summary import Cell, Summary, counterpart, mean_of
from sparsefill.evals.rows import DEPTH, head_of
from sparsefill.evals.statistics import Interval

PERCENT = 100


def score_curves(summary: Summary, groups: Sequence[Group]) -> list[Figure]:
    """Draw means over tasks, for those of several lengths."""
    drawn = []
    for group in groups:
        lengths = summary.lengths(*group.tasks)

        def of(method: str, length: int, group: Group = group) -> Point | None:
            return _point(length, group_score(summary, group, length, method))

        drawn += _curves(
            summary, lengths, of, name=file_name("mean", group.name), title=group.title
        )
    return drawn


def task_curves(summary: Summary, tasks: Sequence[str]) -> list[Figure]:
    """Draw scores of each task that has several lengths."""
    drawn = []
    for task in tasks:

        def of(method: str, length: int, task: str = task) -> Point | None:
            cell = summary.cell(task, length, method)
            return _point(length, cell.score if cell else None)

        drawn += _curves(
            summary, summary.lengths(task), of, name=file_name("score", task), title=task
        )
    return drawn


def perplexity_curves(summary: Summary, task: str) -> list[Figure]:
    """Draw perplexity over length, and how much it is above the compared method's."""

    def level(method: str, length: int) -> Point | None:
        cell = summary.cell(task, length, method)
        value = perplexity(cell) if cell else None
        return None if value is None else Point(length=length, value=value)

    def above(method: str, length: int) -> Point | None:
        cell = summary.cell(task, length, method)
        found = cell.value_differences.get("nll") if cell else None
        return _point(length, relative(found) if found else None)

    lengths = summary.lengths(task)
    drawn = _curves(
        summary,
        lengths,
        level,
        name=file_name("perplexity", task),
        title=f"{task}: perplexity",
        y_label="perplexity, log scale",
        span=None,
        axis=RATIO,
    )
    if summary.against is not None:
        drawn += _curves(
            summary,
            lengths,
            above,
            name=file_name("perplexity-change", task),
            title=f"{task}: perplexity above {summary.against}, in %",
            y_label="change in %, log scale beyond 0.1",
            span=None,
            axis=SIGNED_RATIO,
        )
    return drawn


def ttft_curves(summary: Summary, task: str) -> list[Figure]:
    """Draw the median TTFT over length, both by ratio."""

    def of(method: str, length: int) -> Point | None:
        cell = summary.cell(task, length, method)
        if cell is None or cell.speed is None:
            return None
        speed = cell.speed
        return Point(length=length, value=speed.ttft, low=speed.p10, high=speed.p90)

    return _curves(
        summary,
        summary.lengths(task),
        of,
        name=file_name("ttft", task),
        title=f"{task}: median TTFT, with p10 to p90",
        y_label="seconds, log scale",
        span=None,
        axis=RATIO,
    )


def needle_tasks(summary: Summary) -> list[str]:
    """Return the tasks whose samples say how deep their needle lies."""
    shallow = {
        cell.task
        for cell in summary.cells.values()
        for row in cell.rows
        if row.score is None or row.recipe.get(DEPTH) is None
    }
    return [task for task in summary.tasks if task not in shallow]


def needle_maps(summary: Summary, task: str) -> Iterator[tuple[str, list[Figure]]]:
    """Yield for each method its maps: for all eyes, in the paper's colours, and the change."""
    for method in summary.methods:
        scores, changes, total = _depths(summary, task, method)
        if not scores:
            continue
        mean = mean_of(score for found in scores.values() for score in found)
        title = f"{task}, {method}: mean {words.points(mean)} of {total} samples"
        maps = [
            _depth_map(summary, task, scores, file_name("needle", task, method), title, SAFE),
            _depth_map(
                summary, task, scores, file_name("needle-paper", task, method), title, PAPER
            ),
        ]
        if changes:
            title = f"{task}: {method} minus {summary.against}"
            name = file_name("needle-change", task, method)
            maps.append(_depth_map(summary, task, changes, name, title, CHANGE, low=-100.0))
        yield method, maps


def head_maps(summary: Summary) -> Iterator[Figure]:
    """Draw what was measured of each layer and head, at the longest length of each task."""
    for task in summary.tasks:
        length = summary.lengths(task)[-1]
        for method in summary.methods:
            cell = summary.cell(task, length, method)
            names = {name for row in cell.rows for name in row.values} if cell else set()
            for kind in sorted({own[0] for own in map(head_of, names) if own}):
                assert cell is not None
                yield _head_map(cell, kind)


def perplexity(cell: Cell) -> float | None:
    """Return exp of the mean NLL, each token counted once where their number is known."""
    rows = [row.values for row in cell.rows if "nll" in row.values]
    if not rows:
        return None
    weights = [values.get("nll_tokens", 1.0) for values in rows]
    mean = sum(w * values["nll"] for w, values in zip(weights, rows, strict=True)) / sum(weights)
    return math.exp(mean)


def relative(difference: Interval) -> Interval:
    """Turn a difference of mean NLL into a change of perplexity, as a share."""
    low, high = (None if end is None else math.expm1(end) for end in difference[1:3])
    return Interval(math.expm1(difference.mean), low, high, difference.n)


def _curves(
    summary: Summary,
    lengths: Sequence[int],
    of: Callable[[str, int], Point | None],
    *,
    name: str,
    title: str,
    y_label: str = "score",
    span: tuple[float, float] | None = (0.0, 100.0),
    axis: Axis = PROPORTION,
) -> list[Figure]:
    """Draw one curve a method; nothing where no method has two lengths."""
    series = []
    for place, method in enumerate(summary.methods):
        points = tuple(point for length in lengths if (point := of(method, length)) is not None)
        if points:
            series.append(Series(name=method, points=points, stroke=stroke(place)))
    if max((len(one.points) for one in series), default=0) < 2:
        return []
    ends = "; ".join(
        f"{one.name} from {one.points[0].value:.4g} at {words.length(one.points[0].length)}"
        f" to {one.points[-1].value:.4g} at {words.length(one.points[-1].length)}"
        for one in series
    )
    curves = Curves(
        name=name,
        title=title,
        description=f"{y_label} over prompt length: {ends}.",
        series=series,
        y_label=y_label,
        span=span,
        axis=axis,
    )
    return [curves.draw()]


def _point(length: int, interval: Interval | None) -> Point | None:
    if interval is None:
        return None
    low, high = (None if end is None else PERCENT * end for end in interval[1:3])
    return Point(length=length, value=PERCENT * interval.mean, low=low, high=high)


Depths = dict[tuple[int, Number], list[float]]  # scores by length and depth


def _depths(summary: Summary, task: str, method: str) -> tuple[Depths, Depths, int]:
    scores: Depths = {}
    changes: Depths = {}
    total = 0
    for length in summary.lengths(task):
        cell = summary.cell(task, length, method)
        for row in cell.rows if cell else ():
            assert row.score is not None
            place = (length, row.recipe[DEPTH])
            scores.setdefault(place, []).append(row.score)
            total += 1
            other = counterpart(summary.results, row, summary.against)
            if other is not None and other.score is not None:
                changes.setdefault(place, []).append(row.score - other.score)
    return scores, changes, total


def _depth_map(
    summary: Summary,
    task: str,
    found: Depths,
    name: str,
    title: str,
    stops: Sequence[str],
    *,
    low: float = 0.0,
) -> Figure:
    lengths = summary.lengths(task)
    cells = (cell for (named, _, _), cell in summary.cells.items() if named == task)
    depths = sorted({row.recipe[DEPTH] for cell in cells for row in cell.rows})
    values = {
        (lengths.index(length), depths.index(depth)): PERCENT * sum(scores) / len(scores)
        for (length, depth), scores in found.items()
    }
    worst = min(values, key=lambda place: (values[place], place))
    said = "Mean score by prompt length and depth of the needle"
    where = f"{words.length(lengths[worst[0]])}, depth {depths[worst[1]]:g} %"
    return HeatMap(
        name=name,
        title=title,
        description=f"{said}; lowest {values[worst]:.0f} at {where}.",
        columns=[words.length(length) for length in lengths],
        rows=[f"{depth:g} %" for depth in depths],
        values=values,
        x_label="prompt length in tokens",
        y_label="depth of the needle",
        low=low,
        high=100.0,
        stops=stops,
    ).draw()


def _head_map(cell: Cell, kind: str) -> Figure:
    found: dict[tuple[int, int], list[float]] = {}
    for row in cell.rows:
        for name, value in row.values.items():
            if (own := head_of(name)) and own[0] == kind:
                _, layer, head = own
                found.setdefault((head, layer), []).append(value)
    means = {place: sum(values) / len(values) for place, values in found.items()}
    heads, layers = (1 + max(place[axis] for place in means) for axis in (0, 1))
    low, high = min(means.values()), max(means.values())
    where = f"{cell.task} at {words.length(cell.length)}, {cell.method}"
    return HeatMap(
        name=file_name("heads", kind, cell.task, cell.method),
        title=f"{kind} by head: {where}",
        description=f"Mean {kind} of each layer and query head, from {low:.4g} to {high:.4g}.",
        columns=[str(head) for head in range(heads)],
        rows=[str(layer) for layer in range(layers)],
        values=means,
        x_label="query head",
        y_label="layer",
        low=low,
        high=high,
        stops=SAFE,
        digits=2,
    ).draw()
