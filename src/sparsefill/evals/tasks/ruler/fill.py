"""A sample with as much filler as its length has room for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sparsefill.evals.fit import fit_units
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making

ENOUGH = 2000  # a 2000th of the room may stay free: at 1M tokens every try takes seconds


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A prompt with some amount of filler, before anyone knows how much fits."""

    prompt: str
    prefix: str
    references: tuple[str, ...]
    turns: tuple[tuple[str, str], ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)


def fill(
    making: Making, new_tokens: int, write: Callable[[int], Draft], *, least: int = 0
) -> Sample:
    """Make the sample with the most units of filler that leave room for the answer.

    What counts is what the model reads: template, earlier turns and answer prefix included.

    Args:
        making: what the sample is made from.
        new_tokens: the most tokens of an answer.
        write: writes the prompt with so many units, always the same for as many.
        least: units below which there is no sample.

    Raises:
        InputError: not even the least fits.
    """
    tokens: dict[int, int] = {}

    def sample(units: int) -> Sample:
        draft = write(units)
        return Sample(
            task=making.task,
            length=making.length,
            index=making.index,
            prompt=draft.prompt,
            prefix=draft.prefix,
            references=draft.references,
            new_tokens=new_tokens,
            turns=draft.turns,
            recipe={"seed": making.seed, "units": units, **draft.recipe},
        )

    def tokens_of(units: int) -> int:
        tokens[units] = making.prompter.count(sample(units))
        return tokens[units]

    room = making.length - new_tokens
    units = fit_units(tokens_of, room, least=least, enough=room // ENOUGH)
    made = sample(units)
    made.note_fill(tokens[units])
    made.recipe["one_layout"] = making.one_layout
    return made
