"""The report as data: scores, other values, and means over tasks, by length and method."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sparsefill.evals.report.groups import group_difference, group_score, groups_of, means_by_length
from sparsefill.evals.report.pictures import perplexity
from sparsefill.evals.report.summary import Cell, Summary
from sparsefill.evals.statistics import Interval
from sparsefill.evals.tasks.ruler.aggregate import effective_length

COLUMNS = ("task", "length", "method", "n", "score", "low", "high", "nulls", "density", "recall")
VALUE = ("task", "length", "method", "value", "n", "mean", "low", "high")
MEAN = ("mean", "length", "method", "n", "score", "low", "high")
DIFFERENCE = ("difference", "difference_low", "difference_high", "pairs")


def as_csv(summary: Summary, *, times: bool) -> str:
    """Write cells as a table; what was not measured is empty."""
    names = (*COLUMNS, *(("ttft",) if times else ()), *DIFFERENCE)
    rows = (
        {**_row(cell), "ttft": cell.speed.ttft if cell.speed else None}
        for cell in summary.cells.values()
    )
    return _table(names, rows)


def values_as_csv(summary: Summary) -> str:
    """Write what was measured besides scores, one line for each value of a cell.

    `perplexity_of_all_tokens` counts each token once; it has no interval.
    """
    return _table((*VALUE, *DIFFERENCE), _values(summary))


def means_as_csv(summary: Summary) -> str:
    """Write means over tasks, one line for each length and method."""
    return _table((*MEAN, *DIFFERENCE), _means_by_length(summary))


def as_json(summary: Summary, *, times: bool) -> str:
    """Write cells and means over tasks, with whatever else was measured."""
    cells = []
    for cell in summary.cells.values():
        row = _row(cell)
        row["fill"] = cell.fill
        row["values"] = {name: mean._asdict() for name, mean in cell.values.items()}
        row["value_differences"] = {
            name: mean._asdict() for name, mean in cell.value_differences.items()
        }
        if times:
            row["speed"] = None if cell.speed is None else vars(cell.speed)
        cells.append(row)
    data = {
        "model": summary.results.model,
        "against": summary.against,
        "methods": {name: summary.results.methods[name] for name in summary.methods},
        "runs": [run.manifest.as_data() for run in summary.results.runs],
        "means": _means(summary),
        "cells": cells,
    }
    return json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _table(names: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    written = io.StringIO()
    table = csv.DictWriter(written, names, lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    return written.getvalue()


def _values(summary: Summary) -> Iterator[dict[str, Any]]:
    for (task, length, method), cell in summary.cells.items():
        which = {"task": task, "length": length, "method": method}
        for name, mean in cell.values.items():
            row = {**which, "value": name, **mean._asdict()}
            yield {**row, **_difference(cell.value_differences.get(name))}
        whole = perplexity(cell)
        if whole is not None:
            counted = cell.values["nll"].n
            yield {**which, "value": "perplexity_of_all_tokens", "n": counted, "mean": whole}


def _means_by_length(summary: Summary) -> Iterator[dict[str, Any]]:
    for row in _means(summary):
        for length, own in row["lengths"].items():
            if own["score"] is not None:
                score = {**own["score"], "score": own["score"]["mean"]}
                which = {"mean": row["mean"], "length": length, "method": row["method"]}
                change = own["difference"]
                yield {**score, **which, **_difference(Interval(**change) if change else None)}


def _difference(change: Interval | None) -> dict[str, Any]:
    return {
        "difference": change.mean if change else None,
        "difference_low": change.low if change else None,
        "difference_high": change.high if change else None,
        "pairs": change.n if change else None,
    }


def _row(cell: Cell) -> dict[str, Any]:
    score = cell.score
    return {
        "task": cell.task,
        "length": cell.length,
        "method": cell.method,
        "n": cell.n,
        "score": score.mean if score else None,
        "low": score.low if score else None,
        "high": score.high if score else None,
        "nulls": cell.nulls,
        "density": cell.density,
        "recall": cell.recall,
        **_difference(cell.difference),
    }


def _means(summary: Summary) -> list[dict[str, Any]]:
    found = []
    for group in groups_of(summary):
        for method in summary.methods:
            by_length = {}
            for length in summary.lengths(*group.tasks):
                score = group_score(summary, group, length, method)
                change = None
                if method in summary.others:
                    change = group_difference(summary, group, length, method)
                by_length[str(length)] = {"score": _plain(score), "difference": _plain(change)}
            row: dict[str, Any] = {"mean": group.title, "method": method, "lengths": by_length}
            if group.effective:
                row["effective_length"] = effective_length(means_by_length(summary, group, method))
            found.append(row)
    return found


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return interval._asdict() if interval else None
