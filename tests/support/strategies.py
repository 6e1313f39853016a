"""Hypothesis strategies: shapes, lengths, patterns, and indices of any valid content."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    FixedSlash,
    InfLLM,
    Interleaved,
    Pattern,
    SparseIndex,
    TriShape,
    VerticalSlash,
    estimate,
)
from sparsefill.tile import TILE
from tests.support.inputs import Qkv, random_qkv, with_garbage

Recipe = Callable[[], SparseIndex]  # strategies draw it, and the test makes the index


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

    def qkv(self, dtype: torch.dtype = torch.float64) -> Qkv:
        """Make random inputs whose padding is NaN."""
        dense = random_qkv(
            b=self.b, h=self.h, g=self.g, n=self.n, m=self.m, d=self.d, dtype=dtype, seed=self.seed
        )
        return with_garbage(dense, self.query_lengths, self.key_lengths)


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


def interleaved() -> st.SearchStrategy[Interleaved]:
    """Draw the pattern that no index has."""
    return st.builds(
        Interleaved, sink=st.integers(0, 8), even=st.integers(1, 300), odd=st.integers(0, 300)
    )


def patterns() -> st.SearchStrategy[Pattern]:
    """Draw any pattern that an index has, with budgets from too small to keep a short prompt."""
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
            FixedSlash,
            offsets=st.sets(st.integers(1, 300), max_size=9).map(lambda o: (0, *sorted(o))),
            verticals=st.integers(0, 40),
            probe=many,
            sink=few,
        ),
        st.builds(
            BlockTopK,
            blocks=st.integers(1, 6),
            block=st.sampled_from([64, 128, 192]),
            sink=few,
            window=many,
        ),
        st.builds(
            InfLLM,
            sink=few,
            window=many,
            blocks=st.integers(1, 3),
            block=st.sampled_from([64, 128]),
            representatives=st.integers(1, 70),
            queries=st.sampled_from([64, 128]),
            every=st.integers(1, 20),
        ),
    )


def estimates() -> st.SearchStrategy[Recipe]:
    """Draw what any pattern becomes on random inputs."""
    return st.builds(partial, st.just(random_estimate), patterns(), shapes())


def indices() -> st.SearchStrategy[Recipe]:
    """Draw an index of slash tiles, columns and further tiles wherever they may be."""
    return st.builds(partial, st.just(random_index), shapes(), further=st.booleans())


def random_estimate(pattern: Pattern, shape: Shape) -> SparseIndex:
    """Estimate a pattern on random inputs."""
    q, k, _ = shape.qkv()
    return estimate(pattern, q, k, query_lengths=shape.query_lengths, key_lengths=shape.key_lengths)


def random_index(shape: Shape, *, further: bool = True, x: int | None = None) -> SparseIndex:
    """Make an index of `x` heads (all query heads when None); past a count lies garbage."""
    rng = random.Random(shape.seed)
    x = shape.h if x is None else x
    slash: list[list[int]] = []
    columns: list[list[int]] = []
    tiles: list[int] = []
    row_ptr: list[int] = []
    for s, _ in itertools.product(range(shape.b), range(x)):
        slash.append(_spaced(rng, rng.randrange(0, 100), shape.m + 80))
        columns.append(sorted(rng.sample(range(shape.m), rng.randint(0, min(9, shape.m)))))
        row_ptr.append(len(tiles))
        queries, keys = int(shape.query_lengths[s]), int(shape.key_lengths[s])
        for first in range(0, shape.n, TILE):
            end = first + TILE + keys - queries if first < queries else -TILE
            taken = [end - TILE - offset for offset in slash[-1]]
            starts = _spaced(rng, rng.randrange(1 - TILE, 40), end)
            tiles += [t for t in starts if all(abs(t - other) >= TILE for other in taken)]
            row_ptr.append(len(tiles))

    def pack(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        width = int(counts.max()) + 1
        padded = [row + rng.choices(range(-70, 400), k=width - len(row)) for row in rows]
        entries = torch.tensor(padded, dtype=torch.int32)
        return counts.view(shape.b, x), entries.view(shape.b, x, width)

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


def line_patterns(most: int) -> st.SearchStrategy[VerticalSlash]:
    """Draw budgets of lines, forced ones inside or beyond them."""
    return st.builds(
        VerticalSlash,
        verticals=st.integers(0, most),
        slashes=st.integers(1, most),
        sink=st.integers(0, 70),
        window=st.integers(0, 70),
    )


def block_patterns() -> st.SearchStrategy[BlockTopK]:
    """Draw budgets and sizes of blocks, forced ones inside or beyond them."""
    return st.builds(
        BlockTopK,
        blocks=st.integers(1, 6),
        block=st.sampled_from([64, 128, 192]),
        sink=st.integers(0, 150),
        window=st.integers(1, 150),
    )
