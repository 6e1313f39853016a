"""What a task is: how its samples are made, and how what a model says is scored."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample

Score = Callable[[str, Sequence[str]], float]  # (what was said, references) -> 0 to 1


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
        data: folder of a benchmark's own files, for the tasks that need them.
    """

    task: str
    prompter: Prompter
    length: int
    index: int
    seed: int
    haystack: Haystack
    data: Path | None = None

    def draw(self, what: str = "") -> random.Random:
        """Return randomness of this sample alone, the same each time it is asked for."""
        return random.Random(f"{self.seed}/{self.task}/{self.length}/{self.index}/{what}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task whose answers are generated and compared with references.

    Args:
        name: `family/task`, such as `ruler/vt`.
        new_tokens: the most tokens of an answer.
        make: makes a sample.
        score: compares an answer with references; 1 is right.
        offline: no downloaded file is needed.
    """

    name: str
    new_tokens: int
    make: Callable[[Making], Sample]
    score: Score
    offline: bool = True
