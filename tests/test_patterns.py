"""Patterns as data: what is refused, and that nothing is lost in text or JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    FixedSlash,
    InfLLM,
    Interleaved,
    Pattern,
    PatternError,
    TriShape,
    VerticalSlash,
)
from sparsefill.patterns import PATTERNS, from_dict, parse_pattern, to_dict
from tests.support.strategies import interleaved, patterns

REFUSED: dict[str, tuple[Any, str]] = {  # what is wrong: the data, and what is said about it
    "negative": (
        {"pattern": "a-shape", "sink": -1},
        "AShape.sink must be .* 0, got -1; pass sink=0",
    ),
    "no-window": ({"pattern": "a-shape", "window": 0}, "AShape.window must be .* 1, got 0"),
    "offsets-from-1": (
        {"pattern": "fixed-slash", "offsets": [1, 64]},
        "ascending distances from 0",
    ),
    "offsets-twice": ({"pattern": "fixed-slash", "offsets": [0, 5, 5]}, "each once"),
    "offsets-down": ({"pattern": "fixed-slash", "offsets": [0, 9, 5]}, "ascending"),
    "offsets-empty": ({"pattern": "fixed-slash", "offsets": []}, "from 0 on"),
    "offsets-negative": ({"pattern": "fixed-slash", "offsets": [-64, 0]}, "distances from 0"),
    "count-huge": ({"pattern": "a-shape", "sink": 2**31}, "AShape.sink must be below 2.31"),
    "offsets-huge": ({"pattern": "fixed-slash", "offsets": [0, 2**31]}, "below 2.31"),
    "offsets-words": ({"pattern": "fixed-slash", "offsets": [0, "9"]}, "ascending distances"),
    "offsets-true": ({"pattern": "fixed-slash", "offsets": [0, True]}, "ascending distances"),
    "offsets-number": ({"pattern": "fixed-slash", "offsets": 0}, "ascending distances"),
    "no-last": ({"pattern": "tri-shape", "last": 0}, "TriShape.last must be .* 1, got 0"),
    "no-probe": ({"pattern": "vertical-slash", "probe": 0}, "probe must be .* 1, got 0"),
    "no-lines": (
        {"pattern": "vertical-slash", "verticals": 0, "slashes": 0, "sink": 0, "window": 0},
        "needs at least one line, got .*; pass window=1 or more",
    ),
    "no-blocks": ({"pattern": "block-topk", "blocks": 0}, "blocks must be .* 1, got 0"),
    "small-block": ({"pattern": "block-topk", "block": 32}, "block must be .* 64, got 32"),
    "no-even": ({"pattern": "interleaved", "even": 0}, "Interleaved.even must be .* 1, got 0"),
    "odd-negative": ({"pattern": "interleaved", "odd": -1}, "odd must be .* 0, got -1"),
    "no-representative": ({"pattern": "infllm", "representatives": 0}, "must be .* 1, got 0"),
    "no-query-scores": ({"pattern": "infllm", "every": 0}, "InfLLM.every must be .* 1, got 0"),
    "odd-queries": (
        {"pattern": "infllm", "queries": 500},
        "InfLLM.queries must be a multiple of 64, got 500; pass queries=512",
    ),
    "odd-block": (
        {"pattern": "block-topk", "block": 100},
        "multiple of 64, got 100; pass block=128",
    ),
    "boolean": ({"pattern": "a-shape", "sink": True}, "must be an integer .* got True"),
    "float": ({"pattern": "a-shape", "sink": 1.0}, "must be an integer .* got 1.0"),
    "text": ({"pattern": "a-shape", "sink": "4"}, "must be an integer .* got '4'"),
    "null": ({"pattern": "a-shape", "sink": None}, "must be an integer .* got None"),
    "list": ([], r'an object with a "pattern" key, got \[\]'),
    "name-alone": ("dense", "an object with a \"pattern\" key, got 'dense'"),
    "no-name": ({"sink": 4}, "an object with a \"pattern\" key, got {'sink': 4}"),
    "unknown-name": ({"pattern": "shape"}, "unknown pattern 'shape'; use one of dense, a-shape"),
    "name-in-list": ({"pattern": ["dense"]}, r"unknown pattern \['dense'\]; use one of dense"),
    "null-name": ({"pattern": None}, "unknown pattern None; use one of dense"),
    "extra": ({"pattern": "dense", "sink": 4}, "dense has no parameter 'sink'; it takes none"),
    "misplaced": ({"pattern": "a-shape", "last": 1}, "no parameter 'last'; it takes sink, window"),
    "class-field": ({"pattern": "a-shape", "name": "x"}, "no parameter 'name'; it takes sink"),
}


@pytest.mark.usefixtures("unchecked_types")  # some of the data is of other types on purpose
@pytest.mark.parametrize("wrong", REFUSED)
def test_data_that_is_no_pattern_is_refused(wrong: str):
    data, message = REFUSED[wrong]
    with pytest.raises(PatternError, match=message):
        from_dict(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown pattern ''; use one of dense"),
        ("shape", "unknown pattern 'shape'"),
        ("a-shape:sink", "expected field=integer in 'a-shape:sink', got 'sink'"),
        ("a-shape:sink=", "expected field=integer .* got 'sink='"),
        ("a-shape:sink=1.5", "expected field=integer .* got 'sink=1.5'"),
        ("a-shape:sink=--4", "expected field=integer .* got 'sink=--4'"),
        ("a-shape:sink=²", "expected field=integer .* got 'sink=²'"),
        ("a-shape:sink=-4", "AShape.sink must be an integer of at least 0, got -4"),
        ("a-shape:last=4", "a-shape has no parameter 'last'"),
        ("block-topk:block=100", "multiple of 64, got 100; pass block=128"),
    ],
)
def test_text_that_is_no_pattern_is_refused(text: str, message: str):
    with pytest.raises(PatternError, match=message):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("dense", Dense()),
        ("a-shape", AShape()),
        ("a-shape:", AShape()),
        (" tri-shape : last = 9 ,", TriShape(last=9)),
        ("vertical-slash:verticals=5,slashes=0", VerticalSlash(verticals=5, slashes=0)),
        ("block-topk:blocks=7,block=128", BlockTopK(blocks=7, block=128)),
        ("fixed-slash: offsets = 0", FixedSlash(offsets=(0,))),
        ("interleaved:even=2048,odd=6144", Interleaved(sink=1024, even=2048, odd=6144)),
        ("infllm:window=4096", InfLLM(sink=128, window=4096, blocks=16, block=128)),
        ("fixed-slash:offsets=0/64/900,sink=2", FixedSlash(offsets=(0, 64, 900), sink=2)),
    ],
)
def test_text_is_read_as_people_type_it(text: str, pattern: Pattern):
    assert parse_pattern(text) == pattern


@given(pattern=patterns() | interleaved())
def test_json_and_text_lose_nothing(pattern: Pattern):
    data = to_dict(pattern)
    assert from_dict(json.loads(json.dumps(data))) == pattern
    typed = {
        name: "/".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in data.items()
    }
    fields = ",".join(f"{name}={value}" for name, value in typed.items() if name != "pattern")
    assert parse_pattern(f"{pattern.name}:{fields}") == pattern


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_a_frozen_value_with_keywords_only(name: str):
    kind = PATTERNS[name]
    pattern = kind()
    assert pattern == kind()
    assert hash(pattern) == hash(kind())
    assert pattern.name == name
    with pytest.raises(TypeError, match="positional argument"):
        kind(1)  # type: ignore[call-arg]
    for field in dataclasses.fields(pattern):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(pattern, field.name, 1)
