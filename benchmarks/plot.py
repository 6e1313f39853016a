"""Rows as figures: speed-up by density and by length. The same rows give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.figure import name_places, svg_figure
from benchmarks.plot_times import draw_latency
from benchmarks.rows import Row
from sparsefill.draw import COLOURS
from sparsefill.errors import InputError

OTHERS = {"block": COLOURS["block-topk"], "shared-block": "#882255", "minference": "#0072b2"}
PEER = "#999999"  # everything that is not ours
MARKERS = "osD^v<>"  # one per backend
TIMED = ("patterns", "prefill")  # cases whose seconds are a figure of their own

Curves = dict[tuple[str, ...], dict[float, float]]


def draw_rows(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the figures that the rows are enough for, and return where.

    Raises:
        InputError: no row has a speed-up over dense attention.
    """
    ours = [row for row in rows if row.speedup is not None and row.backend != "sdpa"]
    if not ours:
        raise InputError(f"plot needs rows with a speed-up, got {len(rows)} rows without any")
    written = []
    for case in sorted({row.case for row in ours}):
        own = [row for row in ours if row.case == case]
        longest = max(row.n for row in own)
        at_longest = curves(
            [row for row in own if row.n == longest],
            lambda row: row.density,
            lambda row: (
                row.backend,
                row.pattern.partition(":")[0],
                row.dtype,
                _shape(row),
                *_device(row),
            ),
        )
        by_length = curves(
            own, lambda row: row.n, lambda row: (*_name(row), _shape(row), *_device(row))
        )
        name = case.replace("_", "-")
        written += [
            draw(
                at_longest, "density", f"{name}, {longest} tokens", folder / f"{name}-density.svg"
            ),
            draw(by_length, "tokens", name, folder / f"{name}-length.svg"),
        ]
        if case in TIMED:
            written += [
                draw_latency(
                    alike, " ".join(filter(None, what)), folder / f"{name}-{_file(what)}.svg"
                )
                for what, alike in _kinds([row for row in rows if row.case == case]).items()
            ]
    return [path for path in written if path is not None]


def curves(
    rows: Sequence[Row],
    x: Callable[[Row], float | None],
    name: Callable[[Row], tuple[str, ...]],
) -> Curves:
    """Group rows into curves of at least two points; the newest row of a point counts."""
    found: Curves = {}
    for row in rows:
        place = x(row)
        if place is not None and row.speedup is not None:
            found.setdefault(name(row), {})[place] = row.speedup
    return {name: found[name] for name in sorted(found) if len(found[name]) > 1}


def draw(found: Curves, what: str, title: str, path: Path) -> Path | None:
    """Draw curves on logarithmic axes; None if there are none."""
    if not found:
        return None
    from matplotlib.ticker import LogLocator, NullLocator

    backends = sorted({name[0] for name in found})
    with svg_figure(path, width=6.0) as figure:
        axes = figure.subplots()
        for number, (name, points) in enumerate(found.items()):
            places = sorted(points)
            axes.plot(
                places,
                [points[place] for place in places],
                color=colour(name),
                marker=MARKERS[backends.index(name[0]) % len(MARKERS)],
                linestyle=("-", "--", ":", "-.")[number % 4],
                label=" ".join(name),
            )
        axes.axhline(1, color=COLOURS["dense"], linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=what, ylabel="speed-up over dense", title=title)
        ticks = sorted({place for points in found.values() for place in points})
        label = str if what == "tokens" else "{:.0%}".format
        name_places(axes, ticks, [label(tick) for tick in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}x")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    return path


def colour(name: tuple[str, ...]) -> str:
    """Return a pattern's own colour, grey for peers."""
    if name[0] in ("flex", "sdpa") or name[0].startswith("openvino"):
        return PEER
    return {**COLOURS, **OTHERS}.get(name[1], COLOURS["dense"])


def _kinds(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Group rows that share a figure of seconds: of one model or shape, dtype, prompt, device."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        prompt = (row.prompt or "").partition(",")[0]
        kind = (row.model or _shape(row), row.dtype, prompt, *_device(row))
        kinds.setdefault(kind, []).append(row)
    return {kind: kinds[kind] for kind in sorted(kinds)}


def _file(kind: tuple[str, ...]) -> str:
    """Turn what a figure shows into a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(kind).lower()).strip("-")


def _name(row: Row) -> tuple[str, str, str, str]:
    target = "" if row.target_density is None else f"{row.target_density:.0%}"
    return row.backend, row.pattern.partition(":")[0], target, row.dtype


def _device(row: Row) -> tuple[str, ...]:
    """Name where a row was measured, if not on the CPU."""
    return () if row.device in (None, "cpu") else (row.device,)


def _shape(row: Row) -> str:
    return f"{row.h}x{row.g}x{row.d}"
