"""What density each method needs for the same recall on held-out text.

A search is scored once per length, and profiles of many budgets are chosen from its scores.
They, and uniform patterns of each family at many budgets, are then read on other text; where
their recall crosses the target, density and error are interpolated.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.arguments import parse_lengths
from sparsefill.atomic import write_atomically
from sparsefill.cli.app import clear_errors
from sparsefill.cli.inputs import read_text
from sparsefill.cli.layers import layer_reader, progress_of_layers
from sparsefill.cli.search import NOVEL, SYNTHETIC, Request, prompts_of, score, session_of
from sparsefill.data import novel
from sparsefill.environment import versions
from sparsefill.integrations.transformers.loading import Loaded, load_model
from sparsefill.profile import Profile
from sparsefill.search import (
    Choice,
    HeldOut,
    Prompt,
    Session,
    Settings,
    check_held_out,
    text_prompt,
)
from sparsefill.search.space import SEEDS

BUDGETS = (0.05, 0.08, 0.12, 0.17, 0.23, 0.3, 0.38, 0.48, 0.6, 0.75)
FOUND = {  # what a user may ask the search for
    "found": Choice(),
    "found, objective recall": Choice(objective="recall"),
}


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where a method reaches the target.

    Args:
        density, cost, output_error: interpolated linearly in recall, or of the least dense point
            if that reaches it already; None if no point does.
        points: what was measured.
    """

    method: str
    density: float | None
    cost: float | None
    output_error: float | None
    points: list[dict[str, float]]


def crossing(method: str, points: Sequence[dict[str, float]], target: float) -> Crossing:
    """Interpolate at the least density where recall reaches the target.

    Example:
        >>> low = {"recall": 0.9, "density": 0.1, "cost": 0.1, "output_error": 0.2}
        >>> high = {"recall": 1.0, "density": 0.3, "cost": 0.3, "output_error": 0.0}
        >>> round(crossing("method", [low, high], 0.95).density, 3)
        0.2
    """
    ordered = sorted(points, key=lambda point: point["density"])
    for low, high in pairwise(ordered):
        if low["recall"] < target <= high["recall"]:
            at = [low["recall"], high["recall"]]
            found = {
                key: float(np.interp(target, at, [low[key], high[key]]))
                for key in ("density", "cost", "output_error")
            }
            return Crossing(method=method, points=ordered, **found)
    found = dict.fromkeys(("density", "cost", "output_error"))
    if ordered and ordered[0]["recall"] >= target:
        found = {key: ordered[0][key] for key in found}
    return Crossing(method=method, points=ordered, **found)


def profiles_of(session: Session) -> dict[str, Profile]:
    """Choose profiles of all budgets from a session that was scored."""
    chosen = {}
    for name, choice in FOUND.items():
        for budget in BUDGETS:
            settings = replace(session.settings, choice=choice, budget=budget)
            chosen[f"{name} {budget}"] = replace(session, settings=settings).choose({})
    return chosen


def crossings(rows: Sequence[HeldOut], target: float) -> list[Crossing]:
    """Group the rows of one prompt by method."""
    curves: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        found = row.name.rpartition(" ")[0]
        name = found if row.pattern is None else f"{row.pattern.name} only"
        data = row.as_data()
        point = {"recall": data["recall"]["mean"], "output_error": data["output_error"]["mean"]}
        curves[name].append({"density": data["density"], "cost": data["cost"], **point})
    return [crossing(name, _frontier(points), target) for name, points in curves.items()]


def _frontier(points: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Keep what no other point beats: the best seed of the family at each density."""
    best, kept = -1.0, []
    for point in sorted(points, key=lambda point: (point["density"], -point["recall"])):
        if point["recall"] > best:
            best = point["recall"]
            kept.append(point)
    return kept


def search(console: Console, loaded: Loaded, tokens: int, work: Path) -> Session:
    """Score the candidates of a search with the command's default prompts."""
    request = Request(out=work, prompts=[NOVEL, SYNTHETIC], tokens=[tokens])
    prompts = prompts_of(console, loaded, request, {})
    session = session_of(console, loaded, prompts, Settings(), work=work)
    score(console, session)
    return session


def measure(console: Console, loaded: Loaded, session: Session, held_out: Prompt) -> list[HeldOut]:
    """Read the held-out prompt with every profile and every uniform pattern."""
    with progress_of_layers(console) as progress:
        task = progress.add_task("held-out", total=2 * session.architecture.layers)
        return check_held_out(
            layer_reader(loaded.model, "auto"),
            [held_out],
            profiles_of(session),
            seeds=SEEDS,
            costs=BUDGETS,
            on_layer=lambda: progress.advance(task),
        )


def table_of(tokens: int, name: str, target: float, found: Sequence[Crossing]) -> Table:
    """Show one length."""
    title = f"{name}, {tokens} tokens: what recall {target:.0%} takes"
    table = Table("method", "density", "cost", "output error", title=title, title_justify="left")
    for one in found:
        cells = (one.density, one.cost, one.output_error)
        shown = ["-" if c is None else f"{c:.1%}" for c in cells[:2]]
        table.add_row(one.method, *shown, "-" if cells[2] is None else f"{cells[2]:.4f}")
    return table


def main(
    out: Annotated[Path, typer.Option(help="JSON to write; scores are kept beside it")],
    lengths: Annotated[str, typer.Option(help="such as 4k,8k")] = "4096,8192",
    recall: Annotated[float, typer.Option(help="target, mean over heads and queries")] = 0.95,
    model: Annotated[str | None, typer.Option(help="as of sparsefill search")] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="a text file; Persuasion if left out")
    ] = None,
) -> None:
    """Compare the densities that a searched profile and uniform patterns need."""
    console = Console(markup=False)
    with clear_errors():
        text = novel() if held_out is None else read_text(held_out, option="--held-out")
        name = "Persuasion" if held_out is None else held_out.name
        loaded = load_model(model, dtype=torch.float32)
        body: dict[str, Any] = {
            "model": loaded.name,
            "recall": recall,
            "budgets": BUDGETS,
            "versions": versions(),
            "lengths": [],
        }
        for tokens in parse_lengths(lengths):
            session = search(console, loaded, tokens, out.with_name(f"scores-{tokens}"))
            prompt = text_prompt(loaded.tokenizer, text, tokens, name=name)
            found = crossings(measure(console, loaded, session, prompt), recall)
            console.print(table_of(tokens, name, recall, found))
            body["lengths"].append(
                {
                    "calibration": [p.provenance() for p in session.prompts],
                    "held_out": prompt.provenance(),
                    "methods": [asdict(one) for one in found],
                }
            )
            write_atomically(out, json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
