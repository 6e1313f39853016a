"""Patterns as data: what is refused, and that nothing is lost in text or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    Pattern,
    PatternError,
    TriShape,
    VerticalSlash,
)
from sparsefill.patterns import PATTERNS, from_dict, parse_pattern, to_dict
from tests.support.strategies import patterns


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AShape(sink=-1), "AShape.sink must be an integer of at least 0, got -1; pass"),
        (lambda: AShape(window=0), "AShape.window must be an integer of at least 1, got 0"),
        (lambda: TriShape(last=0), "TriShape.last must be an integer of at least 1, got 0"),
        (lambda: VerticalSlash(probe=0), "VerticalSlash.probe must be .* at least 1, got 0"),
        (lambda: VerticalSlash(slashes=-5), "VerticalSlash.slashes must be .* least 0, got -5"),
        (lambda: BlockTopK(blocks=0), "BlockTopK.blocks must be .* at least 1, got 0"),
        (lambda: BlockTopK(block=32), "BlockTopK.block must be .* at least 64, got 32"),
        (lambda: BlockTopK(block=100), "must be a multiple of 64, got 100; pass block=128"),
        (
            lambda: VerticalSlash(verticals=0, slashes=0, sink=0, window=0),
            "needs at least one line, got .*; pass window=1 or more",
        ),
        (lambda: AShape(sink=True), "AShape.sink must be an integer .*, got True"),
        (lambda: from_dict({"pattern": "a-shape", "sink": 1.0}), "must be an integer .* got 1.0"),
        (lambda: from_dict({"pattern": "a-shape", "sink": "4"}), "must be an integer .* got '4'"),
        (lambda: from_dict({"pattern": "a-shape", "sink": None}), "must be an integer .* got None"),
    ],
)
def test_impossible_parameters_are_refused(build: Callable[[], Pattern], message: str):
    with pytest.raises(PatternError, match=message):
        build()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "an object with a \"pattern\" key, got \\[\\]"),
        ("dense", "an object with a \"pattern\" key, got 'dense'"),
        ({"sink": 4}, "an object with a \"pattern\" key, got {'sink': 4}"),
        ({"pattern": "b-shape"}, "unknown pattern 'b-shape'; use one of dense, a-shape"),
        ({"pattern": ["dense"]}, "unknown pattern \\['dense'\\]; use one of dense"),
        ({"pattern": None}, "unknown pattern None"),
        ({"pattern": "dense", "sink": 4}, "dense has no parameter 'sink'; it takes none"),
        ({"pattern": "a-shape", "last": 1}, "no parameter 'last'; it takes sink, window"),
        ({"pattern": "a-shape", "name": "x"}, "no parameter 'name'"),
    ],
)
def test_data_that_is_no_pattern_is_refused(data: Any, message: str):
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
    ],
)
def test_text_is_read_as_people_type_it(text: str, pattern: Pattern):
    assert parse_pattern(text) == pattern


@given(pattern=patterns())
def test_json_and_text_lose_nothing(pattern: Pattern):
    data = to_dict(pattern)
    assert from_dict(json.loads(json.dumps(data))) == pattern
    fields = ",".join(f"{name}={value}" for name, value in data.items() if name != "pattern")
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
