"""A search over all layers and prompts of a model, kept on disk layer by layer.

The scores of each (prompt, layer) are one file of a work folder, written whole or not at all:
a search that was killed goes on where it was, and a finished one can be chosen from again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from sparsefill.atomic import write_atomically
from sparsefill.errors import InputError, SparsefillError
from sparsefill.kernels import BackendName
from sparsefill.patterns import Dense, Pattern, from_dict, to_dict
from sparsefill.profile import SEARCHED, Architecture, Profile
from sparsefill.search.choose import Choice
from sparsefill.search.prompts import Prompt
from sparsefill.search.score import (
    KINDS,
    SPAN_BLOCKS,
    SPANS,
    Layer,
    Scores,
    score_layer,
    scored_rows,
)
from sparsefill.search.space import PAPER, SEEDS, LineCosts, Seed, Target, patterns_of
from sparsefill.tile import TILE

# Costs, as shares of dense, among which budgets of a whole model choose. More of these do more
# good than more seeds: heads differ in how much they need more than in what.
LEVELS = (0.04, 0.06, 0.09, 0.13, 0.2, 0.3, 0.45, 0.65, 0.9)

Look = Callable[[Layer], None]
Read = Callable[[Int[Tensor, "1 n"], Look], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is searched.

    Args:
        budget: cost as a share of what dense attention costs in the kernel.
        choice: how candidates are compared.
        seeds: candidates before they get their budgets; when None, the paper's where the
            budget is the whole model's, and some more where it is each head's.
        levels: costs to try where the budget is the whole model's.
    """

    budget: float = 0.3
    choice: Choice = field(default_factory=Choice)
    seeds: tuple[Seed, ...] | None = None
    levels: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        if not 0 < self.budget < 1:
            raise InputError(
                f"budget must be a share of dense attention between 0 and 1, got {self.budget}"
            )

    @property
    def starts(self) -> tuple[Seed, ...]:
        """Candidates before they get their budgets."""
        if self.seeds is not None:
            return self.seeds
        return PAPER if self.choice.budgets == "model" else SEEDS

    @property
    def costs(self) -> tuple[float, ...]:
        """Costs that candidates have, as shares of dense."""
        if self.choice.budgets == "head":
            return (self.budget,)
        higher = (self.budget,) if self.budget > max(self.levels) else ()
        return (*self.levels, *higher)

    def candidates(self, layer: Layer, backend: BackendName) -> list[tuple[Pattern, ...]]:
        """List the candidates for a layer's heads, aligned on its own input."""
        if layer.windowed:
            return [(Dense(),) * layer.q.shape[1]]
        maths = {"scale": layer.scale, "softcap": layer.softcap, "backend": backend}
        lines = LineCosts.measure(layer.q, layer.k, **maths)
        targets = dict.fromkeys(Target.of_cost(cost, layer.tokens).whole() for cost in self.costs)
        return [patterns_of(seed, target, lines) for target in targets for seed in self.starts]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The candidates of a layer and their scores on one prompt."""

    candidates: list[tuple[Pattern, ...]]
    scores: Scores

    def to_json(self) -> str:
        """Write them so that the very same floats are read back."""
        patterns = list(dict.fromkeys(p for candidate in self.candidates for p in candidate))
        number = {pattern: i for i, pattern in enumerate(patterns)}
        body = {
            "patterns": [to_dict(pattern) for pattern in patterns],
            "candidates": [[number[p] for p in candidate] for candidate in self.candidates],
            "scores": {kind: getattr(self.scores, kind).tolist() for kind in KINDS},
        }
        return json.dumps(body)

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> Scored:
        """Build it of what `to_json` wrote."""
        patterns = [from_dict(item) for item in body["patterns"]]
        scores = {kind: torch.tensor(body["scores"][kind], dtype=torch.float64) for kind in KINDS}
        return cls(
            candidates=[tuple(patterns[i] for i in row) for row in body["candidates"]],
            scores=Scores(**scores),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """A search of one model, over some prompts, in a work folder.

    The first prompt, which should be the longest, is what candidates are aligned on.

    Args:
        read: has the model read a prompt densely and shows each of its layers.
        identity: whatever else must agree for kept scores to be of use: the model, versions.
        work: folder of the kept scores.
    """

    read: Read
    architecture: Architecture
    prompts: Sequence[Prompt]
    settings: Settings
    identity: dict[str, Any]
    work: Path
    backend: BackendName = "auto"

    def begin(self) -> int:
        """Prepare the work folder, and return how many layers it holds already.

        Raises:
            InputError: the folder is of another search.
        """
        mine = json.loads(json.dumps(self._fingerprint()))
        path = self.work / "search.json"
        if self.work.exists() and (not self.work.is_dir() or any(self.work.iterdir())):
            there = self._load(path)
            if there != mine:
                differing = [name for name in mine if there.get(name) != mine[name]]
                raise InputError(
                    f"{self.work} holds a search with another {', '.join(differing)};"
                    " go on with the same, or remove that folder"
                )
        else:
            write_atomically(path, json.dumps(mine, indent=1) + "\n")
        return sum(self._path(p, i).is_file() for p, i in self._steps())

    @property
    def total(self) -> int:
        """Layers to score, each prompt's counted."""
        return len(self.prompts) * self.architecture.layers

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "architecture": asdict(self.architecture),
            "prompts": [prompt.fingerprint() for prompt in self.prompts],
            "seeds": [asdict(seed) for seed in self.settings.starts],
            "budget": [self.settings.choice.budgets, *self.settings.costs],
            "backend": self.backend,
            **self._scored_queries(),
            **self.identity,
        }

    def _scored_queries(self) -> dict[str, int]:
        """Tell how many queries were scored, if some prompt has more."""
        sampled = any(scored_rows(prompt.tokens) is not None for prompt in self.prompts)
        return {"scored_queries": TILE * SPANS * SPAN_BLOCKS} if sampled else {}

    def _steps(self) -> list[tuple[int, int]]:
        layers = range(self.architecture.layers)
        return [(p, i) for p in range(len(self.prompts)) for i in layers]

    def _path(self, prompt: int, layer: int) -> Path:
        return self.work / f"prompt-{prompt}-layer-{layer}.json"

    def _scored(self, prompt: int, layer: int) -> Scored:
        path = self._path(prompt, layer)
        try:
            return Scored.from_dict(self._load(path))
        except (KeyError, TypeError, IndexError, SparsefillError) as error:
            raise InputError(f"{path} is damaged ({error}); remove {self.work}") from error

    def _load(self, path: Path) -> dict[str, Any]:
        """Read a file of the work folder."""
        try:
            data = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.work} is not the work folder of a search, or is damaged ({error});"
                " remove it"
            ) from error
        if not isinstance(data, dict):
            raise InputError(f"{path} is damaged, got {type(data).__name__}; remove {self.work}")
        return data

    def score(self, on_layer: Callable[[], None] = lambda: None) -> None:
        """Score whatever is not scored yet.

        Args:
            on_layer: called after each layer that was scored.
        """
        for number, prompt in enumerate(self.prompts):
            missing = {
                i for p, i in self._steps() if p == number and not self._path(p, i).is_file()
            }

            def look(layer: Layer, number: int = number, missing: set[int] = missing) -> None:
                if layer.number in missing:
                    self._score(number, layer)
                    missing.discard(layer.number)
                    on_layer()

            if missing:
                self.read(prompt.ids, look)
            if missing:
                raise InputError(
                    f"the model showed no attention of layers {sorted(missing)}, which the search"
                    " needs; such layers are not causal attention over a whole prompt"
                )

    def _score(self, number: int, layer: Layer) -> None:
        if number == 0:
            candidates = self.settings.candidates(layer, self.backend)
        else:
            candidates = self._scored(0, layer.number).candidates
        scores = score_layer(layer, candidates, backend=self.backend)
        scored = Scored(candidates=candidates, scores=scores)
        write_atomically(self._path(number, layer.number), scored.to_json())

    def choose(self, provenance: dict[str, Any]) -> Profile:
        """Choose the profile from the scores, all of which there must be."""
        scored = [
            [self._scored(p, i) for p in range(len(self.prompts))]
            for i in range(self.architecture.layers)
        ]
        first = [own[0].candidates for own in scored]
        longest = sum(p.tokens == self.prompts[0].tokens for p in self.prompts)
        scores = [
            self.settings.choice.together([one.scores for one in own], longest=longest)
            for own in scored
        ]
        open_layers = [i for i, own in enumerate(first) if len(own) > 1]
        if not open_layers:
            raise InputError(
                "every layer has a sliding window that hides keys, and stays as it is; there is"
                " nothing to search at this length"
            )
        chosen = [torch.zeros(self.architecture.heads, dtype=torch.long) for _ in first]
        picked = self.settings.choice.choose([scores[i] for i in open_layers], self.settings.budget)
        for i, row in zip(open_layers, picked, strict=True):
            chosen[i] = row
        found = {
            kind: torch.stack([_of(getattr(scores[i], kind), chosen[i]) for i in open_layers])
            for kind in KINDS
        }
        choice = self.settings.choice
        losses = [_of(choice.loss(s), c).tolist() for s, c in zip(scores, chosen, strict=True)]
        return Profile(
            architecture=self.architecture,
            layers=tuple(
                tuple(own[int(c)][head] for head, c in enumerate(row))
                for own, row in zip(first, chosen, strict=True)
            ),
            scores=tuple(tuple(round(loss, 6) for loss in layer) for layer in losses),
            provenance={
                **provenance,
                "origin": SEARCHED,
                "tool": "sparsefill search",
                "prompts": [prompt.provenance() for prompt in self.prompts],
                "aligned_on": self.prompts[0].tokens,
                **self._scored_queries(),
                "budget": self.settings.budget,
                **asdict(choice),
                "calibration": {
                    "cost": round(float(found["cost"].mean()), 4),
                    "density": round(float(found["density"].mean()), 4),
                    "recall": round(1 - float(found["lost"].mean()), 4),
                    "output_error": round(float(found["error"].mean()), 4),
                    "layer_error": round(float(found["added"].sum(1).mean()), 6),
                },
            },
        )

    def finish(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work, ignore_errors=True)


def _of(values: Tensor, chosen: Int64[Tensor, " h"]) -> Tensor:
    """Take each head's chosen candidate."""
    return values.gather(0, chosen[None])[0]
