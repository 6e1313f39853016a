"""A reader without a model, and what samples are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch

from sparsefill.evals.haystack import Haystack, load_haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making, Task
from sparsefill.reader import Answered, Compared, Followed, Heads, Method, Predicted, Prefill
from tests.support.tokenizers import EndingTokenizer, PieceTokenizer

TOOK = Prefill(ttft_s=0.5, attention_s=0.25, estimate_s=0.125, density=0.5)
# words in fives, numbers in digits; marks, lines and blanks alone
PIECES = PieceTokenizer(r" ?[^\W\d]{1,5}|\d|\s|[^\w\s]|_")
HAYSTACK = Haystack("words", "It was a long way to the town. They walked. " * 400)


class Scripted:
    """Says what it is told to, by method, and counts what it reads."""

    def __init__(self, says: dict[str, str]) -> None:
        self.says = says
        self.read: list[tuple[str, int]] = []
        ones = torch.ones(2, 3, dtype=torch.float64)
        self.heads = Heads(ones, 0 * ones, ones)

    def answer(
        self,
        method: Method,
        ids: Sequence[int],
        *,
        new_tokens: int,
        settled: Callable[[list[int]], bool] | None = None,
    ) -> Answered:
        self.read.append((method.name, len(ids)))
        said: list[int] = []
        for token in self.says[method.name].encode()[:new_tokens]:
            said.append(token)
            if settled is not None and settled(said):
                break
        return Answered(said, TOOK, 0.75)

    def follow(
        self, method: Method, ids: Sequence[int], continuations: Sequence[tuple[list[int], int]]
    ) -> tuple[list[Followed], Prefill]:
        self.read.append((method.name, len(ids)))
        return [
            Followed(torch.full((judged,), 0.5, dtype=torch.float64), torch.ones(judged) > 0)
            for _, judged in continuations
        ], TOOK

    def losses(self, method: Method, ids: Sequence[int]):
        self.read.append((method.name, len(ids)))
        return torch.full((len(ids) - 1,), 2.0, dtype=torch.float64), TOOK

    def compare(
        self,
        method: Method,
        ids: Sequence[int],
        *,
        positions: int,
        new_tokens: int,
        full: Predicted | None = None,
    ):
        self.read += (
            [(method.name, len(ids))]
            if full or method.name == "full"
            else [(method.name, len(ids)), ("full", len(ids))]
        )
        own = Predicted(torch.zeros(positions, 258), [1] * new_tokens)
        return Compared(full or own, own, self.heads, TOOK)


def making(task: str = "a/task", length: int = 600, index: int = 0, **options) -> Making:
    settings = {"seed": 42, "haystack": HAYSTACK, "prompter": Prompter(tokenizer=EndingTokenizer())}
    return Making(task=task, length=length, index=index, **{**settings, **options})


@cache
def prompter(template: str = "base") -> Prompter:
    return Prompter(tokenizer=PIECES, template=template)


@cache
def novels() -> Haystack:
    return load_haystack()


def make(
    task: Task, length: int = 4096, index: int = 0, *, template: str = "base", **options
) -> Sample:
    """Make a sample, of the novels unless told otherwise."""
    settings = {"haystack": novels(), "prompter": prompter(template), **options}
    return task.sample(making(task.name, length, index, **settings))
