"""What commands that run a model share: its device, and texts to read."""

from __future__ import annotations

from pathlib import Path

import torch

from sparsefill.errors import InputError


def resolve_device(name: str) -> str:
    """Resolve the device, and check that torch can put a tensor there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--device must be one that torch can use, got {name!r}: {reason}"
        ) from None
    return name


def read_text(path: Path, *, option: str) -> str:
    """Read a text file that an option names.

    Raises:
        InputError: there is none, or no text in it.
    """
    if not path.is_file():
        raise InputError(f"no prompt file at {path}; check {option}")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); convert it") from error
    if not text.strip():
        raise InputError(f"the prompt must not be empty, got {path} without any text")
    return text
