"""How a profile does on text that it was not searched on, beside uniform patterns.

Every seed of the search space, given to all heads alike and nudged on the held-out text
itself until the model costs what it costs with the profile, is a default to be beaten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sparsefill.estimate import estimate
from sparsefill.index import SparseIndex
from sparsefill.kernels import BackendName
from sparsefill.patterns import Pattern, to_dict
from sparsefill.profile import Profile
from sparsefill.search.prompts import Prompt
from sparsefill.search.score import KINDS, Candidate, Layer, Scores, score_layer
from sparsefill.search.session import Read
from sparsefill.search.space import SEEDS, LineCosts, Seed, Target, dense_keys, patterns_of
from sparsefill.static import StaticIndices


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Means over the heads of a model on one held-out prompt.

    Args:
        name: what was tried.
        pattern: of all heads; None for a profile or static indices.
        means: of the scores, by kind.
    """

    prompt: Prompt
    name: str
    pattern: Pattern | None
    means: dict[str, float]

    def as_data(self) -> dict[str, Any]:
        """Describe it in a report."""
        return {
            "name": self.name,
            "pattern": None if self.pattern is None else to_dict(self.pattern),
            "cost": self.means["cost"],
            "density": self.means["density"],
            "recall": {"mean": 1 - self.means["lost"]},
            "output_error": {"mean": self.means["error"]},
            "layer_error": {"mean": self.means["layer"]},  # each head alone, added up
        }


@dataclass(kw_only=True, eq=False)
class _Costs:
    """What a first reading finds: the profile's cost, and that of lines in all heads alike."""

    tokens: int
    profile: list[float] = field(default_factory=list)
    tiles: list[torch.Tensor] = field(default_factory=list)
    columns: list[torch.Tensor] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def look(self, layer: Layer, patterns: Sequence[Pattern], backend: BackendName) -> None:
        """Add a layer."""
        maths = {"scale": layer.scale, "softcap": layer.softcap, "backend": backend}
        index = estimate(patterns, layer.q, layer.k, **maths)
        keys = index.keys_read()[0].double().mean()
        self.profile.append(float(keys) / dense_keys(layer.tokens))
        lines = LineCosts.measure(layer.q, layer.k, **maths)
        self.lines = lines.lines
        self.tiles.append(lines.tiles.mean(-1))
        self.columns.append(lines.columns.mean(-1))

    @property
    def cost(self) -> float:
        """What the profile costs, as a share of dense."""
        return sum(self.profile) / len(self.profile)

    def uniform(self, seed: Seed, cost: float) -> Pattern:
        """Give a seed to all heads alike, at a cost."""
        lines = LineCosts(
            lines=self.lines,
            tiles=torch.stack(self.tiles).mean(0)[..., None],
            columns=torch.stack(self.columns).mean(0)[..., None],
        )
        return patterns_of(seed, Target.of_cost(cost, self.tokens), lines)[0]


def check_held_out(
    read: Read,
    prompts: Sequence[Prompt],
    profiles: dict[str, Profile],
    *,
    static: Mapping[str, StaticIndices] | None = None,
    seeds: Sequence[Seed] = SEEDS,
    costs: Sequence[float] = (),
    backend: BackendName = "auto",
    on_layer: Callable[[], None] = lambda: None,
) -> list[HeldOut]:
    """Score profiles, and uniform patterns of the same cost, on other prompts.

    Args:
        profiles: by name.
        static: cells of other prompts, by name.
        costs: of the uniform patterns, as shares of dense; when empty, what the first profile
            costs.
        on_layer: called twice for each layer of each prompt.
    """
    found, static = [], static or {}
    main = next(iter(profiles.values()))
    for prompt in prompts:
        found_costs = _Costs(tokens=prompt.tokens)

        def first(layer: Layer, found_costs: _Costs = found_costs) -> None:
            if not layer.windowed:
                found_costs.look(layer, main[layer.number], backend)
            on_layer()

        read(prompt.ids, first)
        wanted = costs or [found_costs.cost]
        uniform = list(dict.fromkeys(found_costs.uniform(s, c) for c in wanted for s in seeds))
        scores: list[Scores] = []

        def second(
            layer: Layer, uniform: list[Pattern] = uniform, scores: list[Scores] = scores
        ) -> None:
            if not layer.windowed:
                heads = layer.q.shape[1]
                rows: list[Candidate] = [p[layer.number] for p in profiles.values()]
                rows += [_cells_of(kept, layer) for kept in static.values()]
                rows += [(pattern,) * heads for pattern in uniform]
                scores.append(score_layer(layer, rows, backend=backend))
            on_layer()

        read(prompt.ids, second)
        names = [*profiles, *static, *(_title(pattern) for pattern in uniform)]
        patterns = [*[None] * (len(profiles) + len(static)), *uniform]
        for row, (name, pattern) in enumerate(zip(names, patterns, strict=True)):
            means = _means(scores, row)
            found.append(HeldOut(prompt=prompt, name=name, pattern=pattern, means=means))
    return found


def _cells_of(kept: StaticIndices, layer: Layer) -> SparseIndex:
    n = layer.tokens
    lengths = torch.tensor([n], dtype=torch.int32, device=layer.q.device)
    return kept.index(layer.number, n=n, m=n, query_lengths=lengths, key_lengths=lengths)


def _means(scores: Sequence[Scores], row: int) -> dict[str, float]:
    means = {
        kind: float(torch.stack([getattr(layer, kind)[row] for layer in scores]).mean())
        for kind in KINDS
    }
    means["layer"] = float(torch.stack([layer.added[row].sum() for layer in scores]).mean())
    return means


def _title(pattern: Pattern) -> str:
    fields = {key: value for key, value in to_dict(pattern).items() if key != "pattern"}
    shown = ",".join(
        f"{key}={value}" for key, value in fields.items() if value != getattr(type(pattern), key)
    )
    return f"{pattern.name}:{shown}"
