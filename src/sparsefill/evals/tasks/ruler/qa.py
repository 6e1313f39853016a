"""RULER's questions about documents, whoever wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making
from sparsefill.evals.tasks.ruler.fill import Draft, fill

NEW_TOKENS = 32

# Wording of RULER (Apache-2.0), which defines the task.
INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output"
    " any other words."
)
USER = (
    INSTRUCTION
    + "\n\nThe following are given documents.\n\n{context}\n\n"
    + INSTRUCTION
    + "\n\nQuestion: {query}"
)
PREFIX = " Answer:"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and where its answer is.

    Args:
        text: the question.
        answers: any of which is right.
        gold: documents that hold the answer.
        others: returns so many further documents, the nearest ones first; those of fewer are
            the first of those of more.
        recipe: what rebuilds it.
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]
    others: Callable[[int], list[str]]
    recipe: dict[str, Any] = field(default_factory=dict)


def make_qa(making: Making, question: Question) -> Sample:
    """Make a sample: documents with the answer among others, shuffled."""
    gold = list(question.gold)

    def write(units: int) -> Draft:
        documents = gold + question.others(units - len(gold))
        order = list(range(units))
        making.layout("documents").shuffle(order)
        context = "\n\n".join(
            f"Document {number}:\n{documents[place]}" for number, place in enumerate(order, 1)
        )
        found = [number for number, place in enumerate(order, 1) if place < len(gold)]
        return Draft(
            prompt=USER.format(context=context, query=question.text),
            prefix=PREFIX,
            references=question.answers,
            recipe={**question.recipe, "gold": found},
        )

    return fill(making, NEW_TOKENS, write, least=len(gold))
