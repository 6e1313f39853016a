"""The prefill engine on the command line: its options, plan, progress and report."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from jaxtyping import Int
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor, nn

from sparsefill.engine import RECALL_SAMPLES, needing_transformers, prefill
from sparsefill.environment import peak_bytes
from sparsefill.errors import InputError
from sparsefill.integrations.transformers.reading import Reading, greedy_tokens
from sparsefill.profile import Profile

if TYPE_CHECKING:
    from sparsefill.engine.plan import Plan

INTERRUPTED = 130  # exit code of a program that Ctrl-C ends


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What the user asked of the engine; None where nothing was said."""

    kv: str | None
    order: str | None
    chunk: int | None
    max_memory: str | None
    save_kv: Path | None
    resume: bool

    @property
    def asked(self) -> bool:
        """Tell whether any option was given, and the engine reads."""
        given = (self.kv, self.order, self.chunk, self.max_memory, self.save_kv)
        return self.resume or any(own is not None for own in given)

    def check(self) -> None:
        """Refuse, before any work, what could only fail later.

        Raises:
            InputError: an option is out of range, or goes with one that is missing.
            UnsupportedError: the engine cannot run with what is installed.
        """
        if self.save_kv is None and (self.kv == "disk" or self.resume):
            why = "--resume" if self.resume else "--kv disk"
            raise InputError(f"{why} needs a folder for its files, got none; pass --save-kv")
        with needing_transformers():  # who does not ask for the engine need not have it
            from sparsefill.engine.reading import Request
        Request(**self.arguments(), logits_to_keep=1, backend="auto", min_length=None, record=True)

    def arguments(self) -> dict[str, Any]:
        """Return what was asked as arguments of `prefill`."""
        return {
            "kv": self.kv or "keep",
            "order": self.order or "layers",
            "chunk": self.chunk,
            "max_memory": None if self.max_memory is None else parse_size(self.max_memory),
            "save_kv": self.save_kv,
            "resume": self.resume,
            "recall_samples": 0 if self.order == "chunks" else RECALL_SAMPLES,
        }


def parse_size(text: str) -> int:
    """Read a number of bytes such as 8GiB, 512M or 1.5e9.

    Example:
        >>> parse_size("8GiB"), parse_size("1.5 GB"), parse_size("512m"), parse_size("100")
        (8589934592, 1500000000, 536870912, 100)
    """
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(ib|b|)", text.strip().lower())
    try:
        if found is None:
            raise ValueError
        number, unit, suffix = found.groups()
        power = 0 if not unit else "kmgt".index(unit) + 1
        size = int(float(number) * (1000 if suffix == "b" else 1024) ** power)
        if size < 1:
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(
            f"--max-memory must be a size such as 8GiB, 500MiB or bytes, got {text!r}"
        ) from None
    return size


def read_with_engine(
    console: Console,
    model: nn.Module,
    ids: Int[Tensor, "1 n"],
    profile: Profile,
    options: EngineOptions,
    *,
    backend: Any,
    min_length: int | None,
    positions: int,
    new_tokens: int,
) -> tuple[Reading, dict[str, Any]]:
    """Read the prompt with the engine, the plan shown first, then progress.

    Returns:
        The reading, and what the report says of the engine.
    """
    columns = (
        TextColumn("sparse "),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    try:
        with Progress(*columns, console=console) as progress:
            watch = _Watch(
                progress, progress.add_task("sparse", speed="", total=None), ids.shape[1]
            )
            read = prefill(
                model,
                ids,
                profile,
                **options.arguments(),
                logits_to_keep=positions,
                backend=backend,
                min_length=min_length,
                on_plan=lambda plan: console.print(plan_table(plan)),
                on_progress=watch.step,
            )
            int(read.logits[0, -1].argmax())  # the first new token is known
            ttft_s = watch.seconds() - read.run.recall_s
    except KeyboardInterrupt:
        console.print(_how_to_go_on(options), soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    measured = peak_bytes()
    logits = read.logits[0].float()
    tokens = list(islice(greedy_tokens(model, read.cache, logits), new_tokens))
    reading = Reading(ttft_s=ttft_s, logits=logits, tokens=tokens, run=read.run)
    layers, asked = len(read.run.profile.layers), options.arguments()
    return reading, {
        "kv": read.plan.kv,
        "order": read.plan.order,
        "chunk": read.plan.chunk,
        "resumed": options.resume,
        **watch.read_now(layers if read.plan.order == "layers" else None),
        "recall_row_blocks": asked["recall_samples"],
        "plan_bytes": {**read.plan.parts, "peak": read.plan.peak},
        "peak_bytes": measured,
    }


class _Watch:
    """Shows how far a prefill is, and how many tokens pass in a second."""

    def __init__(self, progress: Progress, task: TaskID, tokens: int) -> None:
        self.progress, self.task, self.tokens = progress, task, tokens
        self.before: int | None = None  # steps that an earlier run did
        self.total = 0
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Count the seconds since the start."""
        return time.perf_counter() - self.started

    def step(self, done: int, total: int) -> None:
        """Show that so many of the steps are done."""
        if self.before is None:
            self.before, self.total = done - 1, total
        speed = self.tokens * (done - self.before) / total / self.seconds()
        self.progress.update(self.task, completed=done, total=total, speed=f"{speed:,.0f} tokens/s")

    def read_now(self, layers: int | None) -> dict[str, int]:
        """Say how much of the prompt was read since the start.

        Args:
            layers: of the model, if all chunks pass a layer before the next one.
        """
        steps = self.total - (self.before or 0)
        if layers is None:
            return {"chunks": self.total, "chunks_read": steps}
        return {"layers": layers, "layers_read": steps * layers // self.total}


def is_partial(engine: dict[str, Any]) -> bool:
    """Tell from the engine's report whether some of the prompt was read by an earlier run."""
    unit = engine["order"]
    return engine[f"{unit}_read"] < engine[unit]


def _how_to_go_on(options: EngineOptions) -> str:
    """Say how an interrupted prefill is resumed."""
    if options.save_kv is None:
        return "stopped; nothing was saved: with --save-kv DIR a prefill can be resumed"
    from sparsefill.engine.saved import MANIFEST

    if not (options.save_kv / MANIFEST).is_file():
        return f"stopped before anything was saved to {options.save_kv}; begin again"
    return f"stopped; the same command with --resume goes on with what {options.save_kv} holds"


def plan_table(plan: Plan) -> Table:
    """Lay a plan out for people."""
    table = Table(
        title=f"memory expected: kv {plan.kv}, order {plan.order}, chunks of {plan.chunk}",
        title_justify="left",
        show_header=False,
    )
    table.add_column("")
    table.add_column("", justify="right")
    *parts, peak = plan.rows()
    for name, size in parts:
        if size:
            table.add_row(name, _size(size))
    table.add_section()
    table.add_row(peak[0], _size(peak[1]))
    return table


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
