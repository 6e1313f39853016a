"""Profiles: what is written is read back, and what is broken is refused with a reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsefill import AShape, BlockTopK, Dense, ProfileError, TriShape, VerticalSlash
from sparsefill.atomic import write_atomically
from sparsefill.patterns import Pattern
from sparsefill.profile import (
    DEFAULT_PATTERN,
    Architecture,
    Profile,
    default_profile,
    shipped_profiles,
)

SHAPE = Architecture(layers=2, heads=4, kv_heads=2, head_dim=16)
MIXED: tuple[Pattern, ...] = (Dense(), AShape(sink=4, window=64), BlockTopK(blocks=8), Dense())
OTHERS: tuple[Pattern, ...] = (TriShape(), VerticalSlash(verticals=9), Dense(), AShape())


@pytest.fixture
def profile() -> Profile:
    provenance = {"seed": 3, "prompts": ["né à Paris"], "scores": {"recall": [0.5, None]}}
    return Profile(architecture=SHAPE, layers=(MIXED, OTHERS), provenance=provenance)


def test_json_round_trip(profile: Profile):
    text = profile.to_json()
    assert Profile.from_json(text) == profile
    assert Profile.from_json(text).to_json() == text
    assert "né à Paris" in text


def test_json_lists_each_pattern_once_and_each_layer_on_its_line(profile: Profile):
    data = json.loads(profile.to_json())
    assert data["schema"] == 1
    assert data["architecture"] == {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16}
    assert len(data["patterns"]) == 6
    assert data["layers"] == [[0, 1, 2, 0], [3, 4, 0, 5]]
    assert "\n  [0, 1, 2, 0],\n  [3, 4, 0, 5]\n" in profile.to_json()


def test_file_round_trip(profile: Profile, tmp_path: Path):
    path = tmp_path / "new" / "folder" / "own.json"
    profile.save(path)
    assert Profile.load(path) == profile
    assert Profile.load(str(path)) == profile
    assert [file.name for file in path.parent.iterdir()] == ["own.json"]


def test_layers_are_read_by_number(profile: Profile):
    assert profile[0] == MIXED
    assert profile[1] == OTHERS


def test_uniform():
    profile = Profile.uniform(AShape(sink=1), SHAPE)
    assert profile.layers == ((AShape(sink=1),) * 4,) * 2
    assert profile.architecture == SHAPE
    assert Profile.from_json(profile.to_json()) == profile


def test_equal_profiles_hash_alike(profile: Profile):
    assert hash(Profile.from_json(profile.to_json())) == hash(profile)


@pytest.mark.parametrize("name", ["layers", "heads", "kv_heads", "head_dim"])
def test_require_names_what_differs(profile: Profile, name: str):
    profile.require(SHAPE)
    other = Architecture(**{**vars(SHAPE), name: 9})
    with pytest.raises(ProfileError, match=rf"{name}={getattr(SHAPE, name)}, got {name}=9"):
        profile.require(other)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", None])
@pytest.mark.parametrize("name", ["layers", "heads", "kv_heads", "head_dim"])
def test_architecture_holds_positive_integers(name: str, value: Any, unchecked_types: None):
    with pytest.raises(ProfileError, match=rf"architecture\.{name} must be a positive integer"):
        Architecture(**{**vars(SHAPE), name: value})


@pytest.mark.parametrize("layers", [(), (MIXED,), (MIXED,) * 3], ids=len)
def test_every_layer_is_listed(layers: tuple[tuple[Pattern, ...], ...]):
    with pytest.raises(ProfileError, match=f"2 layers must list .* got {len(layers)}"):
        Profile(architecture=SHAPE, layers=layers)


@pytest.mark.parametrize("layer", [(), MIXED[:3], (*MIXED, Dense())], ids=len)
def test_every_head_is_listed(layer: tuple[Pattern, ...]):
    with pytest.raises(ProfileError, match=f"layer 1 must have 4 patterns.*got {len(layer)}"):
        Profile(architecture=SHAPE, layers=(MIXED, layer))


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    """Make a change that sets one place of a profile's JSON."""

    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "missing-key": (lambda data: data.pop("patterns"), "must be an object with"),
    "further-key": (put("extra", value=1), "must be an object with"),
    "schema-2": (put("schema", value=2), "schema 2, expected 1"),
    "schema-text": (put("schema", value="1"), "schema '1', expected 1"),
    "schema-true": (put("schema", value=True), "schema True, expected 1"),
    "too-few-layers": (lambda data: data["layers"].pop(), "2 layers must list .* got 1"),
    "too-many-layers": (lambda data: data["layers"].append([0] * 4), "got 3"),
    "too-few-heads": (lambda data: data["layers"][1].pop(), "layer 1 must have 4 .* got 3"),
    "too-many-heads": (lambda data: data["layers"][1].append(0), "layer 1 must have 4 .* got 5"),
    "layers-object": (put("layers", value={}), "layers must be a list"),
    "layer-number": (put("layers", 0, value=3), "a layer must be a list, got 3"),
    "place-beyond": (put("layers", 0, 0, value=6), r"by 0\.\.5, got 6"),
    "place-negative": (put("layers", 0, 0, value=-1), r"by 0\.\.5, got -1"),
    "place-text": (put("layers", 0, 0, value="0"), "got '0'"),
    "place-true": (put("layers", 0, 0, value=True), "got True"),
    "place-float": (put("layers", 0, 0, value=1.0), r"got 1\.0"),
    "patterns-object": (put("patterns", value={}), "patterns must be a list"),
    "pattern-number": (put("patterns", 0, value=3), "must be an object .* got 3"),
    "pattern-unnamed": (put("patterns", 0, value={}), 'a "pattern" key'),
    "pattern-unknown": (put("patterns", 0, "pattern", value="spiral"), "unknown pattern 'spiral'"),
    "pattern-list": (put("patterns", 0, "pattern", value=[]), r"unknown pattern \[\]"),
    "parameter-unknown": (put("patterns", 1, "depth", value=1), "no parameter 'depth'"),
    "parameter-negative": (put("patterns", 1, "sink", value=-1), "sink must be .* got -1"),
    "parameter-text": (put("patterns", 1, "sink", value="4"), "sink must be .* got '4'"),
    "parameter-true": (put("patterns", 1, "sink", value=True), "sink must be .* got True"),
    "parameter-null": (put("patterns", 1, "window", value=None), "window must be .* got None"),
    "block-of-100": (put("patterns", 2, "block", value=100), "multiple of 64, got 100"),
    "architecture-list": (put("architecture", value=[2, 4, 2, 16]), "architecture|mapping"),
    "architecture-short": (lambda data: data["architecture"].pop("heads"), "heads"),
    "architecture-more": (put("architecture", "name", value="x"), "name"),
    "architecture-text": (put("architecture", "heads", value="4"), "positive integer, got '4'"),
    "provenance-list": (put("provenance", value=[]), "provenance"),
}


@pytest.mark.parametrize(("change", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_profile_is_refused(
    profile: Profile, change: Callable[[Any], Any], reason: str, unchecked_types: None
):
    data = json.loads(profile.to_json())
    change(data)
    with pytest.raises(ProfileError, match=rf"^own\.json .*(?:{reason})"):
        Profile.from_json(json.dumps(data), source="own.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("layers: 2", "not valid JSON"),
        ("[]", "got list"),
        ("3", "got int"),
        ("null", "got NoneType"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5_000, "not valid JSON"),  # longer than Python turns into an integer
    ],
    ids=["empty", "cut", "yaml", "list", "number", "null", "deep", "long"],
)
def test_text_that_is_no_profile_is_refused(text: str, reason: str):
    with pytest.raises(ProfileError, match=reason):
        Profile.from_json(text)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path, profile: Profile):
    binary, text = tmp_path / "binary.json", tmp_path / "text.json"
    binary.write_bytes(b"\x80\x81\xff" * 99)
    text.write_text("no JSON", "utf-8")
    for path, reason in (
        (binary, "cannot read profile"),
        (text, r"text\.json is not valid JSON"),
        (tmp_path, "not a file"),
        (tmp_path / "missing.json", "not a file, and not one of the shipped"),
        ("no-such-profile", "no profile 'no-such-profile'"),
        ("", "no profile ''"),
        ("bad\0name", "no profile"),
    ):
        with pytest.raises(ProfileError, match=reason):
            Profile.load(path)


def test_failing_write_leaves_the_old_file(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "own.json"
    profile.save(path)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Profile.uniform(Dense(), SHAPE).save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "own.json"
    path.write_text("old", "utf-8")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half a pair: \ud800")
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_saved_file_can_be_read_by_others(profile: Profile, tmp_path: Path):
    """A scratch file is private; what is saved gets the rights of any new file."""
    usual = tmp_path / "usual"
    usual.touch()
    profile.save(tmp_path / "own.json")
    assert (tmp_path / "own.json").stat().st_mode == usual.stat().st_mode


def test_saving_replaces(profile: Profile, tmp_path: Path):
    path = tmp_path / "own.json"
    profile.save(path)
    Profile.uniform(Dense(), SHAPE).save(path)
    assert Profile.load(path) == Profile.uniform(Dense(), SHAPE)


def test_default_profile_fits_any_architecture():
    assert default_profile(SHAPE) == Profile.uniform(DEFAULT_PATTERN, SHAPE)


def test_shipped_profiles_are_valid():
    for name in shipped_profiles():
        assert default_profile(Profile.load(name).architecture) is not None
