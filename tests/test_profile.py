"""Profiles: what is written is read back, and what is broken is refused with a reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    ProfileError,
    TriShape,
    VerticalSlash,
    profiles,
)
from sparsefill.architecture import Architecture
from sparsefill.atomic import write_atomically
from sparsefill.patterns import Pattern
from sparsefill.profile import (
    DEFAULT_PATTERN,
    NOT_SEARCHED,
    SEARCHED,
    Profile,
    default_profile,
    shipped_profiles,
)

SHAPE = Architecture(layers=2, heads=4, kv_heads=2, head_dim=16, rope_base=5e5)
MIXED: tuple[Pattern, ...] = (Dense(), AShape(sink=4, window=64), BlockTopK(blocks=8), Dense())
SCORES = ((0.0, 0.25, 1e-9, 3.0), (0.5, 2e6, 0.125, -1.0))
OTHERS: tuple[Pattern, ...] = (TriShape(), VerticalSlash(verticals=9), Dense(), AShape())


@pytest.fixture
def profile() -> Profile:
    provenance = {"seed": 3, "prompts": ["né à Paris"], "held_out": {"recall": [0.5, None]}}
    return Profile(architecture=SHAPE, layers=(MIXED, OTHERS), provenance=provenance, scores=SCORES)


def test_json_round_trip(profile: Profile):
    text = profile.to_json()
    assert Profile.from_json(text) == profile
    assert Profile.from_json(text).to_json() == text
    assert "né à Paris" in text


def test_json_lists_each_pattern_once_and_each_layer_on_its_line(profile: Profile):
    data = json.loads(profile.to_json())
    assert data["schema"] == 2
    assert data["architecture"] == vars(SHAPE)
    assert len(data["patterns"]) == 6
    assert data["layers"] == [[0, 1, 2, 0], [3, 4, 0, 5]]
    assert data["scores"] == [list(row) for row in SCORES]
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
    value = 1 if name == "kv_heads" else 8
    other = Architecture(**{**vars(SHAPE), name: value})
    with pytest.raises(ProfileError, match=rf"{name}={getattr(SHAPE, name)}, got {name}={value}"):
        profile.require(other)


def test_another_rope_base_is_refused_with_what_to_do(profile: Profile):
    with pytest.raises(ProfileError, match=r"rope_base=500000, got rope_base=1e\+06.*to null"):
        profile.require(replace(SHAPE, rope_base=1e6))


@pytest.mark.parametrize("base", [None, 5e5, 5e5 * (1 + 1e-8)], ids=["unknown", "same", "float32"])
def test_the_same_or_an_unknown_rope_base_fits(profile: Profile, base: float | None):
    other = replace(SHAPE, rope_base=base)
    profile.require(other)
    replace(profile, architecture=other).require(SHAPE)
    assert SHAPE.fits(other)
    assert other.fits(SHAPE)


@pytest.mark.parametrize(
    "value", [0, -1.0, float("nan"), float("inf"), 10**400, True, "1e6", [1e6]]
)
def test_a_rope_base_is_a_positive_number(value: Any, unchecked_types: None):
    with pytest.raises(ProfileError, match=r"architecture\.rope_base must be a positive number"):
        replace(SHAPE, rope_base=value)


@pytest.mark.parametrize("scores", [(), (SCORES[0],), (SCORES[0], SCORES[1][:3]), (*SCORES, ())])
def test_every_head_has_a_score_or_none(scores: tuple[tuple[float, ...], ...]):
    with pytest.raises(ProfileError, match=r"scores must have 2 rows of 4.* got rows of"):
        Profile(architecture=SHAPE, layers=(MIXED, OTHERS), scores=scores)


@pytest.mark.parametrize("score", [float("nan"), float("-inf"), True, "1", None])
def test_a_score_is_a_finite_number(score: Any, unchecked_types: None):
    scores = (SCORES[0], (0.5, score, 0.5, 0.5))
    with pytest.raises(ProfileError, match="score of layer 1, head 1 must be a finite number"):
        Profile(architecture=SHAPE, layers=(MIXED, OTHERS), scores=scores)


@pytest.mark.parametrize("bad", [float("nan"), {1, 2}, object()], ids=["nan", "set", "object"])
def test_provenance_that_json_cannot_hold_is_not_written(bad: Any, tmp_path: Path):
    profile = Profile(architecture=SHAPE, layers=(MIXED, OTHERS), provenance={"note": bad})
    with pytest.raises(ProfileError, match="provenance of a profile must be JSON"):
        profile.save(tmp_path / "own.json")
    assert not list(tmp_path.iterdir())


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
    "schema-1": (put("schema", value=1), "schema 1, expected 2; search or import it again"),
    "schema-text": (put("schema", value="2"), "schema '2', expected 2"),
    "schema-true": (put("schema", value=True), "schema True, expected 2"),
    "schema-float": (put("schema", value=2.0), r"schema 2\.0, expected 2"),
    "too-few-layers": (lambda data: data["layers"].pop(), "2 layers must list .* got 1"),
    "too-many-layers": (lambda data: data["layers"].append([0] * 4), "got 3"),
    "too-few-heads": (lambda data: data["layers"][1].pop(), "layer 1 must have 4 .* got 3"),
    "too-many-heads": (lambda data: data["layers"][1].append(0), "layer 1 must have 4 .* got 5"),
    "layers-object": (put("layers", value={}), "layers must be a list"),
    "layer-number": (put("layers", 0, value=3), "layer 0 must be a list, got 3"),
    "place-beyond": (put("layers", 1, 3, value=6), r"layer 1, head 3 must .* by 0\.\.5, got 6"),
    "place-negative": (put("layers", 0, 0, value=-1), r"by 0\.\.5, got -1"),
    "place-text": (put("layers", 0, 0, value="0"), "got '0'"),
    "place-true": (put("layers", 0, 0, value=True), "got True"),
    "place-float": (put("layers", 0, 0, value=1.0), r"got 1\.0"),
    "patterns-object": (put("patterns", value={}), "patterns must be a list"),
    "pattern-number": (put("patterns", 4, value=3), "pattern 4: .* must be an object .* got 3"),
    "pattern-unnamed": (put("patterns", 0, value={}), 'a "pattern" key'),
    "pattern-unknown": (put("patterns", 0, "pattern", value="spiral"), "unknown pattern 'spiral'"),
    "pattern-list": (put("patterns", 0, "pattern", value=[]), r"unknown pattern \[\]"),
    "parameter-unknown": (put("patterns", 1, "depth", value=1), "no parameter 'depth'"),
    "parameter-missing": (lambda data: data["patterns"][1].pop("sink"), "pattern 1: a-shape lacks"),
    "parameter-negative": (put("patterns", 1, "sink", value=-1), "sink must be .* got -1"),
    "parameter-text": (put("patterns", 1, "sink", value="4"), "sink must be .* got '4'"),
    "parameter-true": (put("patterns", 1, "sink", value=True), "sink must be .* got True"),
    "parameter-null": (put("patterns", 1, "window", value=None), "window must be .* got None"),
    "block-of-100": (put("patterns", 2, "block", value=100), "multiple of 64, got 100"),
    "architecture-list": (put("architecture", value=[2, 4, 2, 16]), "architecture must be an obj"),
    "architecture-short": (lambda data: data["architecture"].pop("heads"), "with .*'heads'.*, got"),
    "architecture-more": (put("architecture", "name", value="x"), "got .*'name'"),
    "rope-base-missing": (lambda data: data["architecture"].pop("rope_base"), "'rope_base'"),
    "rope-base-text": (put("architecture", "rope_base", value="1e6"), "rope_base must be .*'1e6'"),
    "rope-base-zero": (put("architecture", "rope_base", value=0), "rope_base must be .* got 0"),
    "scores-missing": (lambda data: data.pop("scores"), "must be an object with"),
    "scores-object": (put("scores", value={}), "scores must be a list"),
    "scores-short": (lambda data: data["scores"][1].pop(), r"2 rows of 4.*got rows of \[4, 3\]"),
    "score-row": (put("scores", 1, value=0.5), "scores 1 must be a list, got 0.5"),
    "score-null": (put("scores", 1, 2, value=None), "score of layer 1, head 2 .* got None"),
    "score-huge": (put("scores", 0, 1, value=10**400), "score of layer 0, head 1 must be a finite"),
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
        ('{"schema": NaN}', "NaN is not a JSON number"),
        ('{"schema": -Infinity}', "-Infinity is not a JSON number"),
        ('{"schema": 1e999}', "1e999 is not a JSON number"),
        ('{"schema": 2, "schema": 2}', "the key 'schema' stands twice"),
    ],
    ids=[
        "empty",
        "cut",
        "yaml",
        "list",
        "number",
        "null",
        "deep",
        "long",
        "nan",
        "infinity",
        "overflow",
        "twice",
    ],
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
        ("long" * 2_000, "no profile"),
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


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_is_the_default_of_its_architecture(name: str):
    profile = Profile.load(name)
    assert profile.architecture.rope_base is not None
    assert default_profile(profile.architecture) == profile
    assert profile.provenance["origin"] in (NOT_SEARCHED, SEARCHED)
    assert profile.to_json() == (Path(profiles.__path__[0]) / f"{name}.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "shape", "budget"),
    [
        ("llama-3-8b-262k", (32, 32, 8, 128), (1000, 6096)),
        ("llama-3-8b-1048k", (32, 32, 8, 128), (1000, 6096)),
        ("yi-9b-200k", (48, 32, 4, 128), (1000, 4096)),
        ("glm-4-9b-1m", (40, 32, 4, 128), (1000, 6096)),
        ("phi-3-mini-128k", (32, 32, 32, 96), (1000, 6096)),
        ("qwen2-7b-128k", (28, 28, 4, 128), (1000, 6096)),
    ],
)
def test_the_models_of_the_paper_have_a_published_budget(
    name: str, shape: tuple[int, ...], budget: tuple[int, int]
):
    profile = Profile.load(name)
    assert tuple(profile.architecture.shape.values()) == shape
    pattern = VerticalSlash(verticals=budget[0], slashes=budget[1])
    assert profile.layers == Profile.uniform(pattern, profile.architecture).layers
    assert profile.scores is None
    assert profile.provenance["origin"] == NOT_SEARCHED
    assert "2407.02490" in profile.provenance["source"]


def test_a_model_of_another_rope_base_gets_no_shipped_profile():
    """Llama 3.1 has the shape of Llama-3-8B-262K, and is another model."""
    shape = replace(Profile.load("llama-3-8b-262k").architecture, rope_base=5e5)
    assert default_profile(shape) == Profile.uniform(DEFAULT_PATTERN, shape)


def test_an_unknown_rope_base_gets_what_all_that_fit_agree_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    unknown = replace(SHAPE, rope_base=None)
    kinds = {"a": AShape(), "b": AShape(), "c": Dense()}
    for base, (name, pattern) in enumerate(kinds.items(), start=1):
        own = replace(SHAPE, rope_base=float(base)) if name != "b" else unknown
        Profile.uniform(pattern, own).save(tmp_path / f"{name}.json")
    load = Profile.load
    monkeypatch.setattr(Profile, "load", lambda name: load(tmp_path / f"{name}.json"))
    for names, base, expected in (
        ("ab", None, AShape()),
        ("ac", None, DEFAULT_PATTERN),
        ("bc", 3.0, Dense()),  # of the model's own base, before one of unknown base
        ("bc", 4.0, AShape()),
        ("c", 4.0, DEFAULT_PATTERN),
    ):
        monkeypatch.setattr("sparsefill.profile.shipped_profiles", lambda names=names: tuple(names))
        chosen = default_profile.__wrapped__(replace(SHAPE, rope_base=base))
        assert chosen[0][0] == expected, (names, base)
