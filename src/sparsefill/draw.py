"""Pictures of which cells an index keeps: in the terminal, as PNG or as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsefill.errors import InputError

COLOURS = {  # one per pattern, in figures, documents and the terminal
    "dense": "#6b7280",
    "a-shape": "#0072b2",
    "tri-shape": "#009e73",
    "vertical-slash": "#d55e00",
    "block-topk": "#cc79a7",
}
SHADES = " ░▒▓█"
FORMATS = (".png", ".svg")


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One head to draw.

    Args:
        title: what stands above it.
        pattern: name of its pattern, which decides its colour.
        mask: kept cells.
        weights: attention probabilities to draw the cells over; None for none.
    """

    title: str
    pattern: str
    mask: Bool[Tensor, "n m"]
    weights: Float[Tensor, "n m"] | None = None


def draw_text(mask: Bool[Tensor, "n m"], *, width: int = 64) -> str:
    """Draw kept cells with block characters, darker where more of an area is kept.

    Args:
        width: characters per line; a character stands for twice as many rows as columns.

    Example:
        >>> print(draw_text(torch.ones(4, 4, dtype=torch.bool).tril(), width=4))
        █▒
        ███▒
    """
    share = mask.float()[None, None]
    columns = min(width, mask.shape[1])
    rows = min(max(1, columns // 2), mask.shape[0])
    share = torch.nn.functional.adaptive_avg_pool2d(share, (rows, columns))[0, 0]
    levels = (share * (len(SHADES) - 1)).ceil().long().tolist()
    return "\n".join("".join(SHADES[level] for level in row).rstrip() for row in levels)


def draw_figure(panels: Sequence[Panel], path: Path) -> None:
    """Draw heads side by side into a PNG or SVG file.

    Attention weights are grey on a logarithmic scale; kept cells are tinted.

    Raises:
        InputError: the file's ending is neither .png nor .svg.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"a picture must end in .png or .svg, got {path.name!r}; rename it")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm, to_rgb
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        kept = _shrink(panel.mask.float())
        extent = (0, panel.mask.shape[1], panel.mask.shape[0], 0)
        if panel.weights is not None:
            weights = _shrink(panel.weights.float()).clamp(min=1e-6).numpy()
            norm = LogNorm(vmin=1e-6, vmax=0.1)
            axes.imshow(weights, cmap="Greys", norm=norm, extent=extent, interpolation="nearest")
        tint = torch.tensor([*to_rgb(COLOURS[panel.pattern]), 0.0]).expand(*kept.shape, 4).clone()
        tint[..., 3] = kept * (0.9 if panel.weights is None else 0.45)
        axes.imshow(tint.numpy(), extent=extent, interpolation="nearest")
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel("key", fontsize=8)
        axes.set_ylabel("query" if place == 0 else "", fontsize=8)
        axes.tick_params(labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        with mpl.rc_context({"svg.hashsalt": "sparsefill"}):
            stamp = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(scratch, dpi=150, metadata=stamp)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _shrink(cells: Float[Tensor, "n m"], limit: int = 512) -> Float[Tensor, "rows columns"]:
    """Pool to at most `limit` cells a side, keeping the largest value of each area."""
    rows, columns = (min(limit, side) for side in cells.shape)
    return torch.nn.functional.adaptive_max_pool2d(cells[None, None], (rows, columns))[0, 0]


def toy_head(n: int) -> tuple[Float[Tensor, "1 1 n 64"], Float[Tensor, "1 1 n 64"]]:
    """Make queries and keys whose attention has a sink, columns, diagonals and blocks.

    A stand-in for a real head where only the look of a pattern matters.

    Example:
        >>> q, k = toy_head(100)
        >>> q.shape
        torch.Size([1, 1, 100, 64])
    """
    seed = torch.Generator().manual_seed(0)
    position = torch.arange(n)[:, None]
    rates = torch.tensor([2 * torch.pi / period for period in (n / 3, n / 7, n / 12, n / 50)])
    wave = torch.cat([(position * rates).cos(), (position * rates).sin()], dim=1)
    topic = torch.randn(8, 16, generator=seed)[torch.randint(8, (-(-n // 64),), generator=seed)]
    topic = topic.repeat_interleave(64, dim=0)[:n]
    salient = torch.zeros(n, 1)
    salient[torch.randint(n, (max(1, n // 128),), generator=seed)] = 1
    salient[:4] = 1.5
    noise = torch.randn(2, n, 64 - 8 - 16 - 1, generator=seed) * 0.7
    ones = torch.ones(n, 1)
    q = torch.cat([2.5 * wave, 1.2 * topic, 5 * ones, noise[0]], dim=1)
    k = torch.cat([2.5 * wave, 1.2 * topic, 5 * salient, noise[1]], dim=1)
    return q[None, None], k[None, None]
