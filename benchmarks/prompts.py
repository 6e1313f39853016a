"""The prompts that a model is timed on: natural text, a short text over and over, a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from sparsefill.data import novel
from sparsefill.errors import InputError
from sparsefill.search.prompts import first_tokens

TILE_TOKENS = 600  # about a worked example of GSM8K, which the original's benchmark repeats


def prompt_ids(tokenizer: Any, tokens: int, asked: str) -> tuple[Int[Tensor, "1 n"], str]:
    """Make a prompt of so many tokens, and say what it is.

    Args:
        asked: `natural`: the novels that ship with the package, one after the other; `tiled`:
            the first 600 tokens of one, repeated, as the original measures; or a text file.

    Raises:
        InputError: there is no such file, or it is too short.
    """
    if asked == "tiled":
        ids = first_tokens(tokenizer, novel(), TILE_TOKENS)
        return _repeated(ids, tokens), f"tiled from {ids.shape[1]} tokens"
    if asked == "natural":
        ids = first_tokens(tokenizer, novel() + novel("northanger-abbey"), tokens)
        if ids.shape[1] < tokens:
            return _repeated(ids, tokens), f"natural, repeated after {ids.shape[1]} tokens"
        return ids, "natural"
    path = Path(asked)
    if not path.is_file():
        raise InputError(f"--prompt must be natural, tiled or a text file, got {asked!r}")
    ids = first_tokens(tokenizer, path.read_text("utf-8"), tokens)
    if ids.shape[1] < tokens:
        raise InputError(
            f"{path} has only {ids.shape[1]} of the {tokens} tokens; pass shorter --lengths"
            " or a longer --prompt"
        )
    return ids, path.name


def _repeated(ids: Int[Tensor, "1 n"], tokens: int) -> Int[Tensor, "1 m"]:
    return ids.repeat(1, -(-tokens // ids.shape[1]))[:, :tokens]
