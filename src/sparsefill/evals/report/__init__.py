"""Reports of evaluation runs: one page that needs nothing else, its figures, and the numbers.

Everything but times is decided by the runs' rows and manifests, down to the byte.
"""

from __future__ import annotations

from pathlib import Path

from sparsefill.evals.report.files import as_csv, as_json, means_as_csv, values_as_csv
from sparsefill.evals.report.folder import write_files
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

    What an earlier report wrote there, and this one did not, is removed; nothing else is.

    Args:
        against: the method that others are compared with; full attention if left out.
        times: tell times too, the one part that differs between equal runs.
        answers: the most samples of a task and length whose answers are shown.

    Raises:
        InputError: there are no samples, or none by the method to compare with; or a file cannot
            be written.
    """
    summary = summarise(results, against=against, times=times)
    page = Page(summary=summary, times=times, answers=answers)
    texts = {
        PAGE: page.write(),
        "summary.csv": as_csv(summary, times=times),
        "summary.json": as_json(summary, times=times),
        "values.csv": values_as_csv(summary),
        "means.csv": means_as_csv(summary),
    }
    texts |= {f"figures/{figure.name}.svg": figure.file() for figure in page.figures}
    write_files(out, texts)
    return [out / name for name in texts]
