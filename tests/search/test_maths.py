"""A search scores with the maths of the model: its scale, soft cap, windows, heads and layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsefill import AShape, BlockTopK, Dense, Pattern, VerticalSlash, estimate
from sparsefill.cli.layers import layer_reader
from sparsefill.integrations.transformers import freeze
from sparsefill.kernels import attend
from sparsefill.metrics import dense_lse, recall
from sparsefill.profile import Architecture, Profile
from sparsefill.search import (
    Choice,
    Layer,
    Prompt,
    Session,
    Settings,
    check_held_out,
)
from sparsefill.search.score import score_layer
from sparsefill.search.session import Look
from sparsefill.search.space import LineCosts, Seed, Target, dense_keys
from tests.support.layers import D, planted_layer, random_layer
from tests.support.models import prompt, tiny_model

N = 640
LINES = VerticalSlash(verticals=64, slashes=32, sink=4, window=8)
SHAPE = Architecture(layers=3, heads=4, kv_heads=2, head_dim=D)


def odd_layer(number: int = 0, seed: int = 0) -> Layer:
    """Make a layer whose scale and soft cap are not the usual ones."""
    layer = random_layer(N, number=number, seed=seed)
    return replace(layer, q=4 * layer.q, scale=0.31, softcap=3.0)


def read(ids: torch.Tensor, look: Look) -> None:
    for number in range(3):
        look(odd_layer(number, seed=int(ids[0, 0])))


def prompts(*seeds: int) -> list[Prompt]:
    return [
        Prompt(name=str(seed), ids=torch.full((1, N), seed), sha256=str(seed)) for seed in seeds
    ]


def test_scores_use_the_scale_and_the_soft_cap():
    layer = odd_layer()
    scores = score_layer(layer, [(LINES,) * 4])
    maths = {"scale": layer.scale, "softcap": layer.softcap}
    index = estimate(LINES, layer.q, layer.k, **maths)
    lse = attend(layer.q, layer.k, layer.v, index, **maths).lse
    kept = recall(lse, dense_lse(layer.q, layer.k, **maths))[0].mean(-1)
    assert torch.allclose(scores.lost[0].float(), 1 - kept, atol=1e-4)
    assert torch.equal(scores.cost[0], index.keys_read()[0] / dense_keys(N))


@pytest.mark.parametrize("changed", [{"scale": 0.0001}, {"softcap": 0.01}], ids=str)
def test_candidates_are_aligned_with_the_scale_and_the_soft_cap(changed: dict[str, float]):
    """With scores that hardly differ, other lines win, and merge to other tiles."""
    layer = planted_layer("vertical-slash", 1024)
    usual: dict[str, Any] = {"scale": layer.scale, "softcap": layer.softcap}
    other: dict[str, Any] = {**usual, **changed}
    target, seed = Target.of_cost(0.3, 1024).whole(), Seed(family="vertical-slash", columns=0.1)
    patterns = [
        LineCosts.measure(layer.q, layer.k, **maths).align(seed, target) for maths in (usual, other)
    ]
    assert patterns[0] != patterns[1]
    index = estimate(patterns[1], layer.q, layer.k, **other)
    assert int(index.keys_read()[0, 0]) == pytest.approx(target.keys, rel=0.02)


@pytest.mark.parametrize("head", range(4))
def test_each_head_goes_through_its_own_projection(head: int):
    layer = random_layer(N)
    patterns: list[Pattern] = [Dense()] * 4
    patterns[head] = BlockTopK(blocks=3)
    scores = score_layer(layer, [tuple(patterns)])
    outs = [
        attend(layer.q, layer.k, layer.v, estimate(own, layer.q, layer.k)).out[0]
        for own in (patterns, Dense())
    ]
    sparse, dense = (torch.einsum("hnd,ohd->no", out, layer.projection) for out in outs)
    expected = float((sparse - dense).square().sum() / dense.square().sum())
    assert float(scores.added[0, head]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("family", "attention"), [("gemma3", "sdpa"), ("gemma2", "eager")])
def test_layers_are_shown_with_their_windows_and_soft_caps(family: str, attention: str):
    model, seen = tiny_model(family, attention), []
    layer_reader(model, "auto")(prompt(200), seen.append)
    assert [layer.windowed for layer in seen] == [True, False]
    cap = 2.0 if family == "gemma2" else None
    assert [layer.softcap for layer in seen] == [cap, cap]
    assert {layer.scale for layer in seen} == {30**-0.5}


def test_frozen_cells_know_the_soft_cap():
    model, ids, seen = tiny_model("gemma2", "eager"), prompt(300), []
    layer_reader(model, "auto")(ids, seen.append)
    static, layer = freeze(model, LINES, ids), seen[1]
    maths = {"scale": layer.scale, "softcap": layer.softcap}
    expected = estimate(LINES, layer.q, layer.k, **maths)
    assert torch.equal(static.layers[1].sorted_columns(), expected.sorted_columns())
    other = estimate(LINES, layer.q, layer.k, scale=layer.scale)
    assert not torch.equal(static.layers[1].sorted_columns(), other.sorted_columns())


def search(work: Path, **changed: object) -> tuple[Session, Profile]:
    settings = Settings(budget=0.6, choice=Choice(budgets="model"), levels=(0.4, 0.6, 0.8))
    session = Session(
        read=read,
        architecture=SHAPE,
        prompts=prompts(0, 1),
        settings=replace(settings, **changed),
        identity={},
        work=work,
    )
    session.begin()
    session.score()
    return session, session.choose({})


def test_a_profile_costs_and_loses_what_its_search_says(tmp_path: Path):
    session, profile = search(tmp_path)
    said, found = profile.provenance["calibration"], []
    for one in session.prompts:
        session.read(one.ids, lambda x: found.append(score_layer(x, [tuple(profile[x.number])])))
    for kind, expected in (("cost", said["cost"]), ("lost", 1 - said["recall"])):
        mean = float(torch.stack([getattr(one, kind) for one in found]).mean())
        assert mean == pytest.approx(expected, abs=2e-4), kind
    added = float(torch.stack([one.added.sum() for one in found]).mean())
    assert added == pytest.approx(said["layer_error"], rel=1e-3)


def test_every_prompt_scores_the_candidates_of_the_first(tmp_path: Path):
    session, _ = search(tmp_path)
    for layer in range(3):
        first, second = (session._scored(p, layer) for p in range(2))
        assert first.candidates == second.candidates


def test_short_prompts_do_not_spend_the_budget(tmp_path: Path):
    """On 128 tokens everything costs nearly all; the budget is for the longest prompt."""

    def of_any_length(ids: torch.Tensor, look: Look) -> None:
        for number in range(3):
            look(random_layer(ids.shape[1], number=number))

    short = Prompt(name="short", ids=torch.zeros(1, 128, dtype=torch.long), sha256="s")
    for budgets in ("model", "head"):
        settings = Settings(budget=0.6, choice=Choice(budgets=budgets), levels=(0.4, 0.6, 0.8))
        session = Session(
            read=of_any_length,
            architecture=SHAPE,
            prompts=[*prompts(0), short],
            settings=settings,
            identity={},
            work=tmp_path / budgets,
        )
        session.begin()
        session.score()
        cost = session.choose({}).provenance["calibration"]["cost"]
        assert 0.45 < cost <= 0.61


def test_errors_of_heads_add_up_to_their_layers():
    profile = Profile.uniform(AShape(sink=4, window=128), SHAPE)
    row = check_held_out(read, prompts(5), {"found": profile})[0]
    found = []
    read(prompts(5)[0].ids, lambda x: found.append(score_layer(x, [tuple(profile[x.number])])))
    expected = torch.stack([one.added.sum() for one in found]).mean()
    assert row.means["layer"] == pytest.approx(float(expected), rel=1e-5)
