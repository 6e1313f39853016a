"""The held-out check of a search: a table for each text, and report.json."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from sparsefill.atomic import write_atomically
from sparsefill.cli.layers import layer_reader, progress_of_layers
from sparsefill.integrations.transformers.loading import Loaded
from sparsefill.profile import Profile, default_profile
from sparsefill.search import HeldOut, Prompt, check_held_out, fix_slashes
from sparsefill.static import StaticIndices


def report_held_out(
    console: Console,
    loaded: Loaded,
    found: Profile,
    static: StaticIndices,
    held_out: list[Prompt],
    *,
    backend: Any,
    folder: Path | None,
) -> None:
    """Check the profile on held-out text, show the table, and write the report.

    Args:
        static: indices of the profile on its calibration prompt.
    """
    profiles = {"found": found}
    fixed = fix_slashes(found, static)
    if fixed.layers != found.layers:
        profiles["found, slashes fixed"] = fixed
    profiles["default"] = default_profile(found.architecture)
    steps = 2 * found.architecture.layers * len(held_out)
    with progress_of_layers(console) as progress:
        task = progress.add_task("held-out", total=steps)
        rows = check_held_out(
            layer_reader(loaded.model, backend),
            held_out,
            profiles,
            static={"found, static indices": static},
            backend=backend,
            on_layer=lambda: progress.advance(task),
        )
    for prompt in held_out:
        console.print(_table([row for row in rows if row.prompt is prompt]))
    if folder is None:
        return
    body = {
        "model": loaded.name,
        "profile": found.provenance,
        "heads": dict(Counter(p.name for layer in found.layers for p in layer)),
        "held_out": [
            {**prompt.provenance(), "rows": [r.as_data() for r in rows if r.prompt is prompt]}
            for prompt in held_out
        ],
    }
    path = folder / "report.json"
    write_atomically(path, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    console.print(f"wrote {path}")


def _table(rows: list[HeldOut]) -> Table:
    prompt = rows[0].prompt
    table = Table(
        Column("pattern", overflow="fold"),
        "cost",
        "density",
        "recall",
        "output error",
        "layer error",
        box=None,
        pad_edge=False,
        title=f"{prompt.name}, {prompt.tokens} tokens",
        title_justify="left",
    )
    for row in rows:
        mean = row.means
        table.add_row(
            row.name,
            f"{mean['cost']:.1%}",
            f"{mean['density']:.1%}",
            f"{1 - mean['lost']:.2%}",
            f"{mean['error']:.4f}",
            f"{mean['layer']:.5f}",
        )
    return table
