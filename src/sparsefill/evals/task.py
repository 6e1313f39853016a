"""What a task is: how its samples are made, and what is made of a model's reading of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from sparsefill.errors import InputError
from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.reader import Method, Prefill, Reader

Score = Callable[[str, Sequence[str]], float]  # (what was said, references) -> 0 to 1

FULL = 0.98  # of its length, that a sample fills wherever drawing it anew can do that
DRAWS = 64  # of a sample, at most


@dataclass(frozen=True, kw_only=True)
class Making:
    """What a sample is made from.

    Args:
        task: name of the task.
        prompter: the model's tokenizer and template.
        length: tokens of prompt and answer together, at most.
        index: number of the sample.
        seed: of the whole run.
        haystack: text to hide needles in.
        data: folder of the files that a benchmark publishes; None where the user has none.
        one_layout: `layout` is the same in all samples of a task, as upstream has it.
        again: which draw this is; others than the first, 0, are for a fuller sample.
    """

    task: str
    prompter: Prompter
    length: int
    index: int
    seed: int
    haystack: Haystack
    data: Path | None = None
    one_layout: bool = False
    again: int = 0

    def draw(self, what: str = "") -> random.Random:
        """Return randomness of this sample alone, the same each time it is asked for."""
        drawn = f"/{self.again}" if self.again else ""
        return random.Random(f"{self.seed}/{self.task}/{self.length}/{self.index}/{what}{drawn}")

    def layout(self, what: str) -> random.Random:
        """Return randomness of where things stand: of this sample alone, or of all of them."""
        return replace(self, index=0, again=0).draw(what) if self.one_layout else self.draw(what)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one sample read by one method.

    Args:
        tokens: of the prompt.
        prefill: what reading it took and kept.
        score: 0 to 1; None where there is nothing to be right about.
        answer: what the model said.
        references: what it should have said.
        values: further figures, by name.
        recipe: whatever rebuilds the sample.
        new_tokens: the most tokens of an answer.
        decode_s: seconds spent on them.
    """

    tokens: int
    prefill: Prefill
    score: float | None = None
    answer: str = ""
    references: tuple[str, ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    new_tokens: int = 0
    decode_s: float = 0.0


Make = Callable[[Making], Sample]


@runtime_checkable
class Measurable(Protocol):
    """Anything that can be asked of a model at a length.

    Args:
        decodes: the model goes on after the prompt; otherwise all that counts is within it.
    """

    decodes: ClassVar[bool]

    @property
    def name(self) -> str:
        """`family/task`, such as `ruler/vt`."""
        ...

    def prepare(self, making: Making) -> Callable[[Reader, Method], Outcome]:
        """Make a sample, and return what reads it by a method."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task whose answers are generated and compared with references.

    Args:
        name: `family/task`, such as `ruler/vt`.
        new_tokens: the most tokens of an answer.
        make: draws a sample.
        score: compares an answer with references; 1 is right.
        offline: no downloaded file is needed.
        settled: a score that nothing that follows can lower. An answer that it finds right is
            decoded no further.
    """

    decodes: ClassVar[bool] = True
    name: str
    new_tokens: int
    make: Make
    score: Score
    offline: bool = True
    settled: Score | None = None

    def sample(self, making: Making) -> Sample:
        """Make a sample: the first draw that fills 98 % of its length, or the fullest of 64.

        A unit of filler may be 4 % of 2,048 tokens, and none is cut.
        """
        fullest = self.make(making)
        for again in range(1, DRAWS):
            if fullest.fill >= FULL:
                break
            try:
                drawn = self.make(replace(making, again=again))
            except InputError:  # where the first had just enough room, others may be too long
                continue
            drawn.recipe["again"] = again
            fullest = max(fullest, drawn, key=lambda sample: sample.fill)
        return fullest

    def prepare(self, making: Making) -> Callable[[Reader, Method], Outcome]:
        """Make a sample, and return what has it answered by a method, and scores that.

        Raises:
            UnsupportedError: the scorer needs a package that is not installed.
        """
        sample = self.sample(making)
        self.score("", sample.references)  # a scorer that lacks something says so before any work
        ids, decode = making.prompter.ids(sample), making.prompter.decode

        def settled(tokens: list[int]) -> bool:
            return self.settled is not None and self.settled(decode(tokens), sample.references) == 1

        def measure(reader: Reader, method: Method) -> Outcome:
            answered = reader.answer(method, ids, new_tokens=sample.new_tokens, settled=settled)
            answer = decode(answered.tokens)
            return Outcome(
                tokens=len(ids),
                prefill=answered.prefill,
                score=self.score(answer, sample.references),
                answer=answer,
                references=sample.references,
                recipe=sample.recipe,
                new_tokens=sample.new_tokens,
                decode_s=answered.decode_s,
            )

        return measure
