"""Copying: lists of random words in a long text, begun again at its end.

A model that still sees a list goes on with its words; one that lost it cannot guess them. One
prefill of the text serves every list, and the score is a number, not a yes or no: it shows
damage in models that are too weak to answer questions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsefill.errors import InputError, ShapeError
from sparsefill.evals.filler import back_to_sentence, opening, period_of, read_filler, rotation
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.task import Making

DEPTHS = (12, 52, 88)  # percent
WORDS = 24  # of a list
SHOWN = 6  # words of a list that the end of the prompt begins it with
LONGEST = 9  # letters of a word


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A list begun again, and how it goes on.

    Args:
        cue: tokens after the text.
        expected: tokens after the cue.
        words: end of each expected word among the expected tokens.
        depth_percent: where in the text the whole list stands.
    """

    cue: tuple[int, ...]
    expected: tuple[int, ...]
    words: tuple[int, ...]
    depth_percent: int


@dataclass(frozen=True, kw_only=True)
class Copying:
    """A text with lists in it, and each list's continuation, read on a copy of its KV cache.

    Args:
        length: tokens of text, cue and expected words together, at most.
        context: tokens of the text.
    """

    task: str
    length: int
    index: int
    context: tuple[int, ...]
    continuations: tuple[Continuation, ...]
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CopyingScore:
    """How well a list was gone on with.

    Args:
        words: share of words of which every token was the most likely one.
        tokens: share of tokens that were.
        nll: mean negative log-likelihood of the expected tokens, in nats.
    """

    words: float
    tokens: float
    nll: float


def make_copying(making: Making) -> Copying:
    """Make a sample whose text and longest continuation take the length exactly.

    It is plain text whatever the template: nothing is asked.

    Raises:
        InputError: the length has no room for the lists, or the haystack has too few words.
    """
    prompter = Prompter(tokenizer=making.prompter.tokenizer)
    draw = making.draw("words")
    drawn = draw.sample(vocabulary(making.haystack), WORDS * len(DEPTHS))
    texts = [_listed(k + 1, drawn[k * WORDS :][:WORDS]) for k in range(len(DEPTHS))]
    lists = [prompter.encode(f"\n\n{text}.\n\n") for text in texts]
    ends = [_continuation(prompter, text, depth) for text, depth in zip(texts, DEPTHS, strict=True)]
    marker = opening(prompter)
    longest = max(len(end.cue) + len(end.expected) for end in ends)
    room = making.length - longest - len(marker) - sum(map(len, lists))
    if room < 1:
        raise InputError(
            f"{making.task} has no room for a text in {making.length} tokens; pass a larger length"
        )
    offset = rotation(making.haystack, making.index, making.seed)
    filler = read_filler(prompter, making.haystack, offset, room)
    period, context, last = period_of(prompter), list(marker), 0
    for depth, listed in zip(DEPTHS, lists, strict=True):
        at = max(last, back_to_sentence(filler.ids, room * depth // 100, period))
        context += [*filler.ids[last:at], *listed]
        last = at
    return Copying(
        task=making.task,
        length=making.length,
        index=making.index,
        context=(*context, *filler.ids[last:]),
        continuations=tuple(ends),
        recipe={"offset": filler.offset, "passes": filler.passes, "filler_tokens": room},
    )


def vocabulary(haystack: Haystack) -> Sequence[str]:
    """Return a haystack's plain words of four letters or more, sorted.

    Raises:
        InputError: there are too few to make lists of.

    Example:
        >>> text = " ".join(f"{a}{b}xx" for a in "abcdefghij" for b in "abcdefghij")
        >>> vocabulary(Haystack("words", text))[:3]
        ['aaxx', 'abxx', 'acxx']
    """
    found = sorted(set(re.findall(rf"\b[a-z]{{4,{LONGEST}}}\b", haystack.text)))
    if len(found) < WORDS * len(DEPTHS):
        raise InputError(
            f"copying needs {WORDS * len(DEPTHS)} different words of 4 to {LONGEST} letters a-z,"
            f" but {haystack.name} has {len(found)}; pass another --haystack"
        )
    return found


def score_continuation(
    continuation: Continuation, nll: Float[Tensor, " t"], agrees: Bool[Tensor, " t"]
) -> CopyingScore:
    """Score how a model read the expected tokens, each after the right ones before it.

    Args:
        continuation: what was expected.
        nll: negative log-likelihood of each expected token, in nats.
        agrees: whether each was the most likely one.

    Raises:
        ShapeError: there is not one number for each expected token.

    Example:
        >>> expected = Continuation(cue=(1,), expected=(2, 3, 4), words=(2, 3), depth_percent=50)
        >>> right = torch.tensor([True, False, True])
        >>> score_continuation(expected, torch.tensor([0.0, 3.0, 0.0]), right)
        CopyingScore(words=0.5, tokens=0.6666666666666666, nll=1.0)
    """
    tokens = len(continuation.expected)
    if nll.shape != (tokens,) or agrees.shape != (tokens,):
        raise ShapeError(
            f"nll and agrees must hold one number for each of {tokens} expected tokens,"
            f" got shapes {tuple(nll.shape)} and {tuple(agrees.shape)}"
        )
    starts = (0, *continuation.words[:-1])
    spans = zip(starts, continuation.words, strict=True)
    right = [bool(agrees[start:end].all()) for start, end in spans]
    return CopyingScore(
        words=sum(right) / len(right),
        tokens=int(agrees.sum()) / tokens,
        nll=float(nll.double().mean()),
    )


def mean_score(scores: Sequence[CopyingScore]) -> CopyingScore:
    """Average the scores of lists, each list counting the same.

    Example:
        >>> one = CopyingScore(words=1.0, tokens=1.0, nll=0.0)
        >>> mean_score([one, CopyingScore(words=0.0, tokens=0.5, nll=4.0)])
        CopyingScore(words=0.5, tokens=0.75, nll=2.0)
    """
    rows = torch.tensor([(s.words, s.tokens, s.nll) for s in scores], dtype=torch.float64)
    words, tokens, nll = rows.mean(0).tolist()
    return CopyingScore(words=words, tokens=tokens, nll=nll)


def _listed(number: int, words: Sequence[str]) -> str:
    return f"Word list {number}: {' '.join(words)}"


def _continuation(prompter: Prompter, text: str, depth: int) -> Continuation:
    """Cut a list after the words that are shown, as it is tokenized in one piece."""
    words = text.split(" ")
    shown = len(words) - WORDS + SHOWN
    pieces = [prompter.encode("\n\n" + " ".join(words[:end])) for end in range(shown, len(words))]
    whole = prompter.encode("\n\n" + text)
    cut = _shared(pieces[0], whole)
    ends = (*(_shared(piece, whole) for piece in pieces[1:]), len(whole))
    return Continuation(
        cue=tuple(whole[:cut]),
        expected=tuple(whole[cut:]),
        words=tuple(end - cut for end in ends),
        depth_percent=depth,
    )


def _shared(some: Sequence[int], others: Sequence[int]) -> int:
    """Count the tokens that both begin with."""
    pairs = enumerate(zip(some, others, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(some), len(others)))
