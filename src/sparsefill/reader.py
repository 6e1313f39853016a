"""What an evaluation asks of a model: one prefill by a method, and what follows from it.

The tasks know this and no model; an integration gives it to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sparsefill.errors import InputError
from sparsefill.patterns import MOST, Pattern, to_dict
from sparsefill.profile import Profile
from sparsefill.tile import TILE


@dataclass(frozen=True, kw_only=True)
class Method:
    """How prompts are read.

    Args:
        name: as the user may type it.
        cells: one pattern for all heads, or a profile.
        static: cells are found on another text, and kept for every prompt of about its length.
        chunk: tokens that are read at a time, as servers do: cells are found for each chunk by
            its own queries. Fewer than 64 at the end go with the chunk before. None for the
            prompt in one piece.
        keys: of each layer and head that decoding keeps, those that the prompt's last queries
            attend to most (SnapKV); all when None.
    """

    name: str
    cells: Pattern | Profile
    static: bool = False
    chunk: int | None = None
    keys: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and (self.static or not TILE <= self.chunk <= MOST):
            raise InputError(
                f"a method that reads in chunks needs {TILE} to 2^31 - 1 tokens in each, and finds"
                f" cells for each, got chunk={self.chunk}, static={self.static}; pass no chunk to"
                " a static method"
            )
        if self.keys is not None and (self.chunk is not None or not TILE <= self.keys <= MOST):
            raise InputError(
                f"a method that decodes with some of the keys needs {TILE} to 2^31 - 1 of them, and"
                f" a prompt in one piece, got keys={self.keys}, chunk={self.chunk}"
            )

    def describe(self) -> dict[str, Any]:
        """Describe it for a manifest: two runs with the same description read alike."""
        how: dict[str, Any] = {"static": self.static}
        if self.chunk is not None:
            how["chunk"] = self.chunk
        if self.keys is not None:
            how["decode"] = {"snapkv": self.keys}
        if not isinstance(self.cells, Profile):
            return {**to_dict(self.cells), **how}
        digest = hashlib.sha256(self.cells.to_json().encode()).hexdigest()
        origin = self.cells.provenance.get("origin", "unknown")
        return {"profile": digest, "origin": origin, **how}


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """What one prefill took and kept.

    Args:
        ttft_s: seconds to the first token.
        attention_s, estimate_s: seconds of that spent attending, and finding cells.
        density: kept share of the causal cells, the mean over layers and heads.
        recall: attention mass kept, the mean over layers, heads and queries; None unless
            measured.
    """

    ttft_s: float
    attention_s: float
    estimate_s: float
    density: float
    recall: float | None = None


class Answered(NamedTuple):
    """What a model said: its tokens, and how it came to say them."""

    tokens: list[int]
    prefill: Prefill
    decode_s: float


class Followed(NamedTuple):
    """How likely a model found the tokens of one continuation, and which it would have said."""

    losses: Float64[Tensor, " tokens"]  # nats
    right: Bool[Tensor, " tokens"]


class Predicted(NamedTuple):
    """What is predicted at the last positions of a prompt, and the greedy answer."""

    logits: Float[Tensor, "positions vocabulary"]
    answer: list[int]


class Heads(NamedTuple):
    """What a method kept of dense attention on the queries, keys and values of its own reading.

    `recall` is the attention mass kept, `output_error` the relative error of the output, both
    of some queries all over the prompt; `density` is the share of causal cells.
    """

    recall: Float64[Tensor, "layers h"]
    output_error: Float64[Tensor, "layers h"]
    density: Float64[Tensor, "layers h"]


class Compared(NamedTuple):
    """What full attention and a method make of one prompt."""

    full: Predicted
    own: Predicted
    heads: Heads
    prefill: Prefill


@runtime_checkable
class Reader(Protocol):
    """A model that reads prompts by any method."""

    def answer(
        self,
        method: Method,
        ids: Sequence[int],
        *,
        new_tokens: int,
        settled: Callable[[list[int]], bool] | None = None,
    ) -> Answered:
        """Read a prompt by a method, and answer greedily and densely.

        Args:
            settled: told the tokens so far; once it is true, no further one is decoded.
        """
        ...

    def follow(
        self, method: Method, ids: Sequence[int], continuations: Sequence[tuple[list[int], int]]
    ) -> tuple[list[Followed], Prefill]:
        """Read a prompt once, and go on with each continuation on the same cache.

        Args:
            continuations: tokens, and how many of the last of them are judged.
        """
        ...

    def losses(
        self, method: Method, ids: Sequence[int]
    ) -> tuple[Float64[Tensor, " tokens"], Prefill]:
        """Return the loss in nats of each token but the first, given those before it."""
        ...

    def compare(
        self,
        method: Method,
        ids: Sequence[int],
        *,
        positions: int,
        new_tokens: int,
        full: Predicted | None = None,
    ) -> Compared:
        """Read a prompt by a method, and by full attention unless that is known.

        Args:
            full: what an earlier call told of full attention on this prompt.
        """
        ...
