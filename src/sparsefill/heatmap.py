"""Which pattern each head of a profile uses, as a map of layers and heads: text, PNG or SVG."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from sparsefill.draw import COLOURS, check_ending, new_figure, save_figure
from sparsefill.patterns import (
    AShape,
    BlockTopK,
    FixedSlash,
    InfLLM,
    Interleaved,
    Pattern,
    TriShape,
    VerticalSlash,
)
from sparsefill.profile import NOT_SEARCHED, Profile

LETTERS = {  # one per pattern, for the terminal
    "dense": "D",
    "a-shape": "A",
    "tri-shape": "T",
    "vertical-slash": "V",
    "fixed-slash": "F",
    "block-topk": "B",
    "interleaved": "I",
    "infllm": "L",
}
NUMBERED = 48  # layers or heads up to which a cell has room for its number
FAINTEST = 0.3  # shade of the smallest budget: its colour must still be told


def budget(pattern: Pattern) -> int | None:
    """Count the keys or lines that a pattern asks for; None for all of them.

    Example:
        >>> budget(VerticalSlash(verticals=1000, slashes=6096))
        7096
    """
    if isinstance(pattern, (AShape, TriShape)):
        return pattern.sink + pattern.window
    if isinstance(pattern, VerticalSlash):
        return max(pattern.verticals, pattern.sink) + max(pattern.slashes, pattern.window)
    if isinstance(pattern, FixedSlash):
        return max(pattern.verticals, pattern.sink) + len(pattern.offsets)
    if isinstance(pattern, BlockTopK):
        return pattern.blocks * pattern.block
    if isinstance(pattern, Interleaved):
        return pattern.sink + (pattern.even + 1) // 2 + pattern.odd // 2
    if isinstance(pattern, InfLLM):
        return pattern.sink + pattern.window + pattern.blocks * pattern.block
    return None


def describe(profile: Profile, name: str) -> str:
    """Name a profile with its size, and say if it was not searched here."""
    shape = profile.architecture
    label = f", {NOT_SEARCHED}" if profile.provenance.get("origin") == NOT_SEARCHED else ""
    return f"{name}: {shape.layers} layers of {shape.heads} heads{label}"


def summarise(profile: Profile) -> dict[str, str]:
    """Say for each pattern in a profile, most frequent first, how many heads use it.

    Example:
        >>> from sparsefill.profile import Architecture
        >>> shape = Architecture(layers=2, heads=2, kv_heads=1, head_dim=64)
        >>> summarise(Profile.uniform(AShape(), shape))
        {'a-shape': 'a-shape: 4 heads (100%), 5.1K keys'}
    """
    every = [pattern for layer in profile.layers for pattern in layer]
    found = {}
    for name, count in Counter(pattern.name for pattern in every).most_common():
        sizes = sorted({budget(p) or 0 for p in every if p.name == name})
        span = " to ".join(map(short, dict.fromkeys((sizes[0], sizes[-1]))))
        unit = "keys and lines" if name in (VerticalSlash.name, FixedSlash.name) else "keys"
        asked = "every key" if sizes == [0] else f"{span} {unit}"
        found[name] = f"{name}: {count} heads ({count / len(every):.0%}), {asked}"
    return found


def short(count: int) -> str:
    """Write a count in at most four characters.

    Example:
        >>> [short(n) for n in (96, 999, 7096, 9960, 12345)]
        ['96', '999', '7.1K', '10K', '12K']
    """
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}K" if count < 9950 else f"{round(count / 1000)}K"


def shades(profile: Profile) -> list[list[float]]:
    """Shade every head from `FAINTEST` (smallest budget of the profile) to 1, by logarithm."""
    budgets = [[budget(pattern) for pattern in layer] for layer in profile.layers]
    known = [math.log(size) for row in budgets for size in row if size]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)

    def shade(size: int | None) -> float:
        if size is None or high == low:
            return 1.0
        share = (math.log(size) - low) / (high - low) if size else 0.0
        return FAINTEST + (1 - FAINTEST) * share

    return [[shade(size) for size in row] for row in budgets]


def draw_heatmap(profile: Profile, path: Path, *, title: str) -> None:
    """Draw which pattern each head uses into a PNG or SVG file.

    The colour is the family, the shade and the number its budget.

    Raises:
        InputError: the file's ending is neither .png nor .svg.
    """
    check_ending(path)
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    layers, heads = profile.architecture.layers, profile.architecture.heads
    numbered = max(layers, heads) <= NUMBERED
    cell = 0.3 if numbered else 0.14
    figure = new_figure(max(4.5, 1.0 + cell * heads), 1.5 + 0.8 * cell * layers)
    axes = figure.add_subplot()
    image, depths = [], shades(profile)
    for layer, row in enumerate(profile.layers):
        image.append([])
        for head, pattern in enumerate(row):
            depth = depths[layer][head]
            colour = [1 - depth * (1 - part) for part in to_rgb(COLOURS[pattern.name])]
            image[-1].append(colour)
            size = budget(pattern)
            if numbered and size is not None:
                dark = sum(colour) < 1.5
                ink = "white" if dark else "black"
                axes.text(head, layer, short(size), size=5.5, color=ink, ha="center", va="center")
    axes.imshow(image, aspect="auto", interpolation="nearest")
    axes.set_title(title.replace("$", r"\$"), fontsize=9)
    axes.set_xlabel("query head", fontsize=8)
    axes.set_ylabel("layer", fontsize=8)
    axes.tick_params(labelsize=7)
    handles = [
        Patch(color=COLOURS[name], label=label) for name, label in summarise(profile).items()
    ]
    figure.legend(handles=handles, loc="outside lower center", fontsize=7, ncols=1 + (heads > 20))
    save_figure(figure, path, outlines=False)


def draw_letters(profile: Profile) -> list[str]:
    """Draw one line per layer with a letter for the pattern of each head.

    Example:
        >>> from sparsefill.profile import Architecture
        >>> shape = Architecture(layers=2, heads=3, kv_heads=1, head_dim=64)
        >>> draw_letters(Profile.uniform(AShape(), shape))
        ['AAA', 'AAA']
    """
    return ["".join(LETTERS[pattern.name] for pattern in layer) for layer in profile.layers]
