"""`sparsefill eval`: what sparse attention costs in answers, sample by sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sparsefill.cli.inputs import (
    ModelOptions,
    beyond_positions,
    load_to_read,
    profile_to_read,
    resolve_device,
    resolve_dtype,
    warn,
)
from sparsefill.environment import describe_environment
from sparsefill.evals.folder import hold
from sparsefill.evals.haystack import Haystack, load_haystack
from sparsefill.evals.ledger import Ledger
from sparsefill.evals.manifest import Manifest
from sparsefill.evals.methods import FULL, method_of
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.rows import Key, head_of
from sparsefill.evals.runner import Plan, run
from sparsefill.evals.task import Making, Measurable, Outcome
from sparsefill.evals.tasks import tasks_of
from sparsefill.evals.tasks.ruler.words import word_list
from sparsefill.integrations.transformers.answering import TransformersReader
from sparsefill.integrations.transformers.identity import weights_sha256
from sparsefill.profile import Profile
from sparsefill.search import synthetic_prompt


@dataclass(frozen=True, kw_only=True)
class Request(ModelOptions):
    """What the user asked for; the fields are the options of the command."""

    tasks: Sequence[str]
    out: Path
    methods: Sequence[str] = (FULL, "minference")
    lengths: Sequence[int] = (4096,)
    samples: int = 25
    profile: str | None = None
    template: str = "base"
    seed: int = 42
    haystack: Path | None = None
    data: Path | None = None
    rules: str = "official"
    one_layout: bool = False
    dtype: str = "auto"
    min_length: int = 1
    recall: bool = False


def run_eval(console: Console, request: Request) -> None:
    """Measure every sample by every method that the folder lacks, and show the means."""
    tasks, left_out = tasks_of(request.tasks, data=request.data, rules=request.rules)
    haystack = load_haystack(request.haystack)
    given = None if request.profile is None else Profile.load(request.profile)
    for name in left_out:
        console.print(f"left out: {name}, whose files only --data DIR can give")
    with hold(request.out):  # before a second process loads a second model
        _measure(console, request, tasks, haystack, given)


def _measure(
    console: Console,
    request: Request,
    tasks: Sequence[Measurable],
    haystack: Haystack,
    given: Profile | None,
) -> None:
    device = resolve_device(request.device)
    dtype = resolve_dtype(request.dtype, device)
    loaded = load_to_read(console, request, dtype=dtype, device=device)
    prompter = Prompter(tokenizer=loaded.tokenizer, template=request.template)
    profile = profile_to_read(loaded, given)
    asked = [method_of(name, profile) for name in request.methods]
    methods = list({method.name: method for method in asked}.values())
    lengths = sorted(set(request.lengths))
    for method in methods:
        if method.keys is not None and method.keys >= lengths[0]:
            warn(
                console,
                f"{method.name} keeps {method.keys} keys of each head: prompts of so many tokens or"
                " fewer are answered with all of theirs, as without +snapkv",
            )
    beyond = "it runs, but its answers say little about the methods"
    if remark := beyond_positions(loaded, lengths[-1], beyond):
        warn(console, remark)
    plan = Plan(tasks=tasks, methods=methods, lengths=lengths, samples=request.samples)
    manifest = Manifest(
        tasks=tuple(task.name for task in tasks),
        model=loaded.name,
        weights=weights_sha256(loaded.model),
        template=request.template,
        seed=request.seed,
        samples=request.samples,
        lengths=tuple(lengths),
        methods={method.name: method.describe() for method in methods},
        haystack=haystack.provenance(),
        word_list=_word_list(tasks),
        rules=request.rules,
        one_layout=request.one_layout,
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        backend=request.backend,
        min_length=request.min_length,
        recall=request.recall,
    )
    ledger = Ledger(request.out, manifest, describe_environment())

    def other(tokens: int) -> torch.Tensor:  # retrieval, as the paper calibrates
        ids = synthetic_prompt(loaded.tokenizer, tokens, seed=request.seed).ids
        return ids.to(device)

    reader = TransformersReader(
        model=loaded.model,
        backend=request.backend,
        min_length=request.min_length,
        measure_recall=request.recall,
        other=other,
    )

    def making(task: str, length: int, index: int) -> Making:
        return Making(
            task=task,
            prompter=prompter,
            length=length,
            index=index,
            seed=request.seed,
            haystack=haystack,
            data=request.data,
            one_layout=request.one_layout,
        )

    with console.status("making a sample of each task"):  # what cannot be made fails here
        for task in tasks:
            for length in {lengths[0], lengths[-1]}:
                task.prepare(making(task.name, length, request.samples - 1))
    with _Watch(console, plan) as watch:
        run(plan, reader, making, ledger, watch.note)
    if watch.scores:
        console.print(watch.table())
    else:
        console.print("every sample was measured before")
    console.print(f"wrote {request.out}; `sparsefill report {request.out}` makes a page of it")


def _word_list(tasks: Sequence[Measurable]) -> dict[str, Any]:
    """Describe the words that RULER draws from; empty where it is not run."""
    drawn = any(task.name.startswith("ruler/") for task in tasks)
    return word_list().provenance() if drawn else {}


class _Watch:
    """Shows how far a run is, and what the methods score so far."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self.plan = plan
        self.scores: dict[tuple[str, int, str], list[float]] = defaultdict(list)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self.bar = self.progress.add_task("reading", total=plan.work)

    def __enter__(self) -> _Watch:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def note(self, key: Key, outcome: Outcome | None) -> None:
        """Move the bar on, and show the mean score of the method so far."""
        if outcome is not None:
            for name, value in figures(outcome).items():
                self.scores[f"{key.task} {name}".strip(), key.length, key.method].append(value)
        self.progress.update(
            self.bar, advance=key.length, description=f"{key.task} {key.length} {key.method}"
        )

    def table(self) -> Table:
        """Lay out the means of what was measured now, one line each."""
        table = Table(title="means of what was measured now", title_justify="left")
        table.add_column("task", overflow="fold")
        table.add_column("length", justify="right", no_wrap=True)
        table.add_column("method", overflow="fold")
        table.add_column("mean", justify="right", no_wrap=True)
        table.add_column("n", justify="right", no_wrap=True)
        order = {method.name: place for place, method in enumerate(self.plan.methods)}
        for task, length, method in sorted(self.scores, key=lambda own: (*own[:2], order[own[2]])):
            own = self.scores[task, length, method]
            mean = f"{sum(own) / len(own):.4g}"
            table.add_row(task, str(length), method, mean, str(len(own)))
        return table


def figures(outcome: Outcome) -> dict[str, float]:
    """List what a row says in numbers: its score, or else its values."""
    if outcome.score is not None:
        return {"": 100 * outcome.score}
    return {name: value for name, value in outcome.values.items() if head_of(name) is None}
