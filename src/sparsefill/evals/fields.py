"""Reads the fields of one JSON object, each of the kind that it must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsefill.errors import InputError

MOST = 2**53  # up to here a float holds every whole number
LARGEST = 1e300  # sums and differences of so large numbers are still finite
Bounds = tuple[float, float]


class Fields:
    """One object; every field is asked for once, and what nobody asked for is an error.

    Args:
        source: what the object is called in errors.
    """

    def __init__(self, data: Any, *, source: str) -> None:
        self.source = source
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
        """Return a whole number; where it has a least, a float holds it too."""
        value = self._take(name)
        right = _is_whole(value) and (least is None or least <= value)
        kind = "a whole number" if least is None else f"a whole number from {least}"
        self._must(value, right, name, kind)
        return self._must(
            value, least is None or value <= MOST, name, f"a whole number up to {MOST}"
        )

    def wholes(self, name: str, *, least: int = 1) -> list[int]:
        """Return a list of whole numbers."""
        value = self._take(name)
        right = isinstance(value, list) and all(
            _is_whole(item) and least <= item <= MOST for item in value
        )
        return self._must(value, right, name, f"a list of whole numbers from {least} to {MOST}")

    def number(self, name: str, *, bounds: Bounds) -> float | None:
        """Return a number between bounds, or None."""
        value = self._take(name)
        right = value is None or _is_between(value, bounds)
        self._must(value, right, name, f"a number {_said(bounds)}, or null")
        return None if value is None else float(value)

    def numbers(self, name: str, *, bounds: Mapping[str, Bounds]) -> dict[str, float]:
        """Return numbers by name, some of them between bounds of their own."""
        value = self._take(name)
        right = isinstance(value, dict) and all(map(_is_number, value.values()))
        self._must(value, right, name, "an object of numbers")
        for key, number in value.items():
            own = bounds.get(key, (-LARGEST, LARGEST))
            right = _is_between(number, own)
            self._must(number, right, f"{name}[{key!r}]", f"a number {_said(own)}")
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

    def objects(self, name: str) -> list[dict[str, Any]]:
        """Return a list of objects."""
        value = self._take(name)
        right = isinstance(value, list) and all(isinstance(item, dict) for item in value)
        return self._must(value, right, name, "a list of objects")

    def end(self) -> None:
        """Raise `InputError` if there are fields that nobody asked for."""
        unknown = sorted(self._data.keys() - self._asked)
        if unknown:
            raise InputError(
                f"{self.source}: unknown field {unknown[0]!r}; was it written by another version"
                " of sparsefill?"
            )

    def _take(self, name: str) -> Any:
        self._asked.add(name)
        if name not in self._data:
            raise InputError(f"{self.source}: there must be a field {name!r}, got none")
        return self._data[name]

    def _must(self, value: Any, right: bool, name: str, kind: str) -> Any:
        if not right:
            shown = repr(value)
            shown = shown if len(shown) <= 80 else shown[:77] + "..."
            raise InputError(f"{self.source}: {name} must be {kind}, got {shown}")
        return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_between(value: Any, bounds: Bounds) -> bool:
    return _is_number(value) and bounds[0] <= value <= bounds[1]


def _said(bounds: Bounds) -> str:
    return f"from {bounds[0]:g} to {bounds[1]:g}"
