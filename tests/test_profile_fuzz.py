"""Profiles that something has damaged: always `ProfileError`, never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsefill import AShape, BlockTopK, Dense, ProfileError, VerticalSlash
from sparsefill.architecture import Architecture
from sparsefill.profile import Profile

SHAPE = Architecture(layers=2, heads=2, kv_heads=1, head_dim=16, rope_base=1e4)
PROFILE = Profile(
    architecture=SHAPE,
    layers=((AShape(), VerticalSlash()), (BlockTopK(), Dense())),
    provenance={"seed": 0, "prompts": [{"tokens": 30_000}]},
    scores=((0.5, 0.25), (1.0, 0.0)),
)
TEXT = PROFILE.to_json()
KEYS = sorted({"schema", "layers", "scores", "pattern", "sink", "heads", "extra", "window"})

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0, 2, 64])
    | st.floats()
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(autouse=True, scope="module")
def _unchecked_types() -> Any:
    """Let wrong types through to our own checks, as outside of pytest."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def read(text: str) -> Profile | None:
    """Read what may be a profile: a whole one, or `ProfileError`."""
    try:
        profile = Profile.from_json(text)
    except ProfileError as error:
        reason = str(error)
    else:
        assert Profile.from_json(profile.to_json()) == profile
        return profile
    assert reason.startswith("profile ")
    assert len(reason) < 1_000
    return None


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the path of everything inside of parsed JSON."""
    inside = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in inside:
        found.append((*path, key))
        if isinstance(value, (dict, list)):
            found += places(value, (*path, key))
    return found


PLACES = places(json.loads(TEXT))


@given(st.sampled_from(PLACES), anything, st.sampled_from(["put", "drop", "add", "double"]))
def test_one_place_changed(path: tuple[Any, ...], value: Any, how: str):
    data: Any = json.loads(TEXT)
    holder = data
    for step in path[:-1]:
        holder = holder[step]
    if how == "put":
        holder[path[-1]] = value
    elif how == "drop":
        del holder[path[-1]]
    elif isinstance(holder, list):
        holder.append(holder[path[-1]] if how == "double" else value)
    else:
        holder[f"{path[-1]}2"] = value
    profile = read(json.dumps(data))
    assert profile is None or how != "drop" or path[0] == "provenance"


@given(st.integers(0, len(TEXT) - 3))
def test_cut(end: int):
    assert read(TEXT[:end]) is None


@given(st.integers(0, len(TEXT) - 1), st.characters(), st.booleans())
def test_one_character_changed(place: int, character: str, instead: bool):
    read(TEXT[:place] + character + TEXT[place + instead :])


@given(anything)
def test_something_else(data: Any):
    assert read(json.dumps(data)) is None


@given(data=st.binary(max_size=200), cut=st.integers(0, len(TEXT)))
def test_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int):
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(TEXT.encode()[:cut] + data + TEXT.encode()[cut:])
    with suppress(ProfileError):
        Profile.load(path)


def nested(depth: int, *, where: str) -> str:
    """Put lists into lists, somewhere in the profile."""
    data = json.loads(TEXT)
    data[where] = "HERE"
    return json.dumps(data).replace('"HERE"', "[" * depth + "]" * depth)


@pytest.mark.parametrize("where", ["schema", "architecture", "patterns", "layers", "scores"])
@pytest.mark.parametrize("depth", [1, 50, 500, 800, 900, 950, 100_000])
def test_nesting(where: str, depth: int):
    assert read(nested(depth, where=where)) is None


def test_a_pattern_nested_deeply():
    data: Any = json.loads(TEXT)
    changes: list[Any] = [{"pattern": "HERE"}, {"pattern": "dense", "HERE": 1}, "HERE"]
    for change in changes:
        data["patterns"][0] = change
        for depth in (50, 800, 900):
            lists = "[" * depth + "]" * depth
            text = json.dumps(data).replace('"HERE": 1', f'"a": {lists}')
            assert read(text.replace('"HERE"', lists)) is None


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"layers": 3}, "layers=2, got layers=3"),
    "heads": ({"heads": 4}, "heads=2, got heads=4"),
    "kv-heads": ({"kv_heads": 2}, "kv_heads=1, got kv_heads=2"),
    "head-dim": ({"head_dim": 64}, "head_dim=16, got head_dim=64"),
    "rope-base": ({"rope_base": 1e6}, r"rope_base=10000, got rope_base=1e\+06"),
}


@pytest.mark.parametrize(("changed", "why"), OTHER.values(), ids=OTHER)
def test_another_architecture(changed: dict[str, Any], why: str):
    with pytest.raises(ProfileError, match=why):
        PROFILE.require(replace(SHAPE, **changed))


FILES: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "empty": Path.touch,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "utf-16": lambda path: path.write_text(TEXT, "utf-16"),
    "dangling-link": lambda path: path.symlink_to("nowhere"),
    "link-to-itself": lambda path: path.symlink_to(path),
    "null-bytes": lambda path: path.write_bytes(b"\0" * 999),
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_no_such_profile(make: Callable[[Path], Any], tmp_path: Path):
    make(tmp_path / "own.json")
    with pytest.raises(ProfileError, match=r"own\.json"):
        Profile.load(tmp_path / "own.json")
