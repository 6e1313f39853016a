"""Rows as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.rows import Row


def rows_table(rows: Sequence[Row], title: str) -> Table:
    """Lay rows out, one line each; what was not measured stays empty."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("case", "n", "h x g x d", "dtype", "backend", "pattern"):
        table.add_column(name, justify="right" if name == "n" else "left")
    for name in (
        "density", "recall", "median", "IQR", "runs", "speed-up", "over",
        "efficiency", "of peak", "estimate", "attend",
    ):  # fmt: skip
        table.add_column(name, justify="left" if name == "over" else "right")
    whole = any(row.case == "prefill" for row in rows)
    if whole:
        table.add_column("read")
        table.add_column("peak", justify="right")
    for row in rows:
        table.add_row(
            row.case,
            str(row.n),
            f"{row.h}x{row.g}x{row.d}",
            row.dtype,
            row.backend,
            row.pattern,
            percent(row.density),
            percent(row.recall),
            seconds(row.median_s) if row.done else "error" if row.error else "skipped",
            seconds(row.iqr_s),
            str(row.repeats),
            "" if row.speedup is None else f"{row.speedup:.2f}x",
            row.baseline or row.error or row.skipped or "",
            "" if row.efficiency is None else f"{row.efficiency:.2f}",
            percent(row.peak_fraction),
            seconds(row.estimate_s),
            seconds(row.attend_s),
            *((read(row), size(row.peak_bytes)) if whole else ()),
        )
    return table


def read(row: Row) -> str:
    """Say which model read which prompt, and with which engine, where not transformers alone."""
    parts = (row.model, row.prompt, row.reader)
    return "; ".join(part for part in parts if part is not None)


def size(value: int | None) -> str:
    """Write an amount of memory.

    Example:
        >>> size(3 << 29), size(None)
        ('1.50 GiB', '')
    """
    return "" if value is None else f"{value / 2**30:.2f} GiB"


def seconds(value: float | None) -> str:
    """Write a time with three significant digits.

    Example:
        >>> seconds(0.01234), seconds(12.34), seconds(0.0000123)
        ('12.3 ms', '12.3 s', '12.3 us')
    """
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value:.0f} {unit}"
    return f"{value / 1e-6:.3g} us"


def percent(value: float | None) -> str:
    """Write a share of one.

    Example:
        >>> percent(0.0512), percent(None)
        ('5.1 %', '')
    """
    return "" if value is None else f"{100 * value:.1f} %"
