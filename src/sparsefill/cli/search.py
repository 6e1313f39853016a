"""`sparsefill search`: find the pattern of every head, and check it on held-out text."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sparsefill.cli.held_out import report_held_out
from sparsefill.cli.inputs import (
    ModelOptions,
    beyond_positions,
    load_to_read,
    read_text,
    resolve_device,
    warn,
)
from sparsefill.cli.layers import layer_reader, progress_of_layers
from sparsefill.data import novel
from sparsefill.environment import versions
from sparsefill.errors import InputError
from sparsefill.integrations.transformers import architecture_of, freeze
from sparsefill.integrations.transformers.identity import weights_sha256
from sparsefill.integrations.transformers.loading import Loaded
from sparsefill.profile import Profile
from sparsefill.search import (
    Choice,
    Prompt,
    Session,
    Settings,
    fix_slashes,
    synthetic_prompt,
    text_prompt,
)

SYNTHETIC, NOVEL = "synthetic", "novel"
HELD_OUT_SEED = 1_000_003  # added to the seed: other keys and values than any calibration's


@dataclass(frozen=True, kw_only=True)
class Request(ModelOptions):
    """What the user asked for; the fields are the options of the command."""

    out: Path
    prompts: list[str] | None = None
    tokens: list[int] = field(default_factory=lambda: [8192])
    budget: float = 0.3
    objective: str = "output"
    budgets: str = "model"
    combine: str = "mean"
    slashes: str = "online"
    report: Path | None = None
    held_out: list[str] | None = None
    seed: int = 0

    @property
    def work(self) -> Path:
        """Folder of what a search that was killed leaves to the next one."""
        return self.out.with_name(f"{self.out.name}.search")


def run_search(console: Console, request: Request) -> None:
    """Search, write the profile, and check it on held-out text if that is wanted."""
    choice = Choice(objective=request.objective, budgets=request.budgets, combine=request.combine)
    settings = Settings(budget=request.budget, choice=choice)
    _check(request)
    texts = {
        name: read_text(Path(name), option="--prompts") for name in _files(request.prompts or [])
    }
    held_texts = {
        name: read_text(Path(name), option="--held-out") for name in _files(request.held_out or [])
    }
    device = resolve_device(request.device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    loaded = load_to_read(console, request, dtype=dtype, device=device)
    prompts = prompts_of(console, loaded, request, texts)
    held_out: list[Prompt] = []
    if request.report is not None or request.held_out is not None:
        held_out = _held_out(loaded, request, held_texts)
        _require_other_text(prompts, held_out)
    beyond = "what heads attend to beyond them is not to be trusted"
    if remark := beyond_positions(loaded, prompts[0].tokens, beyond):
        warn(console, remark)
    session = session_of(
        console, loaded, prompts, settings, work=request.work, backend=request.backend
    )
    score(console, session)
    found = session.choose({"model": loaded.name, "seed": request.seed, "versions": versions()})
    static = None
    if held_out or request.slashes == "fixed":
        with console.status("keeping the cells of the first prompt"):
            static = freeze(loaded.model, found, prompts[0].ids, backend=request.backend)
        if request.slashes == "fixed":
            found = fix_slashes(found, static)
    console.print(_wins(found))
    _warn_of_cost(console, found)
    found.save(request.out)
    console.print(f"wrote {request.out}: {_summary(found)}", soft_wrap=True)
    if static is not None and held_out:
        report_held_out(
            console,
            loaded,
            found,
            static,
            held_out,
            backend=request.backend,
            folder=request.report,
        )
    session.finish()


def _files(names: list[str]) -> list[str]:
    return [name for name in names if name not in (SYNTHETIC, NOVEL)]


def _check(request: Request) -> None:
    """Refuse, before any work, what could only fail later."""
    if request.slashes not in ("online", "fixed"):
        raise InputError(f"slashes must be one of online, fixed, got {request.slashes!r}")
    if request.out.is_dir():
        raise InputError(f"--out must be a file, got the folder {request.out}")
    for option, path in (("--out", request.out.absolute().parent), ("--report", request.report)):
        if path is None:
            continue
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(f"{option} must be in a folder that can be written, got {there}")


def prompts_of(
    console: Console, loaded: Loaded, request: Request, texts: dict[str, str]
) -> list[Prompt]:
    """Make every prompt at every length, the longest first.

    Args:
        texts: what the files of `request.prompts` hold, by their names there.

    Raises:
        InputError: a prompt that was asked for has too few tokens.
    """
    made = []
    for tokens in sorted(set(request.tokens), reverse=True):
        for name in request.prompts or [NOVEL, SYNTHETIC]:
            if name == SYNTHETIC:
                made.append(synthetic_prompt(loaded.tokenizer, tokens, seed=request.seed))
                continue
            text, title = texts.get(name), _title(name)
            if name == NOVEL:
                text, title = novel("northanger-abbey"), "Northanger Abbey"
            try:
                made.append(text_prompt(loaded.tokenizer, text or "", tokens, name=title))
            except InputError as error:
                if request.prompts:
                    raise
                warn(console, f"{error}: searching on synthetic prompts alone")
    return made


def _title(name: str) -> str:
    """Return a file's name as text that can be written."""
    return Path(name).name.encode("utf-8", "backslashreplace").decode("utf-8")


def _held_out(loaded: Loaded, request: Request, texts: dict[str, str]) -> list[Prompt]:
    """Make the held-out prompts, at the longest length and at half of it."""
    longest = max(request.tokens)
    made = []
    for tokens in (longest, longest // 2):
        for name in request.held_out or [NOVEL]:
            if name == SYNTHETIC:
                seed = request.seed + HELD_OUT_SEED
                made.append(synthetic_prompt(loaded.tokenizer, tokens, seed=seed))
            else:
                text, title = texts.get(name), _title(name)
                if text is None:
                    text, title = novel(), "Persuasion"
                made.append(text_prompt(loaded.tokenizer, text, tokens, name=title))
    return made


def _require_other_text(prompts: list[Prompt], held_out: list[Prompt]) -> None:
    for held in held_out:
        for prompt in prompts:
            shared = min(held.tokens, prompt.tokens)
            if torch.equal(held.ids[:, :shared], prompt.ids[:, :shared]):
                raise InputError(
                    f"--held-out must name other text than --prompts, got {prompt.name} in both"
                )


def _warn_of_cost(console: Console, found: Profile) -> None:
    cost, budget = found.provenance["calibration"]["cost"], found.provenance["budget"]
    if cost > budget * 1.05:  # alignment is not quite exact
        warn(
            console,
            f"the cheapest candidates cost {cost:.1%} of dense attention at this length,"
            f" more than the budget of {budget:.1%}; search on more --tokens",
        )


def session_of(
    console: Console,
    loaded: Loaded,
    prompts: list[Prompt],
    settings: Settings,
    *,
    work: Path,
    backend: Any = "auto",
) -> Session:
    """Set up the search of a model, told from others by its weights.

    Args:
        work: folder of the kept scores.
    """
    config: Any = loaded.model.config
    with console.status("hashing the weights"):
        weights = weights_sha256(loaded.model)
    identity = {"model": loaded.name, "weights": weights, "versions": versions()}
    return Session(
        read=layer_reader(loaded.model, backend),
        architecture=architecture_of(config.get_text_config()),
        prompts=prompts,
        settings=settings,
        identity=identity,
        work=work,
        backend=backend,
    )


def score(console: Console, session: Session) -> None:
    """Score what no earlier run did, with a progress bar.

    Raises:
        InputError: the work folder is of another search.
    """
    kept = session.begin()
    if kept:
        console.print(f"going on with {kept} of {session.total} layers from {session.work}")
    with progress_of_layers(console) as progress:
        task = progress.add_task("search", total=session.total, completed=kept)
        session.score(on_layer=lambda: progress.advance(task))


def _summary(profile: Profile) -> str:
    said = profile.provenance["calibration"]
    return (
        f"cost {said['cost']:.1%} of dense, density {said['density']:.1%},"
        f" recall {said['recall']:.2%} on the calibration prompts"
    )


def _wins(profile: Profile) -> Table:
    table = Table("pattern", "heads", box=None, pad_edge=False)
    counts = Counter(pattern.name for layer in profile.layers for pattern in layer)
    for name, heads in counts.most_common():
        table.add_row(name, str(heads))
    return table
