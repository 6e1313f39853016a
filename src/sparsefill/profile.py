"""Which pattern each head of a model uses: validated data with its provenance."""

from __future__ import annotations

import functools
import json
import os
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from sparsefill.architecture import Architecture, is_number
from sparsefill.atomic import write_atomically
from sparsefill.errors import PatternError, ProfileError
from sparsefill.patterns import Pattern, VerticalSlash, from_dict, to_dict
from sparsefill.strict_json import parse_json, read_text

SCHEMA = 2
SEARCHED = "searched here"  # origin of a profile that measurement with this package chose
NOT_SEARCHED = "not searched here"  # ... and of one whose choice is someone else's

# For a model that nobody measured: the safest single pattern, with a budget that keeps
# more than it needs to at 8K tokens. DESIGN.md has the figures.
DEFAULT_PATTERN = VerticalSlash(verticals=2048, slashes=1024)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The pattern of every (layer, query head) of a model.

    Args:
        architecture: the models that this profile fits.
        layers: for each layer, one pattern per query head.
        provenance: where it comes from, JSON: `origin` (`SEARCHED` or `NOT_SEARCHED`),
            `model`, `prompts`, `seed`, `versions`, `cost_target`, `source`; any may be
            missing and others may stand beside them, as nothing is computed from them.
        scores: for each layer and query head, what the search minimised or maximised
            (`provenance` says which); None when nobody measured.

    Example:
        >>> from sparsefill import AShape
        >>> shape = Architecture(layers=2, heads=4, kv_heads=2, head_dim=64)
        >>> Profile.uniform(AShape(), shape)[1][0]
        AShape(sink=1024, window=4096)
    """

    architecture: Architecture
    layers: tuple[tuple[Pattern, ...], ...]
    provenance: dict[str, Any] = field(default_factory=dict, hash=False)
    scores: tuple[tuple[float, ...], ...] | None = None

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
        if self.scores is None:
            return
        expected, got = [len(layer) for layer in self.layers], [len(row) for row in self.scores]
        if got != expected:
            raise ProfileError(
                f"scores must have {self.architecture.layers} rows of {self.architecture.heads},"
                f" one number per layer and head, got rows of {got}"
            )
        for number, row in enumerate(self.scores):
            for head, score in enumerate(row):
                if not is_number(score):
                    raise ProfileError(
                        f"the score of layer {number}, head {head} must be a finite number,"
                        f" got {reprlib.repr(score)}"
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
        self.architecture.require(architecture)

    def to_json(self) -> str:
        """Write the profile as JSON; heads refer to a list of distinct patterns.

        Raises:
            ProfileError: the provenance holds what JSON cannot.
        """
        distinct = list(dict.fromkeys(p for layer in self.layers for p in layer))
        number = {pattern: i for i, pattern in enumerate(distinct)}
        body = {
            "schema": SCHEMA,
            "architecture": asdict(self.architecture),
            "provenance": self.provenance,
        }
        try:
            head = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ProfileError(f"the provenance of a profile must be JSON: {error}") from error
        patterns = _rows([to_dict(pattern) for pattern in distinct])
        layers = _rows([[number[p] for p in layer] for layer in self.layers])
        scores = "null" if self.scores is None else _rows(self.scores)
        return (
            head.removesuffix("\n}")
            + f',\n "patterns": {patterns},\n "layers": {layers},\n "scores": {scores}\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str, *, source: str = "profile") -> Profile:
        """Read and validate a profile.

        Raises:
            ProfileError: the text is not a profile; says where and why.
        """
        data = parse_json(text, source=source)
        expected = {"schema", "architecture", "provenance", "patterns", "layers", "scores"}
        if isinstance(data, dict) and data.get("schema", SCHEMA) != SCHEMA:
            raise ProfileError(
                f"{source} has schema {reprlib.repr(data['schema'])}, expected {SCHEMA}; search"
                " or import it again with this version"
            )
        if not isinstance(data, dict) or set(data) != expected:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ProfileError(f"{source} must be an object with {sorted(expected)}, got {got}")
        if type(data["schema"]) is not int:
            raise ProfileError(f"{source} has schema {data['schema']!r}, expected {SCHEMA}")
        try:
            if not isinstance(provenance := data["provenance"], dict):
                raise ProfileError(f"provenance must be an object, got {reprlib.repr(provenance)}")
            patterns = [_pattern(*item) for item in enumerate(_list(data["patterns"], "patterns"))]
            return cls(
                architecture=Architecture.from_dict(data["architecture"]),
                layers=tuple(
                    tuple(
                        patterns[_place(number, len(patterns), f"layer {i}, head {head}")]
                        for head, number in enumerate(_list(row, f"layer {i}"))
                    )
                    for i, row in enumerate(_list(data["layers"], "layers"))
                ),
                provenance=provenance,
                scores=None if data["scores"] is None else _scores(data["scores"]),
            )
        except (ProfileError, RecursionError) as error:
            raise ProfileError(f"{source} is not a valid profile: {error}") from error

    @classmethod
    def load(cls, name_or_path: str | Path) -> Profile:
        """Read a shipped profile by name, or a profile file by path."""
        if str(name_or_path) in shipped_profiles():
            shipped = resources.files("sparsefill.profiles") / f"{name_or_path}.json"
            return cls.from_json(shipped.read_text("utf-8"), source=str(name_or_path))
        path = Path(name_or_path)
        if not os.path.isfile(path):  # also False for names that no file can have
            raise ProfileError(
                f"no profile {str(name_or_path)!r}: not a file, and not one of the shipped"
                f" {', '.join(shipped_profiles()) or '(none)'}"
            )
        return cls.from_json(read_text(path, what="profile"), source=str(path))

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

    A profile with the model's rope base comes before one of unknown base. Where several fit,
    as they may when the model's base is unknown, they are used only if they agree: a guess
    between models would not be a default. DESIGN.md tells how the pattern was chosen.
    """
    shipped = [Profile.load(name) for name in shipped_profiles()]
    fitting = [profile for profile in shipped if profile.architecture.fits(architecture)]
    if architecture.rope_base is not None:
        exact = [p for p in fitting if p.architecture.rope_base is not None]
        fitting = exact or fitting
    if len({profile.layers for profile in fitting}) == 1:
        return fitting[0]
    return Profile.uniform(DEFAULT_PATTERN, architecture)


def profile_for(architecture: Architecture, given: Profile | Pattern | None = None) -> Profile:
    """Return what a model reads by: a profile, one pattern for all heads, or its default.

    Raises:
        ProfileError: the profile is for another architecture.
    """
    if given is None:
        return default_profile(architecture)
    if not isinstance(given, Profile):
        return Profile.uniform(given, architecture)
    given.require(architecture)
    return given


def _rows(rows: Sequence[Sequence[int | float] | dict[str, Any]]) -> str:
    """Write a list as JSON, each item on its line."""
    return "[\n  " + ",\n  ".join(map(json.dumps, rows)) + "\n ]"


def _list(value: object, what: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ProfileError(f"{what} must be a list, got {reprlib.repr(value)}")
    return value


def _pattern(number: int, data: Any) -> Pattern:
    """Read a pattern that says everything: a default may change, a profile must not."""
    try:
        pattern = from_dict(data)
    except PatternError as error:
        raise ProfileError(f"pattern {number}: {error}") from error
    if missing := sorted(set(to_dict(pattern)) - set(data)):
        raise ProfileError(f"pattern {number}: {pattern.name} lacks {', '.join(missing)}")
    return pattern


def _place(number: object, size: int, where: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < size:
        raise ProfileError(
            f"{where} must name a pattern by 0..{size - 1}, got {reprlib.repr(number)}"
        )
    return number


def _scores(rows: object) -> tuple[tuple[float, ...], ...]:
    """Read scores; what is no number is left for the profile to refuse by its place."""
    return tuple(
        tuple(float(score) if is_number(score) else score for score in _list(row, f"scores {i}"))
        for i, row in enumerate(_list(rows, "scores"))
    )
