"""`sparsefill draw`: what a pattern looks like."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sparsefill.draw import COLOURS, Panel, draw_figure, draw_text, toy_head
from sparsefill.estimate import estimate
from sparsefill.metrics import density
from sparsefill.patterns import parse_pattern

SMALL = {  # what to draw when no parameters are given: the defaults are for 100K tokens
    "a-shape": "a-shape:sink=48,window=96",
    "tri-shape": "tri-shape:sink=48,window=96,last=96",
    "vertical-slash": "vertical-slash:verticals=48,slashes=24,sink=8,window=8",
    "block-topk": "block-topk:blocks=4",
}


def draw_pattern(console: Console, text: str, *, tokens: int, out: Path | None) -> None:
    """Draw a pattern's cells on the toy head, in the terminal or into a file."""
    pattern = parse_pattern(SMALL.get(text, text))
    q, k = toy_head(tokens)
    index = estimate(pattern, q, k)
    kept = density(index).item()
    title = f"{pattern}: density {kept:.0%} at {tokens} tokens"
    mask = index.to_mask()[0, 0]
    if out is None:
        console.print(title)
        console.print(
            draw_text(mask, width=min(console.width - 2, 96)), style=COLOURS[pattern.name]
        )
        return
    scores = (q @ k.transpose(-1, -2))[0, 0] / q.shape[-1] ** 0.5
    future = ~mask.new_ones(mask.shape).tril()
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    name = f"{pattern.name}: {kept:.0%} of the causal cells"
    draw_figure([Panel(title=name, pattern=pattern.name, mask=mask, weights=weights)], out)
    console.print(f"wrote {out}")
