"""What is compared is the same sample, whatever method read it, in whatever run."""

from __future__ import annotations

from typing import Any

from sparsefill.errors import InputError
from sparsefill.evals.rows import Row


class Pairing:
    """The samples met so far: each has one prompt, and one set of right answers.

    Samples of one name are made alike by the same seed, tokenizer, template, texts, word list and
    files; where one of them is another, so is the recipe, or the answer, or the prompt's length.
    """

    def __init__(self) -> None:
        self._met: dict[tuple[str, int, int], dict[str, tuple[Any, str]]] = {}

    def meet(self, row: Row, where: str) -> None:
        """Remember a row's sample.

        Args:
            where: the row stands, for errors.

        Raises:
            InputError: it was another one before.
        """
        known = self._met.setdefault((row.task, row.length, row.index), {})
        for part, own in row.sample.items():
            first, place = known.setdefault(part, (own, where))
            if first != own:
                raise InputError(
                    f"sample {row.index} of {row.task} at {row.length} tokens is not the same in"
                    f" {place} and in {where}: {part!r} differs. It was made of other texts,"
                    " words, files or by another tokenizer; keep such runs apart"
                )
