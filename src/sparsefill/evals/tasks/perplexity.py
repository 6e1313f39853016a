"""Perplexity over length: how well a model reads prose, as on PG-19.

A text is cut into windows that share no token, each a sample of its own. Every method reads the
same windows, so that methods are compared on the same words. Sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from sparsefill.errors import InputError, ShapeError
from sparsefill.evals.filler import opening
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter

LAST = 4096  # tokens at the end of a window, which see most of it


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens of a text that are read together.

    Args:
        start: token of the text that the window begins at.
        ids: the tokens, after the marker that the tokenizer begins texts with, if it has one.
    """

    start: int
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How well a window was read: negative log-likelihoods, in nats per token.

    Args:
        nll: mean over all tokens.
        last: mean over the last 4096 tokens.
        tokens: how many were predicted.
    """

    nll: float
    last: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """Perplexity in which every token counts the same."""
        return math.exp(self.nll)


def cut_window(text: Haystack, prompter: Prompter, length: int, index: int) -> Window:
    """Cut one of the windows of a length out of a text: side by side from its start.

    No two share a token and none reaches over the text's end.

    Raises:
        InputError: there are fewer windows, or the length has no room for a token to predict.
    """
    marker = opening(Prompter(tokenizer=prompter.tokenizer))
    size = length - len(marker)
    if size < 1 or length < 2:
        raise InputError(f"a window needs a token to predict, got {length}; pass a larger length")
    ids, start = prompter.encode_once(text.text), index * size
    if start + size > len(ids):
        raise InputError(
            f"{text.name!r} has {len(ids) // size} windows of {length} tokens, fewer than"
            f" {index + 1}; pass fewer samples, a smaller length or a longer --haystack"
        )
    return Window(start=start, ids=(*marker, *ids[start : start + size]))


def read_out(nll: Float[Tensor, " _"], *, last: int = LAST) -> Reading:
    """Summarise a window.

    Args:
        nll: of each token but the first, in nats.

    Raises:
        InputError: there is no token at all.

    Example:
        >>> import torch
        >>> read_out(torch.tensor([5.0, 3.0, 1.0]), last=1)
        Reading(nll=3.0, last=1.0, tokens=3)
    """
    if not len(nll):
        raise InputError("there is no token to average over; pass a larger length")
    return Reading(nll=_mean(nll), last=_mean(nll[-last:]), tokens=len(nll))


def by_position(nll: Float[Tensor, " _"], edges: Sequence[int]) -> list[float]:
    """Average over each range of positions.

    Number 0 is of the second token of a window: the first one is not predicted.

    Args:
        nll: of each token but the first, in nats.
        edges: where ranges begin and end, ascending, within the window.

    Raises:
        ShapeError: the edges do not ascend, or reach out of the window.

    Example:
        >>> import torch
        >>> by_position(torch.arange(6.0), edges=[0, 2, 6])
        [0.5, 3.5]
    """
    inside = all(0 <= edge <= len(nll) for edge in edges)
    if not inside or list(edges) != sorted(set(edges)):
        raise ShapeError(f"edges must ascend between 0 and {len(nll)}, got {list(edges)}")
    return [_mean(nll[start:end]) for start, end in pairwise(edges)]


def _mean(nll: Float[Tensor, " _"]) -> float:
    return float(nll.double().mean())
