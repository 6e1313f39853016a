"""The inputs of a benchmark: random ones, and ones with something for an estimate to find."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.arguments import DTYPES, Shape

SINK = 4  # first keys that every query attends to
COLUMNS = 16  # further planted key columns, scattered
LINES = 2  # diagonals per head
MARGIN = 3.0  # by how much a planted score exceeds log(n), the mass of everything else


@dataclass(frozen=True)
class Problem:
    """One causal attention call: a length, a shape, a dtype."""

    n: int
    shape: Shape
    dtype: str

    @property
    def causal_cells(self) -> int:
        """Query-key pairs of one head."""
        return self.n * (self.n + 1) // 2

    @property
    def flops(self) -> float:
        """Operations of dense attention: 2 d for a score, 2 d for its share of the output."""
        return 4.0 * self.shape.d * self.causal_cells * self.shape.h

    def __str__(self) -> str:
        return f"n={self.n}, {'x'.join(map(str, self.shape))}, {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Lengths, shapes and dtypes, of which every combination is a problem."""

    lengths: Sequence[int]
    shapes: Sequence[Shape]
    dtypes: Sequence[str]

    def problems(self) -> list[Problem]:
        """Combine them, lengths outermost."""
        choices = itertools.product(self.lengths, self.shapes, self.dtypes)
        return [Problem(*choice) for choice in choices]


class Qkv(NamedTuple):
    """The three inputs of attention, one sequence."""

    q: Float[Tensor, "1 h n d"]
    k: Float[Tensor, "1 g n d"]
    v: Float[Tensor, "1 g n d"]


def random_inputs(problem: Problem, seed: int) -> Qkv:
    """Draw normally distributed inputs: attention without any structure."""
    generator = torch.Generator().manual_seed(seed)
    h, g, d = problem.shape
    q, k, v = (
        torch.randn(1, heads, problem.n, d, generator=generator).to(DTYPES[problem.dtype])
        for heads in (h, g, g)
    )
    return Qkv(q, k, v)


def planted_inputs(problem: Problem, seed: int) -> Qkv:
    """Draw inputs with a sink, scattered columns, and two diagonals per head.

    Even heads have the nearest diagonals (0 and 1), odd heads distant ones. A query is
    made of the keys at its head's distances, so that their score is about log(n) + 3
    whatever the length, and one dimension is large in the sink and in the columns.
    """
    generator = torch.Generator().manual_seed(seed)
    (h, g, d), n = problem.shape, problem.n
    q, k, v = (torch.randn(1, heads, n, d, generator=generator) for heads in (h, g, g))
    score = math.log(n) + MARGIN
    strength = score / math.sqrt(d)  # a key's squared length is about d
    place = torch.arange(n)
    for head in range(h):
        own = k[0, head * g // h]
        far = torch.randint(n // 8, n // 2 + 1, (LINES,), generator=generator).tolist()
        for offset in range(LINES) if head % 2 == 0 else far:
            q[0, head] += strength * own[(place - offset).clamp(min=0)]
    columns = torch.randint(0, n, (COLUMNS,), generator=generator)
    large = math.sqrt(score * math.sqrt(d))  # its square, divided by sqrt(d), is the score
    q[..., -1], k[..., -1] = large, 0.0
    k[:, :, :SINK, -1] = k[:, :, columns, -1] = large
    return Qkv(*(t.to(DTYPES[problem.dtype]) for t in (q, k, v)))
