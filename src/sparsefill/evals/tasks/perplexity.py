"""Perplexity over length: how well a model reads prose, as on PG-19.

Texts are cut into windows that share no token. Every length reads the start of the same
windows, so that lengths and methods are compared on the same words. Sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsefill.errors import InputError, ShapeError
from sparsefill.evals.filler import opening
from sparsefill.evals.haystack import Haystack, load_haystack
from sparsefill.evals.prompter import Prompter

LAST = 4096  # tokens at the end of a window, which see most of it


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens of a text that are read together.

    Args:
        text: name of the text.
        start: token of the text that the window begins at.
        ids: the tokens, after the marker that the tokenizer begins texts with, if it has one.
    """

    text: str
    start: int
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean negative log-likelihood, in nats per token.

    Args:
        nll: mean over all tokens.
        standard_error: of that mean, from the spread between windows; None for a single one.
        tokens: how many there were.
        windows: how many there were.
    """

    nll: float
    standard_error: float | None
    tokens: int
    windows: int

    @property
    def perplexity(self) -> float:
        """Perplexity in which every token counts the same."""
        return math.exp(self.nll)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How well windows of one length were read.

    Args:
        whole: of all tokens.
        last: of the last 4096 tokens of each window.
        mean_perplexity: mean of the windows' own perplexities, which MInference reports; never
            below that of `whole` where windows are equally long.
    """

    whole: Estimate
    last: Estimate
    mean_perplexity: float


def curve_lengths(shortest: int, longest: int, intervals: int) -> tuple[int, ...]:
    """Return the lengths of a curve: equal steps in whole tokens, as MInference takes them.

    Example:
        >>> curve_lengths(1000, 100_000, 19)[:3], curve_lengths(1000, 100_000, 19)[-1]
        ((1000, 6210, 11420), 99990)
    """
    step = (longest - shortest) // intervals
    return tuple(shortest + i * step for i in range(intervals + 1))


def load_texts(path: Path | None = None) -> Sequence[Haystack]:
    """Read each text file (`*.txt`, by name) of a folder as a text of its own, or one file.

    Without a path it is the package's novels, as one text.

    Raises:
        InputError: there is no such file, or no text in it.
    """
    files = sorted(path.glob("*.txt")) if path is not None and path.is_dir() else []
    return [load_haystack(file) for file in files] or [load_haystack(path)]


def cut_windows(
    texts: Sequence[Haystack], prompter: Prompter, length: int, count: int
) -> Sequence[Window]:
    """Cut windows of a length out of texts: the first of each text, then the second, and on.

    No two share a token and none reaches over the end of a text, so that the same texts give
    the same windows.

    Raises:
        InputError: there are fewer windows than asked for.
    """
    plain = Prompter(tokenizer=prompter.tokenizer)
    marker = opening(plain)
    size = length - len(marker)
    found: list[tuple[int, int, Window]] = []
    for number, text in enumerate(texts):
        ids = plain.encode(text.text)
        for start in range(0, len(ids) - size + 1, size):
            window = Window(text=text.name, start=start, ids=(*marker, *ids[start : start + size]))
            found.append((start, number, window))
    if len(found) < count:
        raise InputError(
            f"the texts have {len(found)} windows of {length} tokens, fewer than {count};"
            " pass fewer samples, a smaller length or more texts"
        )
    return [window for _, _, window in sorted(found, key=lambda entry: entry[:2])[:count]]


def nll_of_rows(
    logits: Float[Tensor, "t vocabulary"], following: Int[Tensor, " t"]
) -> Float[Tensor, " t"]:
    """Return the negative log-likelihood of the token that follows each row, in nats.

    Example:
        >>> nll_of_rows(torch.zeros(2, 4), torch.tensor([3, 1])).exp()
        tensor([4., 4.])
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide, following.long(), reduction="none")


def nll_in_slices(
    logits_of: Callable[[int, int], Float[Tensor, "t vocabulary"]],
    ids: Int[Tensor, " n"],
    rows: int,
) -> Float[Tensor, " n_but_one"]:
    """Return the negative log-likelihood of every token but the first.

    All logits of a long text at once would take tens of gigabytes. A slice of rows says how
    likely the tokens one later are, those of the next slice's first row included: losing one
    token a slice, as MInference's script does, would change the result with `rows`.

    Args:
        logits_of: logits of the rows from a first one to an end.
        ids: all tokens.
        rows: the most rows of a slice.
    """
    starts = range(0, len(ids) - 1, rows)
    slices = [(start, min(start + rows, len(ids) - 1)) for start in starts]
    parts = [nll_of_rows(logits_of(start, end), ids[start + 1 : end + 1]) for start, end in slices]
    return torch.cat(parts) if parts else torch.zeros(0)


def estimate_nll(nlls: Sequence[Float[Tensor, " _"]]) -> Estimate:
    """Average over all tokens of some windows.

    The error is that of a ratio of sums: tokens of one window are alike, so windows count as
    independent and tokens do not.

    Args:
        nlls: one tensor for each window: of each of its tokens, in nats.

    Raises:
        InputError: there is no token at all.

    Example:
        >>> estimate_nll([torch.tensor([1.0, 3.0]), torch.tensor([5.0, 3.0])])
        Estimate(nll=3.0, standard_error=1.0, tokens=4, windows=2)
    """
    tokens = torch.tensor([len(nll) for nll in nlls], dtype=torch.float64)
    if not tokens.sum():
        raise InputError("there is no token to average over; pass longer windows")
    sums = torch.stack([nll.cpu().double().sum() for nll in nlls])
    mean = sums.sum() / tokens.sum()
    n, error = len(nlls), None
    if n > 1:
        spread = (sums - mean * tokens).square().sum() * n / (n - 1)
        error = float(spread.sqrt() / tokens.sum())
    return Estimate(nll=float(mean), standard_error=error, tokens=int(tokens.sum()), windows=n)


def read_out(nlls: Sequence[Float[Tensor, " _"]], *, last: int = LAST) -> Reading:
    """Summarise windows of one length.

    Example:
        >>> reading = read_out([torch.tensor([4.0, 2.0]), torch.tensor([6.0, 0.0])], last=1)
        >>> reading.whole.nll, reading.last.nll
        (3.0, 1.0)
    """
    each = torch.stack([nll.cpu().double().mean() for nll in nlls])
    return Reading(
        whole=estimate_nll(nlls),
        last=estimate_nll([nll[-last:] for nll in nlls]),
        mean_perplexity=float(each.exp().mean()),
    )


def by_position(
    nlls: Sequence[Float[Tensor, " _"]], edges: Sequence[int]
) -> Sequence[Estimate | None]:
    """Average over each range of positions; None where no window reaches.

    Number 0 is of the second token of a window: the first one is not predicted.

    Args:
        nlls: one tensor for each window: of each of its tokens, in nats.
        edges: where ranges begin and end, ascending.

    Raises:
        ShapeError: the edges do not ascend.

    Example:
        >>> [part.nll for part in by_position([torch.arange(6.0)], edges=[0, 2, 6])]
        [0.5, 3.5]
    """
    if list(edges) != sorted(set(edges)):
        raise ShapeError(f"edges must ascend, got {list(edges)}")
    found: list[Estimate | None] = []
    for start, end in pairwise(edges):
        reached = [nll[start:end] for nll in nlls if len(nll) > start]
        found.append(estimate_nll(reached) if reached else None)
    return found
