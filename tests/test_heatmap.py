"""Heat maps of profiles: every head shows, in its family's colour, the same every time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.image import imread

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    InfLLM,
    InputError,
    Interleaved,
    Pattern,
    TriShape,
    VerticalSlash,
)
from sparsefill.architecture import Architecture
from sparsefill.draw import COLOURS
from sparsefill.heatmap import (
    FAINTEST,
    LETTERS,
    budget,
    describe,
    draw_heatmap,
    draw_letters,
    shades,
    short,
    summarise,
)
from sparsefill.patterns import PATTERNS
from sparsefill.profile import NOT_SEARCHED, Profile
from tests.support.tiny import assert_refused, run_cli

SHAPE = Architecture(layers=2, heads=5, kv_heads=1, head_dim=16)
SMALL, LARGE = AShape(sink=0, window=10), AShape(sink=100, window=900)
MIXED: tuple[Pattern, ...] = (Dense(), SMALL, TriShape(), VerticalSlash(), BlockTopK(blocks=16))
PROFILE = Profile(architecture=SHAPE, layers=(MIXED, (LARGE,) * 5))


@pytest.fixture(autouse=True)
def _desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_pattern_has_its_own_letter():
    assert LETTERS.keys() == PATTERNS.keys()
    assert len(set(LETTERS.values())) == len(PATTERNS)


def test_letters():
    assert draw_letters(PROFILE) == ["DATVB", "AAAAA"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (Dense(), None),
        (SMALL, 10),
        (TriShape(sink=1, window=2, last=99), 3),
        (VerticalSlash(verticals=1, slashes=2), 130),  # the forced lines
        (VerticalSlash(verticals=40, slashes=200), 240),
        (BlockTopK(blocks=3, block=128), 384),
        (Interleaved(sink=5, even=7, odd=5), 11),  # distances 0, 2, 4, 6 and 1, 3
        (InfLLM(sink=5, window=100, blocks=3, block=64), 297),
    ],
    ids=repr,
)
def test_budget(pattern: Pattern, expected: int | None):
    assert budget(pattern) == expected


def test_shades_grow_with_the_budget():
    first, second = shades(PROFILE)
    assert first[0] == 1  # dense
    assert first[1] == FAINTEST
    assert first[3] == 1  # the largest
    assert FAINTEST < second[0] < first[4] < first[2] < 1
    assert shades(Profile.uniform(SMALL, SHAPE)) == [[1.0] * 5] * 2
    assert shades(Profile.uniform(Dense(), SHAPE)) == [[1.0] * 5] * 2


def test_a_count_is_short():
    assert {len(short(n)) <= 4 for n in range(1, 200_000, 7)} == {True}


def test_summary_counts_every_head():
    lines = summarise(PROFILE)
    assert next(iter(lines)) == "a-shape"
    assert lines["a-shape"] == "a-shape: 6 heads (60%), 10 to 1.0K keys"
    assert lines["dense"] == "dense: 1 heads (10%), every key"
    assert sum(int(line.split()[1]) for line in lines.values()) == 10


def test_a_profile_that_was_not_searched_here_says_so():
    told = Profile(architecture=SHAPE, layers=PROFILE.layers, provenance={"origin": NOT_SEARCHED})
    assert describe(told, "it") == "it: 2 layers of 5 heads, not searched here"
    assert describe(PROFILE, "it") == "it: 2 layers of 5 heads"


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_file(ending: str):
    first, second = Path(f"first.{ending}"), Path(f"second.{ending}")
    for path in (first, second):
        draw_heatmap(PROFILE, path, title="a profile")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith({"svg": b"<?xml", "png": b"\x89PNG"}[ending])


def test_colours_of_a_picture():
    """A head of the largest budget has the family's own colour; the smallest is paler."""
    draw_heatmap(PROFILE, Path("map.png"), title="")
    pixels = {tuple(round(255 * x) for x in p[:3]) for p in imread("map.png").reshape(-1, 4)}

    def colour(name: str, depth: float) -> tuple[int, ...]:
        parts = [int(COLOURS[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return tuple(round(255 * (1 - depth * (1 - part))) for part in parts)

    def drawn(wanted: tuple[int, ...]) -> bool:
        return any(all(abs(a - b) <= 1 for a, b in zip(p, wanted, strict=True)) for p in pixels)

    for layer, row in enumerate(shades(PROFILE)):
        for head, depth in enumerate(row):
            assert drawn(colour(PROFILE[layer][head].name, depth)), (layer, head)
    assert not drawn(colour("vertical-slash", 0.5))


def test_svg_names_every_budget():
    draw_heatmap(PROFILE, Path("map.svg"), title="a profile")
    words = re.findall(r">([^<>\n]+)</text>", Path("map.svg").read_text("utf-8"))
    assert words.count("1.0K") == 6  # five of the second layer, and 16 blocks
    assert {"10", "4.1K", "7.1K", "a profile"} <= set(words)
    assert any(word.startswith("vertical-slash: 1 heads") for word in words)


def test_a_large_model_is_drawn_without_numbers():
    large = Architecture(layers=80, heads=64, kv_heads=8, head_dim=128)
    draw_heatmap(Profile.uniform(VerticalSlash(), large), Path("large.svg"), title="")
    assert Path("large.svg").stat().st_size < 100_000
    assert ">7.1K<" not in Path("large.svg").read_text("utf-8")


def test_other_endings_are_refused():
    with pytest.raises(InputError, match=r"must end in \.png or \.svg"):
        draw_heatmap(PROFILE, Path("new/map.pdf"), title="")
    assert not Path("new").exists()


def test_in_the_terminal():
    PROFILE.save("own.json")
    result = run_cli("draw", "--profile", "own.json")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "own.json: 2 layers of 5 heads"
    assert [line.split()[1] for line in lines[1:3]] == ["DATVB", "AAAAA"]
    assert lines[3] == "A a-shape: 6 heads (60%), 10 to 1.0K keys"


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_shipped_profile_into_a_file(ending: str):
    path = Path(f"out/glm.{ending}")
    result = run_cli("draw", "--profile", "glm-4-9b-1m", "--out", path)
    assert result.exit_code == 0, result.stderr
    assert path.stat().st_size < 600_000
    if ending == "svg":
        assert NOT_SEARCHED in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param([], "pass a pattern to draw, or --profile", id="nothing"),
        pytest.param(["dense", "--profile", "glm-4-9b-1m"], "and not both", id="both"),
        pytest.param(["--profile", "glm-4-9b-1m", "--indices"], "--indices draws", id="indices"),
        pytest.param(["--profile", "none.json"], "no profile 'none.json'", id="missing"),
        pytest.param(["--profile", "glm-4-9b-1m", "--out", "a.pdf"], ".png or .svg", id="ending"),
    ],
)
def test_refusals(arguments: list[str], why: str):
    assert_refused(run_cli("draw", *arguments), why)
