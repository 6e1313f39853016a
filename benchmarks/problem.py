"""The inputs of a benchmark: random ones, and ones with something for an estimate to find."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """One causal attention call: a length, a shape, a dtype, and where its tensors are."""

    n: int
    shape: Shape
    dtype: str
    device: str = "cpu"

    @property
    def causal_cells(self) -> int:
        """Query-key pairs of one head."""
        return self.n * (self.n + 1) // 2

    @property
    def flops(self) -> float:
        """Operations of dense attention: 2 d for a score, 2 d for its share of the output."""
        return 4.0 * self.shape.d * self.causal_cells * self.shape.h

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a row that say what problem it is of."""
        h, g, d = self.shape
        return {"dtype": self.dtype, "n": self.n, "h": h, "g": g, "d": d, "device": self.device}

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
    q, k, v = (t.to(DTYPES[problem.dtype]) for t in _normal(problem, _generator(problem, seed)))
    return Qkv(q, k, v)


def planted_inputs(problem: Problem, seed: int) -> Qkv:
    """Draw inputs with a sink, scattered columns, and two diagonals per head.

    Even heads have the nearest diagonals (0 and 1), odd heads distant ones. A query is
    made of the keys at its head's distances, so that their score is about log(n) + 3
    whatever the length, and one dimension is large in the sink and in the columns.
    """
    generator, device = _generator(problem, seed), problem.device
    (h, g, d), n = problem.shape, problem.n
    q, k, v = _normal(problem, generator)
    score = math.log(n) + MARGIN
    strength = score / math.sqrt(d)  # a key's squared length is about d
    place = torch.arange(n, device=device)
    for head in range(h):
        own = k[0, head * g // h]
        far = torch.randint(n // 8, n // 2 + 1, (LINES,), generator=generator, device=device)
        for offset in range(LINES) if head % 2 == 0 else far.tolist():
            q[0, head] += strength * own[(place - offset).clamp(min=0)]
    columns = torch.randint(0, n, (COLUMNS,), generator=generator, device=device)
    large = math.sqrt(score * math.sqrt(d))  # its square, divided by sqrt(d), is the score
    q[..., -1], k[..., -1] = large, 0.0
    k[:, :, :SINK, -1] = k[:, :, columns, -1] = large
    return Qkv(*(t.to(DTYPES[problem.dtype]) for t in (q, k, v)))


def _generator(problem: Problem, seed: int) -> torch.Generator:
    return torch.Generator(problem.device).manual_seed(seed)


def _normal(problem: Problem, generator: torch.Generator) -> Iterator[Float[Tensor, "1 _ n d"]]:
    """Draw q, k and v in float32, one after the other: a long prompt's fill much memory."""
    h, g, d = problem.shape
    for heads in (h, g, g):
        yield torch.randn(1, heads, problem.n, d, generator=generator, device=problem.device)
