"""What each method said, sample by sample, with full attention's answer beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sparsefill.evals.report import words
from sparsefill.evals.report.markup import Markup, element
from sparsefill.evals.report.summary import Summary
from sparsefill.evals.rows import Key, Row


def answer_parts(summary: Summary, *, limit: int) -> list[Markup]:
    """Write answers, folded by task and length.

    Args:
        limit: samples of each task and length; those on which methods differ most come first.
    """
    parts = []
    for task in summary.tasks:
        for length in summary.lengths(task):
            samples = _samples(summary, task, length)
            if not any(row.answer or row.references for row in samples[0]):
                continue
            shown = samples[:limit]
            title = f"{task}, {words.length(length)}: {len(shown)} of {len(samples)} samples"
            parts.append(
                element("details", element("summary", title), [_sample(rows) for rows in shown])
            )
    return parts


def _samples(summary: Summary, task: str, length: int) -> list[list[Row]]:
    """Return the rows of each sample by the report's order of methods, most different first."""
    indices = {
        row.index
        for method in summary.methods
        if (cell := summary.cell(task, length, method))
        for row in cell.rows
    }
    rows = summary.results.rows
    found = []
    for index in sorted(indices):
        keys = (Key(task, length, index, method) for method in summary.methods)
        found.append([rows[key] for key in keys if key in rows])
    return sorted(found, key=lambda sample: (-_spread(sample), sample[0].index))


def _spread(rows: Sequence[Row]) -> float:
    scores = [row.score for row in rows if row.score is not None]
    return max(scores) - min(scores) if scores else 0.0


def _sample(rows: Sequence[Row]) -> Markup:
    first = rows[0]
    recipe = json.dumps(first.recipe, ensure_ascii=False, sort_keys=True)
    lines = [
        element(
            "tr",
            element("th", row.method, scope="row"),
            element("td", words.points(row.score)),
            element(
                "td", element("pre", _said(row.answer)) if row.answer else element("em", "nothing")
            ),
        )
        for row in rows
    ]
    head = [element("th", name, scope="col") for name in ("method", "score", "answer")]
    return element(
        "section",
        element("h4", f"Sample {first.index}, {first.tokens:,} tokens"),
        element("p", "References: ", element("code", " | ".join(first.references) or words.NONE)),
        element("p", "Recipe: ", element("code", recipe), class_="recipe"),
        element(
            "div",
            element("table", element("thead", element("tr", head)), element("tbody", lines)),
            class_="wide",
            tabindex=0,
            role="region",
            aria_label=f"answers to sample {first.index} of {first.task} at {first.length} tokens",
        ),
        class_="sample",
    )


def _said(answer: str) -> str:
    """Keep a first line break, which HTML would leave out."""
    return f"\n{answer}" if answer.startswith("\n") else answer
