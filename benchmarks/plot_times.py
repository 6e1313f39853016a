"""Seconds by length, dense beside sparse, and what a prefill spends them on (Figure 2a, 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fit import EXTRAPOLATED
from benchmarks.rows import Row
from sparsefill.draw import COLOURS

STAGES = (  # of a prefill, from the bottom of a bar: name, field, colour
    ("linear and the rest", "linear_s", "#bbbbbb"),
    ("attention", "attend_s", "#4477aa"),
    ("estimate", "estimate_s", "#ee6677"),
)


def draw_times(axes: Any, rows: Sequence[Row]) -> None:
    """Draw seconds by length on logarithmic axes; what was extrapolated is hollow."""
    dense = {row.n: (row.baseline_s, row.baseline) for row in rows if row.baseline_s is not None}
    lengths = sorted(dense)
    colour = COLOURS["dense"]
    axes.plot(lengths, [dense[n][0] for n in lengths], color=colour, label="dense, torch SDPA")
    for n in lengths:
        known = dense[n][1] != EXTRAPOLATED
        face = colour if known else "white"
        axes.plot(n, dense[n][0], "o", color=colour, markerfacecolor=face)
    for name, points in _sparse(rows).items():
        places = sorted(points)
        axes.plot(places, [points[n] for n in places], marker="s", markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds")
    axes.set_xticks(lengths, [str(n) for n in lengths], rotation=45, fontsize="small")
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")


def draw_shares(axes: Any, rows: Sequence[Row]) -> None:
    """Draw which share of each prefill its stages take; only readings of one kind."""
    own = {row.n: row for row in rows if row.linear_s is not None and row.backend != "sdpa"}
    places = sorted(own)
    bottom = [0.0] * len(places)
    for name, field, colour in STAGES:
        shares = [(getattr(own[n], field) or 0.0) / (own[n].median_s or 1.0) for n in places]
        axes.bar(range(len(places)), shares, bottom=bottom, color=colour, label=name)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    axes.set_xticks(range(len(places)), [str(n) for n in places], rotation=45, fontsize="small")
    axes.set(xlabel="tokens", ylabel="share of the sparse prefill")
    axes.legend(fontsize="x-small")


def draw_latency(rows: Sequence[Row], title: str, path: Path) -> Path | None:
    """Draw both, or the times alone where no row says what the time went to; None if too few.

    The same rows give the same bytes.
    """
    if len({row.n for row in rows if row.baseline_s is not None}) < 2:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    split = any(row.linear_s is not None and row.backend != "sdpa" for row in rows)
    with matplotlib.rc_context({"svg.hashsalt": "sparsefill", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.0 if split else 6.0, 4.0), layout="constrained")
        panels = figure.subplots(1, 2 if split else 1, squeeze=False)[0]
        draw_times(panels[0], rows)
        if split:
            draw_shares(panels[1], rows)
        figure.suptitle(title)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _sparse(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Group the sparse times into curves, by pattern and by what read."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.pattern != "dense" and row.median_s is not None:
            name = row.pattern.partition(":")[0]
            if row.reader is not None:
                name += ", engine"
            found.setdefault(name, {})[row.n] = row.median_s
    return {name: found[name] for name in sorted(found)}
