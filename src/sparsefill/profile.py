"""Which pattern each head of a model uses: validated data with its provenance."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from sparsefill.atomic import write_atomically
from sparsefill.errors import PatternError, ProfileError
from sparsefill.patterns import Pattern, VerticalSlash, from_dict, to_dict

SCHEMA = 1

# For a model that nobody measured: the safest single pattern, with a budget that keeps
# more than it needs to at 8K tokens. DESIGN.md has the figures.
DEFAULT_PATTERN = VerticalSlash(verticals=2048, slashes=1024)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What must agree between a profile and a model: never the model's name.

    Example:
        >>> Architecture(layers=2, heads=4, kv_heads=2, head_dim=64).heads
        4
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ProfileError(f"architecture.{name} must be a positive integer, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The pattern of every (layer, query head) of a model.

    Args:
        architecture: the models that this profile fits.
        layers: for each layer, one pattern per query head.
        provenance: where it comes from: prompts, seed, versions, scores; free-form.

    Example:
        >>> from sparsefill import AShape
        >>> shape = Architecture(layers=2, heads=4, kv_heads=2, head_dim=64)
        >>> Profile.uniform(AShape(), shape)[1][0]
        AShape(sink=1024, window=4096)
    """

    architecture: Architecture
    layers: tuple[tuple[Pattern, ...], ...]
    provenance: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(self.layers) != self.architecture.layers:
            raise ProfileError(
                f"a profile of {self.architecture.layers} layers must list patterns for each,"
                f" got {len(self.layers)}"
            )
        for number, layer in enumerate(self.layers):
            if len(layer) != self.architecture.heads:
                raise ProfileError(
                    f"layer {number} must have {self.architecture.heads} patterns,"
                    f" one per query head, got {len(layer)}"
                )

    def __getitem__(self, layer: int) -> tuple[Pattern, ...]:
        """Return the patterns of one layer, one per query head."""
        return self.layers[layer]

    @classmethod
    def uniform(cls, pattern: Pattern, architecture: Architecture) -> Profile:
        """Give every head the same pattern."""
        layer = (pattern,) * architecture.heads
        return cls(architecture=architecture, layers=(layer,) * architecture.layers)

    def require(self, architecture: Architecture) -> None:
        """Raise `ProfileError` unless the model has the profile's architecture."""
        for name, expected in asdict(self.architecture).items():
            if (got := getattr(architecture, name)) != expected:
                raise ProfileError(
                    f"this profile is for a model with {name}={expected}, got {name}={got};"
                    " pass the profile of this model, or a pattern"
                )

    def to_json(self) -> str:
        """Write the profile as JSON; heads refer to a list of distinct patterns."""
        distinct = list(dict.fromkeys(p for layer in self.layers for p in layer))
        number = {pattern: i for i, pattern in enumerate(distinct)}
        rows = [json.dumps([number[p] for p in layer]) for layer in self.layers]
        body = {
            "schema": SCHEMA,
            "architecture": asdict(self.architecture),
            "provenance": self.provenance,
            "patterns": [to_dict(pattern) for pattern in distinct],
        }
        head = json.dumps(body, indent=1, ensure_ascii=False).removesuffix("\n}")
        return head + ',\n "layers": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "profile") -> Profile:
        """Read and validate a profile.

        Raises:
            ProfileError: the text is not a profile; says where and why.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"{source} is not valid JSON: {error}") from error
        expected = {"schema", "architecture", "provenance", "patterns", "layers"}
        if not isinstance(data, dict) or set(data) != expected:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ProfileError(f"{source} must be an object with {sorted(expected)}, got {got}")
        if type(data["schema"]) is not int or data["schema"] != SCHEMA:
            raise ProfileError(f"{source} has schema {data['schema']!r}, expected {SCHEMA}")
        try:
            patterns = [from_dict(item) for item in _list(data["patterns"], "patterns")]
            layers = tuple(
                tuple(patterns[_place(number, len(patterns))] for number in _list(row, "a layer"))
                for row in _list(data["layers"], "layers")
            )
            if not isinstance(data["provenance"], dict):
                raise ProfileError(f"provenance must be an object, got {data['provenance']!r}")
            return cls(
                architecture=Architecture(**data["architecture"]),
                layers=layers,
                provenance=data["provenance"],
            )
        except (PatternError, ProfileError, TypeError) as error:
            raise ProfileError(f"{source} is not a valid profile: {error}") from error

    @classmethod
    def load(cls, name_or_path: str | Path) -> Profile:
        """Read a shipped profile by name, or a profile file by path."""
        if str(name_or_path) in shipped_profiles():
            shipped = resources.files("sparsefill.profiles") / f"{name_or_path}.json"
            return cls.from_json(shipped.read_text("utf-8"), source=str(name_or_path))
        path = Path(name_or_path)
        if not path.is_file():
            raise ProfileError(
                f"no profile {str(name_or_path)!r}: not a file, and not one of the shipped"
                f" {', '.join(shipped_profiles()) or '(none)'}"
            )
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"cannot read profile {path}: {error}") from error
        return cls.from_json(text, source=str(path))

    def save(self, path: str | Path) -> None:
        """Write the profile to a file, all or nothing."""
        write_atomically(Path(path), self.to_json())


def shipped_profiles() -> tuple[str, ...]:
    """Name the profiles that come with the package."""
    files = resources.files("sparsefill.profiles").iterdir()
    return tuple(sorted(f.name[:-5] for f in files if f.name.endswith(".json")))


@functools.cache
def default_profile(architecture: Architecture) -> Profile:
    """Return the shipped profile of an architecture, or the default pattern everywhere.

    DESIGN.md tells how the default was chosen.
    """
    for name in shipped_profiles():
        profile = Profile.load(name)
        if profile.architecture == architecture:
            return profile
    return Profile.uniform(DEFAULT_PATTERN, architecture)


def _list(value: object, what: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ProfileError(f"{what} must be a list, got {value!r}")
    return value


def _place(number: object, size: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < size:
        raise ProfileError(f"a head must name a pattern by 0..{size - 1}, got {number!r}")
    return number
