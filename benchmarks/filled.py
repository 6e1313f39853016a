"""How full the samples of each task are: tokens of prompt and answer, as a share of the length.

    python -m benchmarks.filled --lengths 2k:1024k --out rows.json

Needs a tokenizer and no weights; also tells how long a sample takes to make.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.arguments import parse_lengths
from sparsefill.atomic import write_atomically
from sparsefill.environment import describe_environment
from sparsefill.evals.haystack import load_haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.task import Making, Task
from sparsefill.evals.tasks import tasks_of

FAMILIES = ("ruler", "infinitebench", "needle")


def main(
    out: Annotated[Path, typer.Option(help="JSON to write")] = Path("filled.json"),
    lengths: Annotated[str, typer.Option(help="comma list or doubling ranges")] = "2k:1024k",
    tokenizer: Annotated[str, typer.Option(help="id or folder; the embedded model's")] = "",
    tasks: Annotated[str, typer.Option(help="comma list of families or tasks")] = ",".join(
        FAMILIES
    ),
    samples: Annotated[int, typer.Option(min=1, help="of each task and length")] = 1,
) -> None:
    """Make samples of every task that needs no file, and count their tokens."""
    from transformers import AutoTokenizer

    from sparsefill.integrations.transformers.loading import embedded_model

    console = Console(markup=False)
    named = tokenizer or "the embedded model's"
    prompter = Prompter(tokenizer=AutoTokenizer.from_pretrained(tokenizer or embedded_model()))
    every = [task for task in tasks_of(tasks.split(","))[0] if isinstance(task, Task)]
    sizes, haystack = parse_lengths(lengths), load_haystack()
    cells = [(task, length, i) for length in sizes for task in every for i in range(samples)]
    rows, machine = [], describe_environment()
    for task, length, index in track(cells, description="samples", console=console):
        made = Making(
            task=task.name,
            prompter=prompter,
            length=length,
            index=index,
            seed=42,
            haystack=haystack,
        )
        started = time.perf_counter()
        sample = task.sample(made)
        took_s = time.perf_counter() - started
        tokens = prompter.count(sample) + sample.new_tokens
        rows.append(
            {
                "task": task.name,
                "length": length,
                "index": index,
                "tokens": tokens,
                "fill": tokens / length,
                "made_s": took_s,
            }
        )
        body = {"tokenizer": named, "environment": machine, "rows": rows}
        write_atomically(out, json.dumps(body, indent=1) + "\n")
    table = Table("task", *(f"{length:,}" for length in sizes))
    for task in every:
        fills = [
            min(row["fill"] for row in rows if (row["task"], row["length"]) == (task.name, length))
            for length in sizes
        ]
        table.add_row(task.name, *(f"{fill:.2%}" for fill in fills))
    console.print(table)
    console.print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
