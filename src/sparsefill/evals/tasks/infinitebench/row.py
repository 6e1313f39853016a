"""A row of the benchmark: what its files hold, or what a recipe has drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question about one long context, in the benchmark's own fields.

    Args:
        context: the long text.
        input: the question.
        answer: right answers; of a choice, the option's text and its letter.
        options: of a choice, A to D.
        recipe: whatever rebuilds the row.
    """

    context: str
    input: str
    answer: tuple[str, ...]
    options: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
