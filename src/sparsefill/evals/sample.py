"""One question about one long prompt, and what rebuilds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a model is asked, and what it should say.

    Args:
        task: name of the task, such as `ruler/vt`.
        length: tokens aimed for, those of the answer included.
        index: number of the sample among those of its task and length.
        prompt: what the user says.
        prefix: how the answer begins; the model goes on from there.
        references: right answers; the task's scorer says how many of them count.
        new_tokens: the most tokens of an answer.
        turns: what was said before, as (user, assistant).
        recipe: whatever rebuilds the sample: the seed, the depth, how many units of filler.
    """

    task: str
    length: int
    index: int
    prompt: str
    prefix: str = ""
    references: tuple[str, ...] = ()
    new_tokens: int = 64
    turns: tuple[tuple[str, str], ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def fill(self) -> float:
        """Share of the length that prompt and answer take; 1 where no filler is fitted to it."""
        fitted = "fill" in self.recipe
        return (self.recipe["tokens"] + self.new_tokens) / self.length if fitted else 1.0

    def note_fill(self, tokens: int) -> None:
        """Note in the recipe that the prompt, which filler was fitted to, has so many tokens."""
        self.recipe["tokens"] = tokens
        self.recipe["fill"] = round((tokens + self.new_tokens) / self.length, 4)
