"""Read JSON that must mean the same to everyone: no NaN, no key twice, no surprises."""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any

from sparsefill.errors import ProfileError


def read_text(path: Path, *, what: str) -> str:
    """Read a UTF-8 file, or raise `ProfileError`.

    Args:
        what: what the file should be, for the error.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
        raise ProfileError(f"cannot read {what} {path}: {error}") from error


def parse_json(text: str, *, source: str) -> Any:
    """Parse JSON, refusing what JSON itself does not define.

    Args:
        source: what the text is called in errors.

    Raises:
        ProfileError: not JSON, or NaN, an infinite number, one key twice in an object, or text
            that no file can hold (half of a surrogate pair).

    Example:
        >>> parse_json('{"a": [1, 2.5]}', source="example")
        {'a': [1, 2.5]}
    """
    try:
        data = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once
        )
        json.dumps(data, ensure_ascii=False).encode("utf-8")
        return data
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{source} is not valid JSON: {error}") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; plain JSON would silently keep the last of a key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {reprlib.repr(key)} stands twice in one object")
        found[key] = value
    return found
