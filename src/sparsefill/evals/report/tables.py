"""Tables of a report: scores, differences, other values, and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sparsefill.evals.report import words
from sparsefill.evals.report.groups import (
    Group,
    group_difference,
    group_score,
    is_scored,
    means_by_length,
)
from sparsefill.evals.report.markup import Child, Markup, element
from sparsefill.evals.report.summary import Cell, Summary
from sparsefill.evals.statistics import Interval
from sparsefill.evals.tasks.ruler.aggregate import effective_length, weighted_mean

Line = tuple[Child, ...]


def table(
    caption: str, heads: Sequence[Child], lines: Iterable[Line], *, labels: int = 1
) -> Markup:
    """Write a table that scrolls by itself where it is too wide.

    Args:
        heads: of the columns.
        labels: columns that say what a line is about.
    """
    body = [
        element(
            "tr",
            [
                element("th", cell, scope="row") if place < labels else _cell(cell)
                for place, cell in enumerate(line)
            ],
        )
        for line in lines
    ]
    head = element("tr", [element("th", head, scope="col") for head in heads])
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", head),
            element("tbody", body),
        ),
        class_="wide",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def mean_table(summary: Summary, groups: Sequence[Group]) -> Markup:
    """Write means over tasks, one line a method and mean, one column a length."""
    lengths = summary.lengths(*(task for group in groups for task in group.tasks))
    lines = []
    for group in groups:
        for method in summary.methods:
            scores = [group_score(summary, group, length, method) for length in lengths]
            if not any(scores):
                continue
            said = _of_curve(summary, group, method)
            lines.append((group.title, method, *map(_score, scores), *said))
    curve = ("effective length", "wAvg (inc)", "wAvg (dec)")
    heads = ("mean", "method", *map(words.length, lengths), *curve)
    return table("Means over tasks, 0 to 100, with 95 % intervals", heads, lines, labels=2)


def _of_curve(summary: Summary, group: Group, method: str) -> Line:
    """Say what RULER makes of means by length: the weighted ones where every length is there."""
    means = means_by_length(summary, group, method)
    if not group.effective:
        return (words.NONE,) * 3
    longest = effective_length(means)
    whole = len(means) == len(summary.lengths(*group.tasks))
    weighted = [
        f"{weighted_mean(means, increasing=increasing):.2f}" if whole else words.NONE
        for increasing in (True, False)
    ]
    return (words.length(longest) if longest else words.NONE, *weighted)


def score_table(summary: Summary, family: str, tasks: Sequence[str]) -> Markup:
    """Write scores of a family's tasks, one column a method."""

    def of(cell: Cell | None) -> Child:
        if cell is None or cell.score is None:
            return words.NONE
        return [_score(cell.score), _small(f"n {cell.score.n}, null {cell.nulls}")]

    caption = f"{family}: scores, 0 to 100, with 95 % intervals, samples and null predictions"
    return table(
        caption,
        ("task", "length", *summary.methods),
        _lines(summary, tasks, summary.methods, of),
        labels=2,
    )


def mean_difference_table(summary: Summary, groups: Sequence[Group]) -> Markup:
    """Write how means over tasks differ from the compared method's, on the samples of both."""
    lines: list[Line] = []
    for group in groups:
        for length in summary.lengths(*group.tasks):
            found = [group_difference(summary, group, length, m) for m in summary.others]
            if any(found):
                lines.append((group.title, words.length(length), *map(change, found)))
    caption = f"Means over tasks, paired difference to {summary.against}, in points"
    return table(caption, ("mean", "length", *summary.others), lines, labels=2)


def difference_table(summary: Summary, family: str, tasks: Sequence[str]) -> Markup:
    """Write differences to the compared method, sample by sample."""

    def of(cell: Cell | None) -> Child:
        return change(cell.difference if cell else None)

    caption = f"{family}: paired difference to {summary.against}, in points"
    lines = _lines(summary, tasks, summary.others, of)
    return table(caption, ("task", "length", *summary.others), lines, labels=2)


def value_table(summary: Summary, name: str, tasks: Sequence[str]) -> Markup:
    """Write one measured value of each task and length, and how it differs."""

    def of(cell: Cell | None) -> Child:
        if cell is None or name not in cell.values:
            return words.NONE
        mean, other = cell.values[name], cell.value_differences.get(name)
        parts: list[Child] = [words.number(mean.mean, digits=4), _small(f"n {mean.n}")]
        if other is not None:
            signed = words.number(other.mean, digits=4, sign=True)
            ends = words.spread(other, scale=1.0, digits=4)
            parts += [_small(f"{signed} to {summary.against}"), _small(ends)]
        return parts

    return table(
        f"{name}: means, and paired differences with 95 % intervals",
        ("task", "length", *summary.methods),
        _lines(summary, tasks, summary.methods, of),
        labels=2,
    )


def cost_table(summary: Summary, *, times: bool) -> Markup:
    """Write density and recall beside scores, and times if they are wanted."""
    heads = ["task", "length", "method", "n", "score", "density", "recall"]
    if times:
        heads += ["TTFT, s", "p10 to p90", "speed-up", "attention, s", "estimate, s", "decode, s"]
    lines = []
    for (task, length, method), cell in summary.cells.items():
        line: list[Child] = [task, words.length(length), method, str(cell.n)]
        line.append(words.points(cell.score.mean) if cell.score else words.NONE)
        line += [words.number(cell.density), words.number(cell.recall, digits=4)]
        if times:
            line += _times(cell)
        lines.append(tuple(line))
    caption = "What it cost: density and recall beside the score"
    if times:
        caption += f"; TTFT is a median, speed-up is {summary.against} ÷ method in the same run"
    return table(caption, heads, lines, labels=3)


def scored_tasks(summary: Summary, tasks: Iterable[str]) -> list[str]:
    """Return the tasks that have scores."""
    return [task for task in tasks if is_scored(summary, task)]


def change(interval: Interval | None) -> Child:
    """Write a difference in points; marked where its interval leaves zero out."""
    if interval is None:
        return words.NONE
    sure = (interval.low or 0) > 0 or (interval.high or 0) < 0
    kind = ("better" if interval.mean > 0 else "worse") if sure else None
    return [
        element("span", words.points(interval.mean, sign=True), class_=kind),
        _small(words.spread(interval)),
        _small(f"n {interval.n}"),
    ]


def _lines(
    summary: Summary,
    tasks: Sequence[str],
    methods: Sequence[str],
    of: Callable[[Cell | None], Child],
) -> list[Line]:
    return [
        (
            task,
            words.length(length),
            *(of(summary.cell(task, length, method)) for method in methods),
        )
        for task in tasks
        for length in summary.lengths(task)
    ]


def _times(cell: Cell) -> list[Child]:
    speed = cell.speed
    if speed is None:
        return [words.NONE] * 6
    ratio = words.NONE if speed.ratio is None else f"{speed.ratio:.2f}x"
    spread = f"{words.seconds(speed.p10)} to {words.seconds(speed.p90)}"
    parts = (speed.attention, speed.estimate, speed.decode)
    return [words.seconds(speed.ttft), spread, ratio, *map(words.seconds, parts)]


def _score(interval: Interval | None) -> Child:
    if interval is None:
        return words.NONE
    return [words.points(interval.mean), _small(words.spread(interval))]


def _small(text: str) -> Markup | None:
    return element("small", text) if text else None


def _cell(content: Child) -> Markup:
    return element("td", content)
