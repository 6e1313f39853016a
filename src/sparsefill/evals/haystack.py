"""Texts that needles are hidden in: the package's novels, or the user's files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from sparsefill.data import novel
from sparsefill.errors import InputError

BREAK = "\n\n"  # between the end of a text and the start of the next


@dataclass(frozen=True)
class Haystack:
    """One long text, or several after one another.

    Args:
        name: for reports.
        text: all of it; tasks that need more begin again at its start, and say so in the
            sample's recipe.
        ends: the character at which each text ends but the last; a break follows.
    """

    name: str
    text: str
    ends: tuple[int, ...] = ()

    @classmethod
    def join(cls, name: str, texts: Sequence[str]) -> Haystack:
        """Put texts after one another.

        Example:
            >>> Haystack.join("two", ["a cat", "a dog"]).ends
            (5,)
        """
        pasts = accumulate(len(text + BREAK) for text in texts[:-1])
        return cls(name, BREAK.join(texts), tuple(past - len(BREAK) for past in pasts))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The texts apart."""
        starts = (0, *(end + len(BREAK) for end in self.ends))
        ends = (*self.ends, len(self.text))
        return tuple(self.text[start:end] for start, end in zip(starts, ends, strict=True))

    @cached_property
    def words(self) -> Sequence[str]:
        """All words, whitespace left out."""
        return self.text.split()

    @cached_property
    def _sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def provenance(self) -> dict[str, Any]:
        """Describe the text in a recipe."""
        return {"name": self.name, "sha256": self._sha256, "words": len(self.words)}


def load_haystack(path: Path | None = None) -> Haystack:
    """Read a text file or all text files (`*.txt`, by name) of a folder; by default two novels.

    Raises:
        InputError: there is no such file, or no text in it.
    """
    if path is None:
        return Haystack.join("two novels by Jane Austen", [novel(), novel("northanger-abbey")])
    if not path.exists():
        raise InputError(f"there is no file or folder {path}; check --haystack")
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    try:
        texts = [file.read_text("utf-8") for file in files]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must hold text in UTF-8 ({error}); check --haystack") from error
    if not any(text.strip() for text in texts):
        raise InputError(f"{path} must hold text, got none; a folder needs files named *.txt")
    return Haystack.join(path.name, texts)
