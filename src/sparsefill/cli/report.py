"""`sparsefill report`: one page and tables from the folders of evaluation runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sparsefill.errors import InputError
from sparsefill.evals.report import write_report
from sparsefill.evals.results import load_results


def run_report(
    console: Console,
    folders: Sequence[Path],
    *,
    out: Path,
    against: str | None,
    times: bool,
    answers: int,
) -> None:
    """Read runs, write the report, and say where it is."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out must be a folder, got the file {out}")
    results = load_results(folders)
    written = write_report(results, out, against=against, times=times, answers=answers)
    console.print(f"{len(results.rows)} rows of {len(results.runs)} runs of {results.model}")
    figures = [path for path in written if path.parent != out]
    for path in written:
        if path not in figures:
            console.print(f"wrote {path}", soft_wrap=True)
    if figures:
        console.print(f"wrote {len(figures)} figures to {figures[0].parent}", soft_wrap=True)
