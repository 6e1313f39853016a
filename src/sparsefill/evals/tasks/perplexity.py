"""Perplexity over length: how well a model reads prose, as on PG-19.

A window of a text is a sample of its own. Every method reads the same windows, so that methods
are compared on the same words; and a window begins at the same token whatever its length, so that
longer ones go on where shorter ones end. Sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from jaxtyping import Float
from torch import Tensor

from sparsefill.errors import InputError, ShapeError
from sparsefill.evals.filler import opening
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter

LEAST = 1024  # tokens between the starts of windows
LAST = 4096  # tokens at the end of a window, which see most of it


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens of a text that are read together.

    Args:
        text: number of the text, of those of a haystack.
        start: token of the text that the window begins at.
        ids: the tokens, after the marker that the tokenizer begins texts with, if it has one.
        shared: tokens that windows before this one hold as well, at the same length.
    """

    text: int
    start: int
    ids: tuple[int, ...]
    shared: int


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


def window_starts(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield where windows begin, as text and token: what texts hold decides, no length.

    Side by side, texts hold some windows of the largest power of two that there is room for;
    between their starts lie those of half that length, and so on, down to 1024 tokens. So as
    many samples of a power of two tokens as there is room for share no token, and few samples
    lie far apart. Last come the starts of texts that are shorter than that.

    Args:
        sizes: tokens of each text.

    Example:
        >>> list(window_starts([5000, 2048]))
        [(0, 0), (0, 2048), (1, 0), (0, 1024), (0, 3072), (1, 1024)]
    """
    told = set[tuple[int, int]]()
    step = 1 << max(max(sizes).bit_length(), LEAST.bit_length()) - 1
    while step >= LEAST:
        for text, size in enumerate(sizes):
            for start in range(0, size - step + 1, step):
                if (text, start) not in told:
                    told.add((text, start))
                    yield text, start
        step //= 2
    yield from ((text, 0) for text, size in enumerate(sizes) if 0 < size < LEAST)


def cut_window(haystack: Haystack, prompter: Prompter, length: int, index: int) -> Window:
    """Cut one of the windows of a length out of texts; none reaches over the end of its text.

    Raises:
        InputError: this window, or one before it, is longer than what is left of its text.
    """
    marker = opening(Prompter(tokenizer=prompter.tokenizer))
    size = length - len(marker)
    if size < 1 or length < 2:
        raise InputError(f"a window needs a token to predict, got {length}; pass a larger length")
    texts = prompter.encode_once(haystack.texts)
    starts = list(islice(window_starts([len(ids) for ids in texts]), index + 1))
    inside = [start + size <= len(texts[text]) for text, start in starts]
    if not all(inside) or index >= len(starts):
        raise InputError(
            f"{haystack.name!r} has {[*inside, False].index(False)} windows of {length} tokens,"
            f" fewer than {index + 1}; pass fewer samples, a smaller length or a longer --haystack"
        )
    text, start = starts[-1]
    before = [other - start for own, other in starts[:-1] if own == text]
    after = min((other for other in before if other > 0), default=size)
    behind = min((-other for other in before if other < 0), default=size)
    return Window(
        text=text,
        start=start,
        ids=(*marker, *texts[text][start : start + size]),
        shared=min(size, max(size - after, 0) + max(size - behind, 0)),
    )


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
