"""The scaffold of every figure: the same content gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def svg_figure(path: Path, width: float, height: float = 4.0) -> Iterator[Any]:
    """Open a figure of so many inches, which is written as SVG at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    # ids from a salt and text as text: nothing in the file depends on when or where
    with matplotlib.rc_context({"svg.hashsalt": "sparsefill", "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def name_places(axes: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    """Put one tick at each place, none between, and room for their names."""
    axes.set_xticks(places, labels, rotation=45, fontsize="small")
    axes.set_xticks([], minor=True)
