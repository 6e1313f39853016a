"""Seconds by length, dense beside sparse, and what a prefill spends them on (Figure 2a, 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figure import name_places, svg_figure
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
    timed = [row for row in rows if row.baseline_s is not None]
    measured = {row.n: row.baseline_s for row in timed if row.baseline != EXTRAPOLATED}
    dense = {row.n: row.baseline_s for row in timed} | measured
    lengths = sorted(dense)
    style = {"color": COLOURS["dense"], "marker": "o"}
    axes.plot(lengths, [dense[n] for n in lengths], **style, label="dense, torch SDPA")
    if hollow := [n for n in lengths if n not in measured]:
        style |= {"markerfacecolor": "white", "linestyle": "none"}
        axes.plot(hollow, [dense[n] for n in hollow], **style, label="dense, extrapolated")
    for name, points in _sparse(rows).items():
        places = sorted(points)
        axes.plot(places, [points[n] for n in places], marker="s", markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds")
    name_places(axes, lengths, [str(n) for n in lengths])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")


def draw_shares(axes: Any, rows: Sequence[Row]) -> None:
    """Draw which share of each prefill its stages take, of the readings most lengths have.

    Those of another kind spend their time otherwise: beside these they would look like a
    change with length. Of several kinds with as many lengths, that with the longest counts.
    """
    split = [row for row in rows if _has_stages(row)]
    kinds: dict[str, dict[int, Row]] = {}
    for row, name in zip(split, _names(split), strict=True):
        kinds.setdefault(name, {})[row.n] = row
    kind, own = max(kinds.items(), key=lambda item: (len(item[1]), max(item[1]), item[0]))
    places = sorted(own)
    bottom = [0.0] * len(places)
    for name, field, colour in STAGES:
        shares = [(getattr(own[n], field) or 0.0) / (own[n].median_s or 1.0) for n in places]
        axes.bar(range(len(places)), shares, bottom=bottom, color=colour, label=name)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    name_places(axes, range(len(places)), [str(n) for n in places])
    axes.set(xlabel="tokens", ylabel=f"share of the sparse prefill ({kind})")
    axes.legend(fontsize="x-small")


def draw_latency(rows: Sequence[Row], title: str, path: Path) -> Path | None:
    """Draw both, or the times alone where no row says what the time went to; None if too few."""
    if len({row.n for row in rows if row.baseline_s is not None}) < 2:
        return None
    split = any(map(_has_stages, rows))
    with svg_figure(path, width=9.0 if split else 6.0) as figure:
        panels = figure.subplots(1, 2 if split else 1, squeeze=False)[0]
        draw_times(panels[0], rows)
        if split:
            draw_shares(panels[1], rows)
        figure.suptitle(title)
    return path


def _sparse(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Group the sparse times into curves, by pattern, by what read, and by backend."""
    timed = [row for row in rows if row.pattern != "dense" and row.median_s is not None]
    found: dict[str, dict[int, float]] = {}
    for row, name in zip(timed, _names(timed), strict=True):
        assert row.median_s is not None
        found.setdefault(name, {})[row.n] = row.median_s
    return {name: found[name] for name in sorted(found)}


def _names(rows: Sequence[Row]) -> list[str]:
    """Name the kind of each row, with its backend where there is more than one."""
    several = len({row.backend for row in rows}) > 1
    return [
        row.pattern.partition(":")[0]
        + (", engine" if row.reader is not None else "")
        + (f", {row.backend}" if several else "")
        for row in rows
    ]


def _has_stages(row: Row) -> bool:
    return row.linear_s is not None and row.backend != "sdpa"
