"""The report as data: one row for each task, length and method."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from sparsefill.evals.report.groups import group_difference, group_score, groups_of, means_by_length
from sparsefill.evals.report.summary import Cell, Summary
from sparsefill.evals.statistics import Interval
from sparsefill.evals.tasks.ruler.aggregate import effective_length

COLUMNS = ("task", "length", "method", "n", "score", "low", "high", "nulls", "density", "recall")
DIFFERENCE = ("difference", "difference_low", "difference_high", "pairs")


def as_csv(summary: Summary, *, times: bool) -> str:
    """Write cells as a table; what was not measured is empty."""
    names = (*COLUMNS, *(("ttft",) if times else ()), *DIFFERENCE)
    written = io.StringIO()
    table = csv.DictWriter(written, names, lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    for cell in summary.cells.values():
        table.writerow({**_row(cell), "ttft": cell.speed.ttft if cell.speed else None})
    return written.getvalue()


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


def _row(cell: Cell) -> dict[str, Any]:
    score, change = cell.score, cell.difference
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
        "difference": change.mean if change else None,
        "difference_low": change.low if change else None,
        "difference_high": change.high if change else None,
        "pairs": change.n if change else None,
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
