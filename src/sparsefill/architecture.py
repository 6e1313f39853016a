"""What must agree between a profile and a model: its shape, never its name."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sparsefill.errors import ProfileError

ROPE_TOLERANCE = 1e-6  # GGUF files store the base in float32, config.json in decimal


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What must agree between a profile and a model: never the model's name.

    Args:
        layers: attention layers.
        heads: query heads of a layer.
        kv_heads: key-value heads of a layer.
        head_dim: width of a head.
        rope_base: base of the rotary embedding ("theta"); None when it is not known,
            or there is none, and then it is not compared.

    Example:
        >>> Architecture(layers=2, heads=4, kv_heads=2, head_dim=64).heads
        4
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_base: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.shape.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                shown = reprlib.repr(value)
                raise ProfileError(f"architecture.{name} must be a positive integer, got {shown}")
        if self.heads % self.kv_heads:
            raise ProfileError(
                f"architecture.heads must be a multiple of kv_heads, got heads={self.heads} and"
                f" kv_heads={self.kv_heads}"
            )
        base: Any = self.rope_base
        if base is not None and not (is_number(base) and base > 0):
            shown = reprlib.repr(base)
            raise ProfileError(
                f"architecture.rope_base must be a positive number or null, got {shown}"
            )

    @property
    def shape(self) -> dict[str, int]:
        """Return the counts, without the rope base."""
        return {name: value for name, value in asdict(self).items() if name != "rope_base"}

    def fits(self, other: Architecture) -> bool:
        """Tell whether both may be of one model; an unknown rope base fits any.

        Example:
            >>> shape = dict(layers=2, heads=4, kv_heads=2, head_dim=64)
            >>> Architecture(**shape).fits(Architecture(**shape, rope_base=1e6))
            True
        """
        return self.shape == other.shape and self._same_base(other)

    def require(self, other: Architecture) -> None:
        """Raise `ProfileError` unless a model of the other architecture fits this one."""
        for name, expected in self.shape.items():
            if (got := other.shape[name]) != expected:
                raise ProfileError(
                    f"this profile is for a model with {name}={expected}, got {name}={got};"
                    " pass the profile of this model, or a pattern"
                )
        if not self._same_base(other):
            raise ProfileError(
                f"this profile is for a model with rope_base={self.rope_base:g}, got"
                f" rope_base={other.rope_base:g}: another model, or its context was extended;"
                " pass the profile of this model, search one, or set rope_base to null in a"
                " copy of the profile to use it all the same"
            )

    def _same_base(self, other: Architecture) -> bool:
        if self.rope_base is None or other.rope_base is None:
            return True
        return math.isclose(self.rope_base, other.rope_base, rel_tol=ROPE_TOLERANCE)

    @classmethod
    def from_dict(cls, data: object) -> Architecture:
        """Build the architecture that `dataclasses.asdict` described, checking every field."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(names):
            got = sorted(map(str, data)) if isinstance(data, Mapping) else reprlib.repr(data)
            raise ProfileError(f"architecture must be an object with {names}, got {got}")
        base = data["rope_base"]
        return cls(**{**data, "rope_base": float(base) if is_number(base) else base})


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number that a float can hold; True is none.

    Example:
        >>> is_number(1e6), is_number(float("nan")), is_number(True), is_number(10**400)
        (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
