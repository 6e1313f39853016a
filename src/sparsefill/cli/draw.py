"""`sparsefill draw`: what a pattern, the index of a kernel, or a whole profile looks like."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from sparsefill.draw import (
    COLOURS,
    IN_COLUMN,
    IN_TILE,
    Panel,
    draw_figure,
    draw_index_figure,
    draw_index_text,
    draw_text,
    read_by_kernel,
    toy_head,
)
from sparsefill.errors import InputError
from sparsefill.estimate import estimate, estimate_cells
from sparsefill.heatmap import LETTERS, describe, draw_heatmap, draw_letters, summarise
from sparsefill.patterns import parse_pattern
from sparsefill.profile import Profile

SMALL = {  # what to draw when no parameters are given: the defaults are for 100K tokens
    "a-shape": "a-shape:sink=48,window=96",
    "tri-shape": "tri-shape:sink=48,window=96,last=96",
    "vertical-slash": "vertical-slash:verticals=48,slashes=24,sink=8,window=8",
    "fixed-slash": "fixed-slash:verticals=48,sink=8,offsets=0/64/256/512/640",
    "block-topk": "block-topk:blocks=4",
    "interleaved": "interleaved:sink=48,even=512,odd=64",
    "infllm": "infllm:sink=64,window=64,blocks=2,block=64,queries=64,every=1",
}
TOKENS = 1024  # drawn length, unless another is asked for
# For an index: long enough for slashes far apart, and so few columns that each shows.
SMALL_INDEX = {"vertical-slash": "vertical-slash:verticals=64,slashes=96,sink=4,window=8"}
INDEX_TOKENS = 2048


def draw_what(
    console: Console,
    *,
    pattern: str | None,
    profile: str | None,
    indices: bool,
    tokens: int | None,
    out: Path | None,
) -> None:
    """Draw the one thing that was asked for."""
    if (pattern is None) == (profile is None):
        raise InputError("pass a pattern to draw, or --profile NAME, and not both")
    if profile is not None:
        if indices:
            raise InputError("--indices draws the index of a pattern; pass a pattern")
        draw_profile(console, profile, out=out)
    elif pattern is not None and indices:
        draw_index(console, pattern, tokens=tokens or INDEX_TOKENS, out=out)
    elif pattern is not None:
        draw_pattern(console, pattern, tokens=tokens or TOKENS, out=out)


def draw_profile(console: Console, name: str, *, out: Path | None) -> None:
    """Draw which pattern each head of a profile uses."""
    profile = Profile.load(name)
    title = describe(profile, Path(name).name)
    if out is not None:
        draw_heatmap(profile, out, title=title)
        console.print(f"wrote {out}")
        return
    console.print(title)
    colours = {LETTERS[name]: colour for name, colour in COLOURS.items()}
    for layer, letters in enumerate(draw_letters(profile)):
        line = Text(f"{layer:3} ")
        for letter in letters:
            line.append(letter, style=colours[letter])
        console.print(line, soft_wrap=True)
    for name, label in summarise(profile).items():
        console.print(Text(f"{LETTERS[name]} {label}", style=COLOURS[name]))


def draw_index(console: Console, text: str, *, tokens: int, out: Path | None) -> None:
    """Draw how a kernel reads the keys of a pattern on the toy head: tiles and columns."""
    pattern = parse_pattern((SMALL | SMALL_INDEX).get(text, text))
    kinds = read_by_kernel(estimate(pattern, *toy_head(tokens)))
    tiles, columns = (int((kinds == kind).sum()) for kind in (IN_TILE, IN_COLUMN))
    share = tiles / max(1, tiles + columns)
    title = f"{pattern}\nat {tokens} tokens: {share:.0%} of the keys read in tiles, the rest singly"
    if out is not None:
        draw_index_figure(kinds, out, n=tokens, title=title, colour=COLOURS[pattern.name])
        console.print(f"wrote {out}")
        return
    console.print(title)
    drawn = draw_index_text(kinds, width=min(console.width - 2, 96))
    console.print(drawn, style=COLOURS[pattern.name])
    console.print("each line is a row block of 64 queries: █ tiles, ░ part of a tile, | columns")


def draw_pattern(console: Console, text: str, *, tokens: int, out: Path | None) -> None:
    """Draw a pattern's cells on the toy head, in the terminal or into a file."""
    pattern = parse_pattern(SMALL.get(text, text))
    q, k = toy_head(tokens)
    cells = estimate_cells(pattern, q, k)
    kept = cells.density().item()
    title = f"{pattern}: density {kept:.0%} at {tokens} tokens"
    mask = cells.to_mask()[0, 0]
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
