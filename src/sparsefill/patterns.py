"""Which family of cells a head keeps, and with what parameters.

First of the three stages: a pattern is data (no tensors), `estimate` turns it into
a `SparseIndex` for one input, and `attend` computes exactly that index.

Budgets count keys, lines or blocks, as each field says. The defaults are those that
Jiang et al. 2024 (MInference 1.0, arXiv:2407.02490) or its code publish for LLaMA-3-8B.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, Union

from sparsefill.errors import PatternError
from sparsefill.tile import TILE

MOST = 2**31 - 1  # of any count: no index can say more


def _require(pattern: object, least: dict[str, int]) -> None:
    """Raise `PatternError` unless each named field is an int from its minimum to `MOST`."""
    for field, minimum in least.items():
        value = getattr(pattern, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise PatternError(
                f"{type(pattern).__name__}.{field} must be an integer of at least {minimum},"
                f" got {reprlib.repr(value)}; pass {field}={minimum} or more"
            )
        if value > MOST:
            raise PatternError(
                f"{type(pattern).__name__}.{field} must be below 2^31, got"
                f" {reprlib.repr(value)}; pass {field}={MOST} or less"
            )


def _require_tiles(pattern: object, *names: str) -> None:
    """Raise `PatternError` unless each named field is a whole number of tiles."""
    for field in names:
        if (value := getattr(pattern, field)) % TILE:
            raise PatternError(
                f"{type(pattern).__name__}.{field} must be a multiple of {TILE}, got {value};"
                f" pass {field}={-(-value // TILE) * TILE}"
            )


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Keep every causal cell.

    Example:
        >>> Dense().name
        'dense'
    """

    name: ClassVar[str] = "dense"


@dataclass(frozen=True, kw_only=True)
class AShape:
    """Keep the first keys and the nearest keys of every query.

    The defaults are the A-shape candidate of the paper's search space and its
    StreamingLLM baseline (Jiang et al. 2024, Table 7 and §4).

    Args:
        sink: how many first keys every query keeps.
        window: how many nearest keys (itself included) every query keeps.

    Example:
        >>> AShape(sink=4, window=256)
        AShape(sink=4, window=256)
    """

    name: ClassVar[str] = "a-shape"
    sink: int = 1024
    window: int = 4096

    def __post_init__(self) -> None:
        _require(self, {"sink": 0, "window": 1})


@dataclass(frozen=True, kw_only=True)
class TriShape:
    """Keep an A-shape, and every key for the last queries.

    The defaults are those of MInference's `tri_shape` (commit fb56c91): the last
    rows hold the question, so they read the whole prompt.

    Args:
        sink: how many first keys every query keeps.
        window: how many nearest keys (itself included) every query keeps.
        last: how many trailing queries keep every key; rounded up to row blocks.

    Example:
        >>> TriShape().last
        100
    """

    name: ClassVar[str] = "tri-shape"
    sink: int = 128
    window: int = 3968
    last: int = 100

    def __post_init__(self) -> None:
        _require(self, {"sink": 0, "window": 1, "last": 1})


@dataclass(frozen=True, kw_only=True)
class VerticalSlash:
    """Keep the key columns and the diagonals that the last queries attend to most.

    Algorithm 2 of Jiang et al. 2024. The default budget is what MInference gives to a
    head without a searched entry, (1000, 6096), and its forced lines are those of the
    MInference inference path: columns 0..29 and offsets 0..99. Forced lines count
    inside the budget.

    Args:
        verticals: how many key columns to keep.
        slashes: how many diagonals (query-key distances) to keep.
        probe: how many trailing queries the estimate looks at.
        sink: how many first columns are always kept.
        window: how many smallest distances are always kept.

    Example:
        >>> VerticalSlash(verticals=500, slashes=200).probe
        64
    """

    name: ClassVar[str] = "vertical-slash"
    verticals: int = 1000
    slashes: int = 6096
    probe: int = 64
    sink: int = 30
    window: int = 100

    def __post_init__(self) -> None:
        _require(self, {"verticals": 0, "slashes": 0, "probe": 1, "sink": 0, "window": 0})
        if self.verticals + self.slashes + self.sink + self.window == 0:
            raise PatternError(
                "VerticalSlash needs at least one line, got verticals=0, slashes=0, sink=0,"
                " window=0; pass window=1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class FixedSlash:
    """Keep given diagonals, and the key columns that the last queries attend to most.

    Which distances a head attends to hardly changes with the prompt, which keys does: the
    diagonals of a vertical-slash head may be found once, offline (`sparsefill search
    --slashes fixed`).

    Args:
        offsets: distances to keep, ascending from 0 on.
        verticals: how many key columns to keep.
        probe: how many trailing queries the estimate looks at.
        sink: how many first columns are always kept.

    Example:
        >>> FixedSlash(offsets=(0, 64, 900), verticals=500).probe
        64
    """

    name: ClassVar[str] = "fixed-slash"
    offsets: tuple[int, ...] = (0, 64)
    verticals: int = 1000
    probe: int = 64
    sink: int = 30

    def __post_init__(self) -> None:
        _require(self, {"verticals": 0, "probe": 1, "sink": 0})
        good = isinstance(self.offsets, tuple) and all(
            type(offset) is int and 0 <= offset <= MOST for offset in self.offsets
        )
        if not good or list(self.offsets) != sorted({0, *self.offsets}):
            raise PatternError(
                "FixedSlash.offsets must be ascending distances from 0 on, each once and below"
                f" 2^31, got {reprlib.repr(self.offsets)}; pass offsets=(0, 64) or more"
            )


@dataclass(frozen=True, kw_only=True)
class BlockTopK:
    """Keep, for each block of queries, the key blocks with the best mean-pooled score.

    Algorithm 3 of Jiang et al. 2024 (its "block-sparse"), with the paper's 100 blocks
    of 64 keys. Unlike the paper, the blocks that hold the first keys and the nearest
    keys are always kept, inside the budget: without them a mean-pooled choice needs
    about twice the density for the same recall on the models measured so far.

    Args:
        blocks: how many key blocks a block of queries keeps.
        block: keys (and queries) per block; a multiple of 64.
        sink: how many first keys every query keeps; rounded up to blocks.
        window: how many nearest keys every query keeps; rounded up to blocks.

    Example:
        >>> BlockTopK(blocks=16).block
        64
    """

    name: ClassVar[str] = "block-topk"
    blocks: int = 100
    block: int = TILE
    sink: int = 1
    window: int = 1

    def __post_init__(self) -> None:
        _require(self, {"blocks": 1, "block": TILE, "sink": 0, "window": 1})
        _require_tiles(self, "block")


@dataclass(frozen=True, kw_only=True)
class Interleaved:
    """Keep the first keys, and even and odd distances up to a bound of their own each.

    Two baselines of Jiang et al. 2024 (Table 3): StreamingLLM with a dilated window, every
    second distance below 8192 (the defaults), and with a strided one,
    `Interleaved(even=2048, odd=6144)`: every distance below 2048, every second one below 6144.
    The dilated window of the original code holds the odd distances, so that its queries past
    the first keys never see themselves; this one holds the even ones, 0 among them.

    Queries and keys are split by the parity of their positions and attended to in four parts,
    each an A-shape: parity is exact, and the bounds are rounded up to tiles of 64 keys of one
    parity.

    Args:
        sink: how many first keys every query keeps.
        even: distances below which a query keeps the even ones (itself included).
        odd: distances below which it keeps the odd ones.

    Example:
        >>> Interleaved(sink=4, even=512).odd
        0
    """

    name: ClassVar[str] = "interleaved"
    sink: int = 1024
    even: int = 8192
    odd: int = 0

    def __post_init__(self) -> None:
        _require(self, {"sink": 0, "even": 1, "odd": 0})


@dataclass(frozen=True, kw_only=True)
class InfLLM:
    """Keep the first keys, the nearest keys, and older blocks that their best keys speak for.

    Xiao et al. 2024 (arXiv:2402.04617), with the budget that Jiang et al. 2024 give this
    baseline. A key's score is the attention that it receives from the queries of the window
    after it; the mean of a block's best keys represents it; a block of queries keeps the
    blocks whose representatives match its mean query best, summed over all query heads of the
    layer that have this pattern: they share one choice. Unlike in InfLLM's own code, keys keep
    their positions: nothing is rotated again to a common distance.

    Queries that are not at hand, those before a chunk, score nothing: older keys are scored by
    the first `window` queries of the chunk.

    Args:
        sink: how many first keys every query keeps; blocks are counted from there on.
        window: how many nearest keys (itself included) every query keeps.
        blocks: how many older key blocks a block of queries keeps.
        block: keys per block; a multiple of 64.
        representatives: how many best keys represent a block.
        queries: queries that choose together; a multiple of 64.
        every: one query in so many scores keys, 1 for all of them.

    Example:
        >>> InfLLM(window=4096).blocks
        16
    """

    name: ClassVar[str] = "infllm"
    sink: int = 128
    window: int = 8192
    blocks: int = 16
    block: int = 128
    representatives: int = 4
    queries: int = 512
    every: int = 16

    def __post_init__(self) -> None:
        counts = {"sink": 0, "window": 1, "blocks": 1, "representatives": 1, "every": 1}
        _require(self, {**counts, "block": TILE, "queries": TILE})
        _require_tiles(self, "block", "queries")


Pattern: TypeAlias = Union[
    Dense, AShape, TriShape, VerticalSlash, FixedSlash, BlockTopK, Interleaved, InfLLM
]

PATTERNS: dict[str, type[Pattern]] = {
    kind.name: kind
    for kind in (
        Dense,
        AShape,
        TriShape,
        VerticalSlash,
        FixedSlash,
        BlockTopK,
        Interleaved,
        InfLLM,
    )
}


def to_dict(pattern: Pattern) -> dict[str, Any]:
    """Turn a pattern into plain data that `from_dict` reads back.

    Example:
        >>> to_dict(AShape(sink=4, window=256))
        {'pattern': 'a-shape', 'sink': 4, 'window': 256}
    """
    return {"pattern": pattern.name, **dataclasses.asdict(pattern)}


def from_dict(data: dict[str, Any]) -> Pattern:
    """Build the pattern that `to_dict` described, checking every field.

    Example:
        >>> from_dict({"pattern": "dense"})
        Dense()
    """
    if not isinstance(data, dict) or "pattern" not in data:
        shown = reprlib.repr(data)
        raise PatternError(f'a pattern must be an object with a "pattern" key, got {shown}')
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        for key, value in data.items()
        if key != "pattern"
    }
    kind = PATTERNS.get(data["pattern"]) if isinstance(data["pattern"], str) else None
    if kind is None:
        raise PatternError(
            f"unknown pattern {reprlib.repr(data['pattern'])}; use one of {', '.join(PATTERNS)}"
        )
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(fields) - known):
        raise PatternError(
            f"{kind.name} has no parameter {', '.join(map(repr, unknown))};"
            f" it takes {', '.join(sorted(known)) or 'none'}"
        )
    return kind(**fields)


def parse_pattern(text: str) -> Pattern:
    """Read a pattern as people type it: `name` or `name:field=value,field=value`.

    A list of integers is written with slashes.

    Example:
        >>> parse_pattern("a-shape:sink=4,window=256")
        AShape(sink=4, window=256)
        >>> parse_pattern("fixed-slash:offsets=0/64").offsets
        (0, 64)
    """
    name, _, rest = text.partition(":")
    data: dict[str, Any] = {"pattern": name.strip()}
    lists = _list_fields(name.strip())
    for item in filter(None, (part.strip() for part in rest.split(","))):
        field, equals, value = item.partition("=")
        if not equals or not re.fullmatch(r"-?[0-9]+(/[0-9]+)*", value.strip()):
            raise PatternError(f"expected field=integer in {text!r}, got {item!r}")
        numbers = [int(number) for number in value.split("/")]
        listed = len(numbers) > 1 or field.strip() in lists
        data[field.strip()] = numbers if listed else numbers[0]
    return from_dict(data)


def _list_fields(name: str) -> set[str]:
    """Name the parameters of a pattern that are lists, as their defaults are."""
    fields = dataclasses.fields(PATTERNS[name]) if name in PATTERNS else ()
    return {field.name for field in fields if isinstance(field.default, tuple)}
