"""A tokenizer that takes no time to load, and samples made with it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sparsefill.evals.haystack import Haystack, load_haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making, Task
from tests.support.tokenizers import PieceTokenizer

# words in fives, numbers in digits; marks, lines and blanks alone
PIECES = PieceTokenizer(r" ?[^\W\d]{1,5}|\d|\s|[^\w\s]|_")


@cache
def prompter(template: str = "base") -> Prompter:
    return Prompter(tokenizer=PIECES, template=template)


@cache
def novels() -> Haystack:
    return load_haystack()


def make(
    task: Task,
    length: int = 4096,
    index: int = 0,
    *,
    seed: int = 42,
    template: str = "base",
    data: Path | None = None,
    one_layout: bool = False,
) -> Sample:
    """Make a sample."""
    return task.make(
        Making(
            task=task.name,
            prompter=prompter(template),
            length=length,
            index=index,
            seed=seed,
            haystack=novels(),
            data=data,
            one_layout=one_layout,
        )
    )
