"""Reads the fields of one JSON object, each of the kind that it must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefill.errors import InputError


class Fields:
    """One object; every field is asked for once, and what nobody asked for is an error.

    Args:
        source: what the object is called in errors.
    """

    def __init__(self, data: Any, *, source: str) -> None:
        self._source = source
        self._data: Mapping[str, Any] = self._must(data, isinstance(data, dict), "it", "an object")
        self._asked: set[str] = set()

    def given(self, name: str) -> bool:
        """Tell whether a field is not null."""
        return self._take(name) is not None

    def text(self, name: str) -> str:
        """Return text."""
        value = self._take(name)
        return self._must(value, isinstance(value, str), name, "text")

    def truth(self, name: str) -> bool:
        """Return true or false."""
        value = self._take(name)
        return self._must(value, isinstance(value, bool), name, "true or false")

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        value = self._take(name)
        right = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return self._must(value, right, name, "a list of texts")

    def whole(self, name: str, *, least: int | None = 0) -> int:
        """Return a whole number."""
        value = self._take(name)
        right = _is_whole(value) and (least is None or value >= least)
        kind = "a whole number" if least is None else f"a whole number from {least}"
        return self._must(value, right, name, kind)

    def wholes(self, name: str) -> list[int]:
        """Return a list of whole numbers."""
        value = self._take(name)
        right = isinstance(value, list) and all(_is_whole(item) for item in value)
        return self._must(value, right, name, "a list of whole numbers")

    def number(self, name: str) -> float | None:
        """Return a number or None."""
        value = self._take(name)
        self._must(value, value is None or _is_number(value), name, "a number or null")
        return None if value is None else float(value)

    def share(self, name: str) -> float | None:
        """Return a number from 0 to 1, or None."""
        value = self._take(name)
        right = value is None or (_is_number(value) and 0 <= value <= 1)
        self._must(value, right, name, "a number from 0 to 1, or null")
        return None if value is None else float(value)

    def numbers(self, name: str) -> dict[str, float]:
        """Return numbers by name."""
        value = self._take(name)
        right = isinstance(value, dict) and all(map(_is_number, value.values()))
        self._must(value, right, name, "an object of numbers")
        return {key: float(number) for key, number in value.items()}

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object."""
        value = self._take(name)
        return self._must(value, isinstance(value, dict), name, "an object")

    def mappings(self, name: str) -> dict[str, dict[str, Any]]:
        """Return objects by name."""
        value = self._take(name)
        right = isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())
        return self._must(value, right, name, "an object of objects")

    def end(self) -> None:
        """Raise `InputError` if there are fields that nobody asked for."""
        unknown = sorted(self._data.keys() - self._asked)
        if unknown:
            raise InputError(
                f"{self._source}: unknown field {unknown[0]!r}; was it written by another version"
                " of sparsefill?"
            )

    def _take(self, name: str) -> Any:
        self._asked.add(name)
        if name not in self._data:
            raise InputError(f"{self._source}: there must be a field {name!r}, got none")
        return self._data[name]

    def _must(self, value: Any, right: bool, name: str, kind: str) -> Any:
        if not right:
            shown = repr(value)
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            raise InputError(f"{self._source}: {name} must be {kind}, got {shown}")
        return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
