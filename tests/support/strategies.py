"""Hypothesis strategies: shapes, lengths, patterns, and indices of any valid content."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from sparsefill import AShape, BlockTopK, Dense, Pattern, SparseIndex, TriShape, VerticalSlash
from sparsefill.tile import TILE


class Shape(NamedTuple):
    """A batch, with the real lengths of its sequences."""

    b: int
    h: int
    g: int
    n: int
    m: int
    d: int
    query_lengths: Tensor
    key_lengths: Tensor
    seed: int


def sizes(largest: int) -> st.SearchStrategy[int]:
    """Draw lengths, those around whole tiles often."""
    edges = [s for s in (1, 2, 63, 64, 65, 127, 128, 129) if s <= largest]
    return st.sampled_from(edges) | st.integers(1, largest)


@st.composite
def shapes(draw: DrawFn, *, longest: int = 260, most_heads: int = 4) -> Shape:
    """Draw `n` and `m` independently, so that there are chunks and queries without keys."""
    b = draw(st.integers(1, 3))
    g = draw(st.integers(1, 2))
    h = g * draw(st.integers(1, most_heads // g))
    n = draw(sizes(longest))
    m = draw(st.just(n) | sizes(longest))
    query_lengths, key_lengths = (
        draw(st.just([full] * b) | st.lists(st.integers(0, full), min_size=b, max_size=b))
        for full in (n, m)
    )
    return Shape(
        b=b,
        h=h,
        g=g,
        n=n,
        m=m,
        d=draw(st.sampled_from([8, 32, 80])),
        query_lengths=torch.tensor(query_lengths),
        key_lengths=torch.tensor(key_lengths),
        seed=draw(st.integers(0, 2**16)),
    )


def patterns() -> st.SearchStrategy[Pattern]:
    """Draw any pattern, with budgets from too small to keep all of a short prompt."""
    few, many = st.integers(0, 8), st.integers(1, 300)
    return st.one_of(
        st.just(Dense()),
        st.builds(AShape, sink=few, window=many),
        st.builds(TriShape, sink=few, window=many, last=many),
        st.builds(
            VerticalSlash,
            verticals=st.integers(0, 40),
            slashes=st.integers(0, 40),
            probe=many,
            sink=few,
            window=st.integers(1, 70),
        ),
        st.builds(
            BlockTopK,
            blocks=st.integers(1, 6),
            block=st.sampled_from([64, 128, 192]),
            sink=few,
            window=many,
        ),
    )


@st.composite
def indices(draw: DrawFn, *, longest: int = 260) -> SparseIndex:
    """Draw an index of slash tiles, columns and further tiles wherever they may be."""
    shape = draw(shapes(longest=longest))
    return random_index(shape, shape.h, further=draw(st.booleans()))


def random_index(shape: Shape, x: int, *, further: bool = True) -> SparseIndex:
    """Make an index of `x` heads; what lies past a count is garbage."""
    rng = random.Random(shape.seed)
    slash: list[list[int]] = []
    columns: list[list[int]] = []
    tiles: list[int] = []
    row_ptr: list[int] = []
    for s in range(shape.b):
        queries, keys = int(shape.query_lengths[s]), int(shape.key_lengths[s])
        for _ in range(x):
            own = _spaced(rng, rng.randrange(0, 100), shape.m + 80)
            slash.append(own)
            columns.append(sorted(rng.sample(range(shape.m), rng.randint(0, min(9, shape.m)))))
            row_ptr.append(len(tiles))
            for i in range(-(-shape.n // TILE)):
                if i * TILE < queries:
                    end = TILE * (i + 1) + keys - queries
                    starts = _spaced(rng, rng.randrange(1 - TILE, 40), end)
                    tiles += [t for t in starts if all(abs(end - TILE - o - t) >= TILE for o in own)]
                row_ptr.append(len(tiles))

    def pack(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        width = int(counts.max()) + 1
        padded = [row + rng.choices(range(-70, 400), k=width - len(row)) for row in rows]
        return counts.view(shape.b, x), torch.tensor(padded).int().view(shape.b, x, width)

    slash_counts, slash_tiles = pack(slash)
    column_counts, column_indices = pack(columns)
    return SparseIndex(
        n=shape.n,
        m=shape.m,
        query_lengths=shape.query_lengths.int(),
        key_lengths=shape.key_lengths.int(),
        slash_counts=slash_counts,
        slash_tiles=slash_tiles,
        column_counts=column_counts,
        column_indices=column_indices,
        row_ptr=torch.tensor(row_ptr).int().view(shape.b, x, -1) if further else None,
        tile_starts=torch.tensor(tiles).int() if further else None,
    )


def _spaced(rng: random.Random, first: int, end: int) -> list[int]:
    """List some places from `first` on, at least a tile apart and often touching."""
    places = []
    while first < end:
        if rng.random() < 0.6:
            places.append(first)
        first += TILE + rng.choice([0, 0, 1, rng.randrange(90)])
    return places
