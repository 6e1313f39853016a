"""Pictures: what is kept shows, files are whole and the same every time."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from sparsefill import Dense, InputError, SparseIndex, estimate
from sparsefill.cli.draw import SMALL
from sparsefill.draw import (
    COLOURS,
    COLUMN_COLOUR,
    IN_COLUMN,
    IN_TILE,
    SHADES,
    Panel,
    draw_figure,
    draw_index_text,
    draw_text,
    read_by_kernel,
    toy_head,
)
from sparsefill.patterns import PATTERNS, parse_pattern
from tests.support.inputs import causal_mask
from tests.support.tiny import assert_refused, run_cli


@pytest.fixture(autouse=True)
def _desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("note").write_text("not a folder", "utf-8")


def single_cell(n: int, m: int) -> torch.Tensor:
    mask = torch.zeros(n, m, dtype=torch.bool)
    mask[n - 1, m // 2] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "width", "lines"),
    [
        pytest.param(torch.ones(8, 8, dtype=torch.bool), 4, ["████"] * 2, id="full"),
        pytest.param(torch.zeros(8, 8, dtype=torch.bool), 4, ["", ""], id="empty"),
        pytest.param(causal_mask(4, 4), 4, ["█▒", "███▒"], id="causal"),
        pytest.param(causal_mask(2, 4), 4, ["███", "████"], id="chunk"),
        pytest.param(torch.eye(4, dtype=torch.bool), 4, ["▒▒", "  ▒▒"], id="diagonal"),
        pytest.param(torch.ones(1, 1, dtype=torch.bool), 64, ["█"], id="one-cell"),
        pytest.param(torch.ones(3, 2, dtype=torch.bool), 64, ["██"], id="narrower-than-asked"),
        pytest.param(single_cell(64, 64), 2, [" ░"], id="a-lone-cell-shows"),
    ],
)
def test_text(mask: torch.Tensor, width: int, lines: list[str]):
    assert draw_text(mask, width=width).split("\n") == lines


def test_text_is_darker_where_more_is_kept():
    mask = torch.zeros(4, 16, dtype=torch.bool)
    for area in range(4):
        mask[: area + 1, area * 4 : area * 4 + 4] = True
    assert draw_text(mask, width=4).split("\n")[0][0] == "▒"  # 4 of the 8 cells of two rows
    assert draw_text(mask.T, width=1) == "▓"  # 40 of 64
    assert len(set(SHADES)) == 5


def panel(n: int, *, weights: bool) -> Panel:
    mask = causal_mask(n, n)
    return Panel(
        title="a head", pattern="dense", mask=mask, weights=mask / mask.sum(-1) if weights else None
    )


@pytest.mark.parametrize("weights", [False, True], ids=["cells", "cells-over-weights"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("ending", ["svg", "png"])
def test_figure(ending: str, count: int, weights: bool):
    path = Path("pictures") / f"heads.{ending}"
    draw_figure([panel(70, weights=weights)] * count, path)
    assert os.listdir("pictures") == [path.name]
    written = path.read_bytes()
    if ending == "svg":
        assert written.count(b"<!-- a head -->") == count
    else:
        assert written.startswith(b"\x89PNG")
        assert abs(int.from_bytes(written[16:20], "big") - 4.2 * 150 * count) <= 1  # its width


def colours(mask: torch.Tensor, name: str) -> Counter[tuple[float, ...]]:
    """Draw a mask, and count the pixels of each colour."""
    draw_figure([Panel(title="", pattern="a-shape", mask=mask)], Path(name))
    return Counter(map(tuple, imread(name).reshape(-1, 4).tolist()))


def test_a_line_survives_shrinking():
    n = 1500
    mask = torch.zeros(n, n, dtype=torch.bool)
    empty = colours(mask, "empty.png")
    mask[:, 700] = True
    line = colours(mask, "line.png")
    tint = (colours(~torch.zeros_like(mask), "full.png") - empty).most_common(1)[0][0]
    assert empty[tint] == 0
    assert line[tint] > 400  # pixels, as many as the picture has rows or nearly


@pytest.mark.parametrize("name", ["heads.pdf", "heads", "heads.png.txt"])
def test_other_endings_are_refused(name: str):
    with pytest.raises(InputError, match=r"must end in \.png or \.svg"):
        draw_figure([panel(9, weights=False)], Path("pictures") / name)
    assert not Path("pictures").exists()


def test_a_failing_figure_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError("no space left")

    Path("pictures").mkdir()
    Path("pictures/heads.png").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        draw_figure([panel(9, weights=False)], Path("pictures/heads.png"))
    assert os.listdir("pictures") == ["heads.png"]
    assert Path("pictures/heads.png").read_bytes() == b"old"


def test_every_pattern_has_its_own_colour():
    assert COLOURS.keys() == PATTERNS.keys()
    assert len(set(COLOURS.values())) == len(PATTERNS)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 300])
def test_toy_head(n: int):
    q, k = toy_head(n)
    assert q.shape == k.shape == (1, 1, n, 64)
    assert q.isfinite().all()
    assert k.isfinite().all()
    assert all(torch.equal(*pair) for pair in zip((q, k), toy_head(n), strict=True))
    assert estimate(Dense(), q, k).to_mask()[0, 0].equal(causal_mask(n, n))


def test_the_toy_head_has_a_sink_and_columns():
    n = 512
    q, k = toy_head(n)
    scores = (q @ k.mT)[0, 0] / 8
    weights = scores.masked_fill(~causal_mask(n, n), -torch.inf).softmax(-1)[n // 2 :]
    mass = weights.mean(0)
    assert mass[:4].min() > 4 * mass.median()
    assert mass[4 : n // 2].max() > 4 * mass.median()


@pytest.mark.parametrize("name", PATTERNS)
def test_draw_in_the_terminal(name: str):
    result = run_cli("draw", name, "--tokens", 512)
    assert result.exit_code == 0
    title, *picture = result.stdout.splitlines()
    assert title.startswith(PATTERNS[name].__name__)
    assert ("density 100%" in title) == (name == "dense")
    assert len(picture) == 48
    assert picture[0][0] != " "


@pytest.mark.parametrize("ending", ["svg", "png"])
@pytest.mark.parametrize("name", PATTERNS)
def test_draw_into_a_file(name: str, ending: str):
    written = []
    for attempt in ("first", "second"):
        path = Path(attempt) / f"cells.{ending}"
        assert run_cli("draw", name, "--tokens", 200, "--out", path).exit_code == 0
        assert os.listdir(attempt) == [path.name]
        written.append(path.read_bytes())
    assert written[0].startswith({"svg": b"<?xml", "png": b"\x89PNG"}[ending])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("pattern", "out", "why"),
    [
        pytest.param("dense", "out/cells.pdf", "must end in .png or .svg", id="ending"),
        pytest.param("dense", "out/cells", "must end in .png or .svg", id="no-ending"),
        pytest.param("spiral", "out/cells.svg", "unknown pattern 'spiral'", id="name"),
        pytest.param("a-shape:window=0", "out/cells.svg", "AShape.window", id="parameter"),
        pytest.param("dense", "note/cells.svg", "note", id="folder-is-a-file"),
    ],
)
def test_draw_refuses(pattern: str, out: str, why: str):
    assert_refused(run_cli("draw", pattern, "--tokens", 100, "--out", out), why)


@pytest.mark.parametrize("name", [n for n in PATTERNS if n not in ("dense", "interleaved")])
@pytest.mark.parametrize("n", [64, 200, 700])
def test_what_a_kernel_reads_holds_what_the_index_keeps(name: str, n: int):
    index = estimate(parse_pattern(SMALL[name]), *toy_head(n))
    kinds = read_by_kernel(index)
    read = (kinds > 0).repeat_interleave(64, dim=0)[:n]
    assert bool((read | ~index.to_mask()[0, 0]).all())
    causal = (read & causal_mask(n, n)).sum()
    assert causal == index.to_mask().sum()  # and nothing else, but for the future part of a tile


def test_what_a_kernel_reads_of_lines():
    mask = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    mask[..., 5] = True  # a column
    for i in range(4):
        mask[..., 64 * i : 64 * i + 64, max(0, 64 * i - 10) : 64 * i + 54] = True
    index = SparseIndex.from_mask(mask & causal_mask(256, 256))
    kinds = read_by_kernel(index)
    assert kinds[1:, 5].tolist() == [IN_COLUMN] * 3
    assert kinds[2, 118 : 118 + 64].tolist() == [IN_TILE] * 64
    assert kinds[3, 6:182].sum() == 0
    assert draw_index_text(kinds, width=4).split("\n")[3] == "| ░█"  # 182 to 245


def test_index_in_the_terminal():
    result = run_cli("draw", "vertical-slash", "--indices")
    assert result.exit_code == 0
    _, said, *picture, _ = result.stdout.splitlines()
    assert said.startswith("at 2048 tokens: ")
    assert len(picture) == 2048 // 64
    assert "█" in picture[-1]
    assert "|" in picture[-1]
    assert picture[0].rstrip("░ ") in ("█", "██", "███")


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_index_into_a_file(ending: str):
    written = []
    for attempt in ("first", "second"):
        path = Path(attempt) / f"index.{ending}"
        result = run_cli("draw", "vertical-slash", "--indices", "--tokens", 700, "--out", path)
        assert result.exit_code == 0, result.stderr
        assert os.listdir(attempt) == [path.name]
        written.append(path.read_bytes())
    assert written[0].startswith({"svg": b"<?xml", "png": b"\x89PNG"}[ending])
    assert written[0] == written[1]
    assert len(written[0]) < 200_000


def test_tiles_and_columns_have_different_colours():
    path = Path("index.png")
    assert run_cli("draw", "vertical-slash", "--indices", "--out", path).exit_code == 0
    pixels = (imread(path)[..., :3] * 255).round()
    for colour in (COLOURS["vertical-slash"], COLUMN_COLOUR):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == wanted).all(-1).sum() > 2_000, colour


def test_index_refuses_what_has_none():
    assert_refused(run_cli("draw", "interleaved", "--indices"), "interleaved heads keep cells of")


@pytest.mark.parametrize("out", ["out/index.pdf", "out/index"])
def test_index_refuses_other_endings(out: str):
    assert_refused(run_cli("draw", "dense", "--indices", "--out", out), "must end in .png or .svg")
