"""Pictures of which cells an index keeps, and of how a kernel reads them: text, PNG or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsefill.errors import InputError
from sparsefill.index import SparseIndex
from sparsefill.tile import TILE

COLOURS = {  # one per pattern, in figures, documents and the terminal
    "dense": "#6b7280",
    "a-shape": "#0072b2",
    "tri-shape": "#009e73",
    "vertical-slash": "#d55e00",
    "fixed-slash": "#e69f00",
    "block-topk": "#cc79a7",
    "interleaved": "#56b4e9",
    "infllm": "#7b3294",
}
COLUMN_COLOUR = "#111827"  # of single key columns, beside tiles in their pattern's colour
SHADES = " ░▒▓█"
FORMATS = (".png", ".svg")
IN_TILE, IN_COLUMN = 1, 2  # how a kernel reads a key; a lone column must survive pooling


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
    check_ending(path)
    from matplotlib.colors import LogNorm, to_rgb

    figure = new_figure(4.2 * len(panels), 4.6)
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
    save_figure(figure, path)


def read_by_kernel(index: SparseIndex) -> Int64[Tensor, "i m"]:
    """Tell for each row block how a kernel reads each key: in a tile, as a column, or not.

    Of the first sequence and head. Tiles are whole, as they are computed: the causal mask
    comes later. A column that a tile covers is not read again.

    Example:
        >>> from sparsefill import AShape, estimate
        >>> q, k = toy_head(256)
        >>> kinds = read_by_kernel(estimate(AShape(sink=2, window=64), q, k))
        >>> kinds[3, [0, 100, 200]].tolist()
        [2, 0, 1]
    """
    ends = index.row_block_ends()[0].tolist()
    slashes = index.slash_tiles[0, 0, : int(index.slash_counts[0, 0])].tolist()
    columns = index.column_indices[0, 0, : int(index.column_counts[0, 0])].long()
    kinds = torch.zeros(index.row_blocks, index.m, dtype=torch.int64)
    for i, end in enumerate(ends):
        starts = [end - TILE - offset for offset in slashes if offset < end]
        if index.row_ptr is not None and index.tile_starts is not None:
            first, last = index.row_ptr[0, 0, i : i + 2].tolist()
            starts += index.tile_starts[first:last].tolist()
        kinds[i, columns[columns < min(end, index.m)]] = IN_COLUMN
        for start in starts:
            kinds[i, max(0, start) : start + TILE] = IN_TILE
    return kinds


def draw_index_text(kinds: Int64[Tensor, "i m"], *, width: int = 64) -> str:
    """Draw how a kernel reads keys: `█` where mostly tiles, `░` fewer, `|` only columns.

    Example:
        >>> print(draw_index_text(torch.tensor([[2, 0, 1, 1], [0, 0, 0, 1]]), width=2))
        |█
         ░
    """
    areas = kinds.tensor_split(min(width, kinds.shape[1]), dim=1)
    tiles = torch.stack([(part == IN_TILE).float().mean(1) for part in areas], dim=1).tolist()
    columns = torch.stack([(part == IN_COLUMN).any(1) for part in areas], dim=1).tolist()
    return "\n".join(
        "".join(
            "█" if tile > 0.5 else "░" if tile else "|" if column else " "
            for tile, column in zip(*row, strict=True)
        ).rstrip()
        for row in zip(tiles, columns, strict=True)
    )


def draw_index_figure(
    kinds: Int64[Tensor, "i m"], path: Path, *, n: int, title: str, colour: str
) -> None:
    """Draw how a kernel reads keys into a PNG or SVG file: tiles and columns in two colours.

    Args:
        kinds: what `read_by_kernel` told.
        path: the file.
        n: queries of the index.
        title: what stands above the picture.
        colour: of the tiles.

    Raises:
        InputError: the file's ending is neither .png nor .svg.
    """
    check_ending(path)
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    figure = new_figure(6.4, 6.9)
    axes = figure.add_subplot()
    m = kinds.shape[1]
    shown = torch.nn.functional.adaptive_max_pool1d(kinds.float(), min(m, 1024))
    axes.imshow(
        shown.numpy(),
        cmap=ListedColormap(["white", colour, COLUMN_COLOUR]),
        vmin=0,
        vmax=IN_COLUMN,
        extent=(0, m, len(kinds) * TILE, 0),
        interpolation="nearest",
    )
    axes.set_ylim(n, 0)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("key", fontsize=8)
    axes.set_ylabel(f"query, in row blocks of {TILE}", fontsize=8)
    axes.tick_params(labelsize=7)
    handles = [
        Patch(color=colour, label=f"tile of {TILE} keys"),
        Patch(color=COLUMN_COLOUR, label="gathered column"),
    ]
    axes.legend(handles=handles, loc="upper right", fontsize=8)
    save_figure(figure, path)


def check_ending(path: Path) -> None:
    """Raise `InputError` unless a picture can be written to a file of this name."""
    if path.suffix not in FORMATS:
        raise InputError(f"a picture must end in .png or .svg, got {path.name!r}; rename it")


def new_figure(width: float, height: float) -> Any:
    """Make a figure that needs no screen, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path, *, outlines: bool = True) -> None:
    """Write a figure, all or nothing, and the same bytes every time.

    Args:
        figure: from `new_figure`.
        path: a .png or .svg.
        outlines: draw letters of an SVG as shapes, the same in every viewer; text is far
            smaller where there is much of it.
    """
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part{path.suffix}")
    settings: dict[Any, Any] = {
        "svg.hashsalt": "sparsefill",
        "svg.fonttype": "path" if outlines else "none",
    }
    try:
        with mpl.rc_context(settings):
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
