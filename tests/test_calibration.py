"""The calibration tool: cheapest at equal loss, near the density asked for, always the same."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefill import AShape, BlockTopK, Dense, Pattern, VerticalSlash
from sparsefill.integrations.transformers.loading import load_model
from sparsefill.integrations.transformers.reading import read_prompt
from sparsefill.profile import Profile
from tests.support.tiny import PROSE, TINY, save_tiny_llama

SCRIPT = Path(__file__).parents[1] / "tools" / "calibrate_profile.py"
TOKENS = 700
FEW: tuple[Pattern, ...] = (
    Dense(),
    AShape(sink=16, window=64),
    AShape(sink=16, window=192),
    VerticalSlash(verticals=64, slashes=64, sink=16, window=64),
    BlockTopK(blocks=3),
)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Load the script, with fewer candidates."""
    spec = importlib.util.spec_from_file_location("calibrate_profile", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(set(module.CANDIDATES)) == len(module.CANDIDATES) > 20
    module.__dict__["CANDIDATES"] = FEW
    return module


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a model and two texts."""
    folder = tmp_path_factory.mktemp("desk")
    save_tiny_llama(folder / "tiny")
    (folder / "one.txt").write_text(PROSE * 10, "utf-8")
    (folder / "two.txt").write_text(PROSE[::-1] * 10, "utf-8")
    return folder


def calibrate(tool: ModuleType, desk: Path, density: float, name: str = "profile.json") -> Profile:
    texts = [part for text in ("one.txt", "two.txt") for part in ("--text", str(desk / text))]
    options = ["--model", str(desk / "tiny"), "--tokens", str(TOKENS), "--density", str(density)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *texts, *options, "--out", str(desk / name)])
        tool.main()
    return Profile.load(desk / name)


def scores(density: list[float], error: list[float], lost: list[float]) -> dict[str, Tensor]:
    """Score the candidates of one head, in a model of one layer."""
    named: dict[str, list[float]] = {"density": density, "error": error, "lost": lost}
    return {
        name: torch.tensor([[values]], dtype=torch.float64).mT for name, values in named.items()
    }


CHOICES: dict[str, tuple[list[float], list[float], list[float], float, int]] = {
    "cheapest-at-equal-loss": ([1.0, 0.2, 0.5], [0.1, 0.1, 0.1], [0.0, 0.0, 0.0], 1.0, 1),
    "best-that-fits": ([1.0, 0.4, 0.1], [0.0, 0.1, 0.5], [0.0, 0.0, 0.0], 0.4, 1),
    "recall-decides-at-equal-error": ([0.4, 0.4, 1.0], [0.1, 0.1, 0.0], [0.5, 0.1, 0.0], 0.5, 1),
    "error-decides-before-recall": ([0.4, 0.4, 1.0], [0.1, 0.2, 0.0], [0.5, 0.1, 0.0], 0.5, 0),
    "all-that-is-allowed": ([1.0, 0.4, 0.1], [0.0, 0.1, 0.5], [0.0, 0.0, 0.0], 1.0, 0),
    "least-if-nothing-fits": ([1.0, 0.4, 0.3], [0.0, 0.1, 0.5], [0.0, 0.0, 0.0], 0.1, 2),
}


@pytest.mark.parametrize(
    ("density", "error", "lost", "target", "best"), CHOICES.values(), ids=CHOICES
)
def test_choose(
    tool: ModuleType,
    density: list[float],
    error: list[float],
    lost: list[float],
    target: float,
    best: int,
):
    assert tool.choose(scores(density, error, lost), target).tolist() == [[[best]]]


def test_choose_spends_where_it_saves_most(tool: ModuleType):
    one = scores([1.0, 0.1], [0.0, 0.1], [0.0, 0.0])
    two = scores([1.0, 0.1], [0.0, 0.9], [0.0, 0.0])
    both = {name: torch.cat([one[name], two[name]], dim=2) for name in one}
    assert tool.choose(both, 0.6).tolist() == [[[1, 0]]]


def test_scores_of_a_layer(tool: ModuleType, desk: Path):
    model, tokenizer, _ = load_model(str(desk / "tiny"))
    ids = tokenizer(PROSE * 4, return_tensors="pt").input_ids
    seen: list[None] = []
    layers = tool.score_model(model, ids, on_layer=lambda: seen.append(None))
    assert len(layers) == len(seen) == 2
    for layer in layers:
        assert {tuple(values.shape) for values in layer.values()} == {(len(FEW), 4)}
        dense = {name: values[0] for name, values in layer.items()}
        assert dense["density"].tolist() == [1] * 4
        assert dense["error"].tolist() == [0] * 4
        assert dense["lost"].abs().max() < 1e-5  # of two log-sum-exps in float32
        for name, values in layer.items():
            assert values.isfinite().all(), name
        assert bool((layer["lost"][1:] > 0).all())
        assert bool((layer["error"][1:] > 0).all())


@pytest.mark.parametrize("density", [0.4, 0.7])
def test_a_profile(tool: ModuleType, desk: Path, density: float):
    profile = calibrate(tool, desk, density)
    profile.require(TINY)
    said: dict[str, Any] = profile.provenance
    assert said["density_target"] == density
    assert [text["name"] for text in said["texts"]] == ["one", "two"]
    reached = said["calibration"]["density"]
    assert density - 0.1 < reached <= density  # eight heads, each in steps of up to 0.4

    model, tokenizer, _ = load_model(str(desk / "tiny"))
    ids = tokenizer((desk / "one.txt").read_text("utf-8"), return_tensors="pt").input_ids
    run = read_prompt(model, ids[:, :TOKENS], profile, min_length=1, measure_recall=True).run
    assert run.density == pytest.approx(reached, abs=0.1)
    assert float(run.recall().mean()) == pytest.approx(said["calibration"]["recall"], abs=0.1)


def test_calibration_is_deterministic(tool: ModuleType, desk: Path):
    assert calibrate(tool, desk, 0.5, "first.json") == calibrate(tool, desk, 0.5, "second.json")
    first, second = (desk / name for name in ("first.json", "second.json"))
    assert first.read_bytes() == second.read_bytes()
    assert str(desk) not in json.dumps(json.loads(first.read_text("utf-8"))["patterns"])
    assert not [name for name in os.listdir(desk) if name.startswith(".")]
