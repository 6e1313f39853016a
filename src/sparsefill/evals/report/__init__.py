"""Reports of evaluation runs: one page that needs nothing else, its figures, and the numbers.

Everything but times is decided by the runs' rows and manifests, down to the byte.
"""

from __future__ import annotations

from pathlib import Path

from sparsefill.atomic import write_atomically
from sparsefill.evals.report.files import as_csv, as_json
from sparsefill.evals.report.page import Page
from sparsefill.evals.report.summary import summarise
from sparsefill.evals.results import Results

ANSWERS = 25  # samples of a task and length whose answers are shown; all are in samples.jsonl
PAGE = "report.html"


def write_report(
    results: Results,
    out: Path,
    *,
    against: str | None = None,
    times: bool = True,
    answers: int = ANSWERS,
) -> list[Path]:
    """Write a report into a folder, and return its files, the page first.

    Args:
        against: the method that others are compared with; full attention if left out.
        times: tell times too, the one part that differs between equal runs.
        answers: the most samples of a task and length whose answers are shown.

    Raises:
        InputError: there are no samples, or none by the method to compare with.
    """
    summary = summarise(results, against=against, times=times)
    page = Page(summary=summary, times=times, answers=answers)
    texts = {
        PAGE: page.write(),
        "summary.csv": as_csv(summary, times=times),
        "summary.json": as_json(summary, times=times),
    }
    texts |= {f"figures/{figure.name}.svg": figure.file() for figure in page.figures}
    for name, text in texts.items():
        write_atomically(out / name, text)
    return [out / name for name in texts]
