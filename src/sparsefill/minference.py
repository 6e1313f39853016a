"""Read and write the per-head configs of the original MInference, so that users keep theirs.

Such a file is a list over layers of `{"head": [type, first, second, score]}`, one entry per
query head. The two numbers mean what the type says (commit fb56c91 of microsoft/MInference):

=====================  =========================  ==========================================
type                   numbers                    here
=====================  =========================  ==========================================
`stream_llm`           first keys, nearest keys   `AShape(sink, window)`
`vertical_and_slash`   verticals, slashes         `VerticalSlash(verticals, slashes)`
`block_sparse`         none: not read, always     `BlockTopK(blocks=100, sink=0)`
                       100 blocks of 64 keys
=====================  =========================  ==========================================

A profile keeps the scores and, in its provenance, the numbers that are not read, so that an
imported config is written back as it was.
"""

from __future__ import annotations

import json
import reprlib
from pathlib import PurePath
from typing import Any

from sparsefill.architecture import Architecture, is_number
from sparsefill.errors import PatternError, ProfileError
from sparsefill.patterns import AShape, BlockTopK, Pattern, VerticalSlash
from sparsefill.profile import NOT_SEARCHED, Profile
from sparsefill.strict_json import parse_json

TYPES = ("stream_llm", "vertical_and_slash", "block_sparse")
BLOCKS = BlockTopK(blocks=100, sink=0)  # the original forces no block; ours keeps the nearest
UNREAD = "minference_unread"  # provenance: "layer/head" -> the numbers of a `block_sparse`


def from_minference(
    text: str, architecture: Architecture, *, source: str = "MInference config"
) -> Profile:
    """Turn a config of the original into a profile.

    Args:
        text: the config.
        architecture: of the model that it was searched on: the config does not say.
        source: what the text is called in errors and in the provenance.

    Raises:
        ProfileError: the text is no such config, or is for another architecture; says at
            which layer and head.

    Example:
        >>> shape = Architecture(layers=1, heads=1, kv_heads=1, head_dim=64)
        >>> from_minference('[{"0": ["stream_llm", 100, 800, 0.97]}]', shape)[0]
        (AShape(sink=100, window=800),)
    """
    layers = _layers(text, source)
    if len(layers) != architecture.layers:
        raise ProfileError(
            f"{source} lists {len(layers)} layers, the model has {architecture.layers};"
            " pass the config of this model"
        )
    unread: dict[str, list[int]] = {}
    patterns: list[tuple[Pattern, ...]] = []
    scores: list[tuple[float, ...]] = []
    for number, layer in enumerate(layers):
        _require_heads(layer, architecture.heads, f"{source}, layer {number}")
        row = []
        for head in range(architecture.heads):
            kind, numbers, score = _entry(
                layer[str(head)], f"{source}, layer {number}, head {head}"
            )
            row.append((_pattern(kind, numbers), score))
            if kind == "block_sparse":
                unread[f"{number}/{head}"] = numbers
        patterns.append(tuple(pattern for pattern, _ in row))
        scores.append(tuple(score for _, score in row))
    return Profile(
        architecture=architecture,
        layers=tuple(patterns),
        scores=tuple(scores),
        provenance={
            "origin": NOT_SEARCHED,
            "source": f"imported from the MInference config {PurePath(source).name}",
            **({UNREAD: unread} if unread else {}),
        },
    )


def to_minference(profile: Profile) -> str:
    """Write a profile as a config of the original; heads without a score get 0.

    Raises:
        ProfileError: the original has no such pattern; says at which layer and head.

    Example:
        >>> shape = Architecture(layers=1, heads=1, kv_heads=1, head_dim=64)
        >>> print(to_minference(Profile.uniform(VerticalSlash(), shape)), end="")
        [{"0": ["vertical_and_slash", 1000, 6096, 0.0]}]
    """
    lines = []
    for number, patterns in enumerate(profile.layers):
        layer = {}
        for head, pattern in enumerate(patterns):
            score = 0.0 if profile.scores is None else profile.scores[number][head]
            numbers = _unread(profile, f"{number}/{head}")
            layer[str(head)] = [*_words(pattern, numbers, f"layer {number}, head {head}"), score]
        lines.append(json.dumps(layer))
    return "[" + ",\n ".join(lines) + "]\n"


def shape_of(text: str, *, source: str = "MInference config") -> tuple[int, int]:
    """Count the layers of a config, and the heads of its first layer.

    Example:
        >>> shape_of('[{"0": ["stream_llm", 100, 800, 0.97]}]')
        (1, 1)
    """
    layers = _layers(text, source)
    return len(layers), len(layers[0])


def _layers(text: str, source: str) -> list[dict[str, Any]]:
    data = parse_json(text, source=source)
    if not isinstance(data, list) or not data:
        raise ProfileError(
            f"{source} must be a list of layers, as the original MInference writes it,"
            f" got {reprlib.repr(data)}"
        )
    for number, layer in enumerate(data):
        if not isinstance(layer, dict) or not layer:
            raise ProfileError(
                f"{source}, layer {number} must be an object of heads, got {reprlib.repr(layer)}"
            )
    return data


def _require_heads(layer: dict[str, Any], heads: int, where: str) -> None:
    """Raise unless a layer lists every head and no other."""
    expected = [str(head) for head in range(heads)]
    missing = [head for head in expected if head not in layer]
    further = [head for head in layer if head not in expected]
    if missing or further:
        got = f"no head {missing[0]}" if missing else f"also a head {reprlib.repr(further[0])}"
        raise ProfileError(
            f"{where} must list the heads 0..{heads - 1}, got {got}; pass the config of this model"
        )


def _entry(entry: Any, where: str) -> tuple[str, list[int], float]:
    """Check the entry of a head: its type, two numbers, a score."""
    shown = reprlib.repr(entry)
    if not isinstance(entry, list) or len(entry) != 4:
        raise ProfileError(f"{where} must be [type, number, number, score], got {shown}")
    kind, first, second, score = entry
    if not isinstance(kind, str) or kind not in TYPES:
        raise ProfileError(
            f"{where} has the type {reprlib.repr(kind)}, which has no counterpart here;"
            f" import configs of {', '.join(TYPES)}"
        )
    for number in (first, second):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ProfileError(f"{where} must have two counts of at least 0, got {shown}")
    if not is_number(score) or float(score) != score:  # a count beyond what a float holds
        raise ProfileError(f"{where} must have a finite float as its score, got {shown}")
    try:
        _pattern(kind, [first, second])
    except PatternError as error:
        raise ProfileError(f"{where}: {error}") from error
    return kind, [first, second], float(score)


def _pattern(kind: str, numbers: list[int]) -> Pattern:
    """Build the pattern of an entry."""
    first, second = numbers
    if kind == "stream_llm":
        return AShape(sink=first, window=second)
    if kind == "vertical_and_slash":
        return VerticalSlash(verticals=first, slashes=second)
    return BLOCKS


def _words(pattern: Pattern, unread: list[int], where: str) -> list[Any]:
    """Write a pattern as the first three fields of an entry."""
    if isinstance(pattern, AShape):
        return ["stream_llm", pattern.sink, pattern.window]
    if pattern == BLOCKS:
        return ["block_sparse", *unread]
    if isinstance(pattern, VerticalSlash):
        numbers = [pattern.verticals, pattern.slashes]
        if pattern == _pattern("vertical_and_slash", numbers):
            return ["vertical_and_slash", *numbers]
    raise ProfileError(
        f"{where} uses {pattern}, which a MInference config cannot say: it knows AShape,"
        f" VerticalSlash with the default probe, sink and window, and {BLOCKS}"
    )


def _unread(profile: Profile, place: str) -> list[int]:
    """Return the unread numbers that a `block_sparse` head came with, or its blocks."""
    kept = profile.provenance.get(UNREAD)
    numbers = kept.get(place) if isinstance(kept, dict) else None
    if isinstance(numbers, list) and len(numbers) == 2 and {*map(type, numbers)} == {int}:
        return numbers
    return [BLOCKS.blocks, 1]
