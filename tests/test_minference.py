"""Configs of the original MInference: what is imported is written back, the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefill import AShape, BlockTopK, Dense, Pattern, ProfileError, TriShape, VerticalSlash
from sparsefill.architecture import Architecture
from sparsefill.minference import from_minference, shape_of, to_minference
from sparsefill.profile import NOT_SEARCHED, Profile

SHAPE = Architecture(layers=2, heads=3, kv_heads=1, head_dim=16, rope_base=1e6)
CONFIG: list[dict[str, list[Any]]] = [
    {
        "0": ["vertical_and_slash", 1000, 6096, 0.333493],
        "1": ["stream_llm", 100, 800, 0.96484375],
        "2": ["block_sparse", 8, 1, 0.5],
    },
    {
        "0": ["vertical_and_slash", 30, 800, 2345678],  # a count of errors
        "1": ["vertical_and_slash", 3500, 100, 0.0],
        "2": ["block_sparse", 1000, 6096, 1],
    },
]


def test_import():
    profile = from_minference(json.dumps(CONFIG), SHAPE, source="some/where/phi.json")
    assert profile.architecture == SHAPE
    blocks = BlockTopK(blocks=100, block=64, sink=0)
    assert profile.layers == (
        (VerticalSlash(verticals=1000, slashes=6096), AShape(sink=100, window=800), blocks),
        (
            VerticalSlash(verticals=30, slashes=800),
            VerticalSlash(verticals=3500, slashes=100),
            blocks,
        ),
    )
    assert profile.scores == ((0.333493, 0.96484375, 0.5), (2345678.0, 0.0, 1.0))
    assert profile.provenance["origin"] == NOT_SEARCHED
    assert "phi.json" in profile.provenance["source"]
    assert "where" not in profile.provenance["source"]


def test_round_trip_over_a_saved_profile():
    profile = from_minference(json.dumps(CONFIG), SHAPE)
    saved = Profile.from_json(profile.to_json())
    assert saved == profile
    text = to_minference(saved)
    assert json.loads(text) == CONFIG
    assert to_minference(from_minference(text, SHAPE)) == text
    assert len(text.splitlines()) == len(CONFIG)


counts = st.integers(1, 10**6)
scores = st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 2**53)
entries = st.tuples(
    st.sampled_from(["stream_llm", "vertical_and_slash", "block_sparse"]), counts, counts, scores
).map(list)


@given(st.data())
def test_any_config_round_trips(data: st.DataObject):
    layers, heads = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    shape = Architecture(layers=layers, heads=heads, kv_heads=1, head_dim=8)
    config = [{str(h): data.draw(entries) for h in range(heads)} for _ in range(layers)]
    text = json.dumps(config)
    assert shape_of(text) == (layers, heads)
    assert json.loads(to_minference(from_minference(text, shape))) == config


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | entries,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from("012") | st.text(), inner, max_size=4)
        ),
    )
)
def test_whatever_is_no_config_is_a_profile_error(data: Any):
    with pytest.raises(ProfileError):
        from_minference(json.dumps(data), SHAPE)


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    """Make a change that sets one place of a config."""

    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


HEAD = (1, "1")
BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "too-few-layers": (lambda data: data.pop(), "lists 1 layers, the model has 2"),
    "too-many-layers": (lambda data: data.append(data[0]), "lists 3 layers"),
    "no-layers": (lambda data: data.clear(), "must be a list of layers"),
    "layer-list": (put(1, value=[]), r"layer 1 must be an object of heads, got \[\]"),
    "layer-empty": (put(0, value={}), "layer 0 must be an object of heads"),
    "head-missing": (lambda data: data[1].pop("2"), r"layer 1 must list .* 0\.\.2, got no head 2"),
    "head-further": (put(1, "3", value=CONFIG[0]["0"]), "layer 1 .* got also a head '3'"),
    "head-negative": (put(1, "-1", value=CONFIG[0]["0"]), "also a head '-1'"),
    "head-named-twice": (put(1, "01", value=CONFIG[0]["0"]), "also a head '01'"),
    "entry-object": (put(*HEAD, value={}), r"layer 1, head 1 must be \[type, .* got {}"),
    "entry-short": (put(*HEAD, value=["stream_llm", 1, 2]), "layer 1, head 1 must be"),
    "entry-long": (lambda data: data[1]["1"].append(0), "layer 1, head 1 must be"),
    "type-unknown": (
        put(*HEAD, 0, value="flex_vertical_and_slash"),
        "layer 1, head 1 has the type 'flex_vertical_and_slash', which has no counterpart",
    ),
    "type-list": (put(*HEAD, 0, value=[]), "layer 1, head 1 has the type"),
    "count-negative": (put(*HEAD, 1, value=-1), "layer 1, head 1 must have two counts"),
    "count-float": (put(*HEAD, 2, value=0.9), "layer 1, head 1 must have two counts"),
    "count-true": (put(*HEAD, 1, value=True), "layer 1, head 1 must have two counts"),
    "count-pair": (put(*HEAD, 1, value=[0.9, 4096]), "layer 1, head 1 must have two counts"),
    "score-text": (put(*HEAD, 3, value="0.9"), "layer 1, head 1 must have a finite float"),
    "score-null": (put(*HEAD, 3, value=None), "layer 1, head 1 must have a finite float"),
    "score-huge": (put(*HEAD, 3, value=10**400), "layer 1, head 1 must have a finite float"),
    "score-beyond-floats": (put(*HEAD, 3, value=2**53 + 1), "head 1 must have a finite float"),
    "score-nan": (put(*HEAD, 3, value=float("nan")), "NaN is not a JSON number"),
    "no-window": (put(0, "1", 2, value=0), r"layer 0, head 1: AShape\.window must be"),
}


@pytest.mark.parametrize(("change", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_config_is_refused(change: Callable[[Any], Any], reason: str):
    data = json.loads(json.dumps(CONFIG))
    change(data)
    with pytest.raises(ProfileError, match=f"^phi.json.*(?:{reason})"):
        from_minference(json.dumps(data), SHAPE, source="phi.json")


@pytest.mark.parametrize("text", ["", "[", "{}", "null", '{"0": []}', "[[[", "[" * 100_000, "\0"])
def test_text_that_is_no_config_is_refused(text: str):
    for read in (lambda text: from_minference(text, SHAPE), shape_of):
        with pytest.raises(ProfileError, match="MInference config"):
            read(text)


def test_a_head_twice_is_refused():
    entry = '["stream_llm", 1, 2, 0.5]'
    with pytest.raises(ProfileError, match="the key '0' stands twice"):
        from_minference(f'[{{"0": {entry}, "0": {entry}}}]', SHAPE)


def test_another_model_is_refused():
    text = json.dumps(CONFIG)
    with pytest.raises(ProfileError, match="layer 0 must list the heads"):
        from_minference(text, replace(SHAPE, heads=2))
    with pytest.raises(ProfileError, match="lists 2 layers, the model has 3"):
        from_minference(text, replace(SHAPE, layers=3))


@pytest.mark.parametrize(
    "pattern",
    [
        Dense(),
        TriShape(),
        BlockTopK(),
        BlockTopK(blocks=50, sink=0),
        VerticalSlash(sink=16),
        VerticalSlash(probe=128),
    ],
    ids=repr,
)
def test_what_the_original_cannot_say_is_not_written(pattern: Pattern):
    profile = Profile.uniform(AShape(), SHAPE)
    layers = (profile[0], (AShape(), AShape(), pattern))
    with pytest.raises(ProfileError, match=r"layer 1, head 2 uses .* cannot say"):
        to_minference(replace(profile, layers=layers))


def test_a_profile_without_scores_is_written_with_zeros():
    profile = Profile.uniform(BlockTopK(blocks=100, sink=0), replace(SHAPE, layers=1, heads=1))
    assert json.loads(to_minference(profile)) == [{"0": ["block_sparse", 100, 1, 0.0]}]
