"""Sessions: killed and resumed, the same twice, never mixed with another search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsefill import Dense, InputError
from sparsefill.profile import Architecture, Profile
from sparsefill.search import Choice, Prompt, Session, Settings, session
from sparsefill.search.session import Look
from sparsefill.search.space import PAPER
from tests.support.layers import D, random_layer

LAYERS, N = 3, 640
SHAPE = Architecture(layers=LAYERS, heads=4, kv_heads=2, head_dim=D)
FEW = tuple(PAPER[i] for i in (0, 3, 5))
HEAD = Settings(budget=0.5, choice=Choice(budgets="head"), seeds=FEW)
MODEL = Settings(budget=0.6, choice=Choice(budgets="model"), levels=(0.5, 0.75), seeds=FEW)


def prompt(seed: int, tokens: int = N) -> Prompt:
    return Prompt(name=f"prompt {seed}", ids=torch.full((1, tokens), seed), sha256=str(seed))


def read(ids: torch.Tensor, look: Look) -> None:
    """Stand in for a model: each prompt has random layers of its own."""
    for number in range(LAYERS):
        look(random_layer(ids.shape[1], number=number, seed=int(ids[0, 0])))


def begin(work: Path, **changed: Any) -> Session:
    given: dict[str, Any] = {
        "read": read,
        "architecture": SHAPE,
        "prompts": [prompt(0)],
        "settings": HEAD,
        "identity": {"model": "random"},
        "work": work,
    } | changed
    return Session(**given)


def search(work: Path, **changed: Any) -> Profile:
    own = begin(work, **changed)
    own.begin()
    own.score()
    return own.choose({})


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the layers that were scored."""
    numbers, real = [], session.score_layer

    def noted(layer: Any, *others: Any, **options: Any) -> Any:
        numbers.append(layer.number)
        return real(layer, *others, **options)

    monkeypatch.setattr(session, "score_layer", noted)
    return numbers


def stop_after(layers: int) -> Callable[[], None]:
    seen: list[None] = []

    def on_layer() -> None:
        seen.append(None)
        if len(seen) == layers:
            raise KeyboardInterrupt

    return on_layer


@pytest.mark.parametrize("settings", [HEAD, MODEL], ids=["head", "model"])
def test_a_killed_search_goes_on(tmp_path: Path, scored: list[int], settings: Settings):
    prompts = [prompt(0), prompt(1, 512)]
    killed = begin(tmp_path / "killed", prompts=prompts, settings=settings)
    assert (killed.begin(), killed.total) == (0, 2 * LAYERS)
    for done in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            killed.score(on_layer=stop_after(2))
        assert killed.begin() == done
    killed.score()
    assert killed.begin() == killed.total
    assert scored == [0, 1, 2, 0, 1, 2]  # each once
    whole = search(tmp_path / "whole", prompts=prompts, settings=settings)
    assert killed.choose({}).to_json() == whole.to_json()
    killed.finish()
    assert not (tmp_path / "killed").exists()


def test_a_killed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    own = begin(tmp_path)
    own.begin()
    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own.score()
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


def test_another_search_is_refused(tmp_path: Path):
    search(tmp_path)
    for changed, said in (
        ({"settings": replace(HEAD, budget=0.4)}, "budget"),
        ({"prompts": [prompt(1)]}, "prompts"),
        ({"identity": {"model": "another"}}, "model"),
        ({"backend": "torch"}, "backend"),
    ):
        with pytest.raises(InputError, match=f"another {said}; go on"):
            begin(tmp_path, **changed).begin()


def test_scores_serve_other_objectives_and_budgets(tmp_path: Path, scored: list[int]):
    dear = search(tmp_path, settings=MODEL)
    cheap = search(tmp_path, settings=replace(MODEL, budget=0.52))
    assert scored == [0, 1, 2]
    costs = [profile.provenance["calibration"]["cost"] for profile in (dear, cheap)]
    assert 0.52 >= costs[1] > 0.48
    assert 0.6 >= costs[0] > 0.55
    errors = [profile.provenance["calibration"]["layer_error"] for profile in (dear, cheap)]
    assert errors[0] < errors[1]


def test_choosing_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = begin(tmp_path, prompts=[prompt(0), prompt(1)])
    own.begin()
    own.score()
    names, real = [], Path.read_text

    def noted(path: Path, *arguments: Any, **options: Any) -> str:
        names.append(path.name)
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", noted)
    own.choose({})
    assert sorted(names) == [f"prompt-{p}-layer-{i}.json" for p in (0, 1) for i in range(LAYERS)]


def test_heads_alike_cost_alike(tmp_path: Path):
    profile = search(tmp_path)
    assert Dense() not in {pattern for layer in profile.layers for pattern in layer}
    said = profile.provenance
    assert said["calibration"]["cost"] == pytest.approx(0.49, abs=0.01)  # three of ten blocks
    assert said["prompts"] == [{"name": "prompt 0", "tokens": N, "sha256": "0"}]
    assert (said["objective"], said["budgets"], said["combine"]) == ("output", "head", "mean")
    assert [len(layer) for layer in profile.scores or ()] == [4] * LAYERS
    assert Profile.from_json(profile.to_json()) == profile


def test_windowed_layers_stay_dense(tmp_path: Path):
    def windowed(ids: torch.Tensor, look: Look) -> None:
        read(ids, lambda layer: look(replace(layer, windowed=layer.number == 1)))

    for name, settings in (("head", HEAD), ("model", MODEL)):
        profile = search(tmp_path / name, read=windowed, settings=settings)
        assert set(profile[1]) == {Dense()}
        assert set(profile[0]) != {Dense()}
        assert profile.provenance["calibration"]["cost"] <= 0.6  # of the layers searched


def test_a_layer_that_is_never_shown(tmp_path: Path):
    def partial(ids: torch.Tensor, look: Look) -> None:
        read(ids, lambda layer: look(layer) if layer.number else None)

    with pytest.raises(InputError, match=r"no attention of layers \[0\]"):
        search(tmp_path, read=partial)


@pytest.mark.parametrize("budget", [0, 1, -0.2, 1.5, float("nan")])
def test_budgets_out_of_range(budget: float):
    with pytest.raises(InputError, match="between 0 and 1"):
        Settings(budget=float(budget))
