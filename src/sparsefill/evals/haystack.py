"""Text that needles are hidden in: the package's novels, or the user's files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsefill.data import novel
from sparsefill.errors import InputError

BREAK = "\n\n"  # between the end of a text and the start of the next


@dataclass(frozen=True)
class Haystack:
    """One long text.

    Args:
        name: for reports.
        text: all of it; tasks that need more begin again at its start, and say so in the
            sample's recipe.
    """

    name: str
    text: str

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
        return Haystack("two novels by Jane Austen", novel() + "\n\n" + novel("northanger-abbey"))
    if not path.exists():
        raise InputError(f"there is no file or folder {path}; check --haystack")
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    try:
        text = "\n\n".join(file.read_text("utf-8") for file in files)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must hold text in UTF-8 ({error}); check --haystack") from error
    if not text.strip():
        raise InputError(f"{path} must hold text, got none; a folder needs files named *.txt")
    return Haystack(path.name, text)
