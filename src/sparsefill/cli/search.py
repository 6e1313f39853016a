"""`sparsefill search`: find the pattern of every head, and check it on held-out text."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor, nn

from sparsefill.atomic import write_atomically
from sparsefill.cli.inputs import read_text, resolve_device
from sparsefill.data import novel
from sparsefill.environment import versions
from sparsefill.errors import InputError
from sparsefill.integrations.transformers import architecture_of, sparse_prefill
from sparsefill.integrations.transformers.layers import output_projection, softcap_of, window_of
from sparsefill.integrations.transformers.loading import Loaded, load_model, position_limit
from sparsefill.integrations.transformers.run import layer_of
from sparsefill.kernels import choose_backend
from sparsefill.patterns import Dense
from sparsefill.profile import Profile, default_profile
from sparsefill.search import (
    Choice,
    HeldOut,
    Layer,
    Prompt,
    Session,
    Settings,
    check_held_out,
    synthetic_prompt,
    text_prompt,
)
from sparsefill.search.session import Look

SYNTHETIC = "synthetic"
HELD_OUT_SEED = 1_000_003  # added to the seed: other keys and values than any calibration's


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; the fields are the options of the command."""

    out: Path
    model: str | None = None
    prompts: list[str] = field(default_factory=lambda: [SYNTHETIC])
    tokens: list[int] = field(default_factory=lambda: [8192])
    budget: float = 0.3
    objective: Any = "output"
    budgets: Any = "head"
    combine: Any = "mean"
    report: Path | None = None
    held_out: list[str] | None = None
    seed: int = 0
    backend: Any = "auto"
    device: str = "auto"
    trust_remote_code: bool = False

    @property
    def work(self) -> Path:
        """Folder of what a search that was killed leaves to the next one."""
        return self.out.with_name(f"{self.out.name}.search")


def run_search(console: Console, request: Request) -> None:
    """Search, write the profile, and check it on held-out text if that is wanted."""
    choice = Choice(
        objective=request.objective, budgets=request.budgets, combine=request.combine
    )
    settings = Settings(budget=request.budget, choice=choice)
    _check(request)
    texts = {name: read_text(Path(name), option="--prompts") for name in _files(request.prompts)}
    held_texts = {
        name: read_text(Path(name), option="--held-out") for name in _files(request.held_out or [])
    }
    if both := sorted(set(texts.values()) & set(held_texts.values())):
        raise InputError(
            f"--held-out must name other text than --prompts, got {both[0][:30]!r}... in both"
        )
    device = resolve_device(request.device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    # fail now rather than at the first layer
    choose_backend(request.backend, torch.empty(1, 1, 1, 64, dtype=dtype, device=device))
    with console.status("loading the model"):
        loaded = load_model(
            request.model, dtype=dtype, device=device, trust_remote_code=request.trust_remote_code
        )
    prompts = _prompts(loaded, request, request.prompts, texts, seed=request.seed)
    held_out: list[Prompt] = []
    if request.report is not None or request.held_out is not None:
        held_out = _held_out(loaded, request, held_texts)
    _warn_of_length(console, loaded, prompts)
    found = _search(console, request, settings, loaded, prompts)
    console.print(_wins(found))
    found.save(request.out)
    console.print(f"wrote {request.out}: {_summary(found)}", soft_wrap=True)
    if held_out:
        _report(console, request, loaded, found, held_out)
    request_work = request.work
    _remove(request_work)


def _files(names: list[str]) -> list[str]:
    return [name for name in names if name != SYNTHETIC]


def _check(request: Request) -> None:
    """Refuse, before any work, what could only fail later."""
    if request.out.is_dir():
        raise InputError(f"--out must be a file, got the folder {request.out}")
    for option, path in (("--out", request.out.absolute().parent), ("--report", request.report)):
        if path is None:
            continue
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(f"{option} must be in a folder that can be written, got {there}")


def _prompts(
    loaded: Loaded, request: Request, names: list[str], texts: dict[str, str], *, seed: int
) -> list[Prompt]:
    """Make every prompt at every length, the longest first."""
    made = []
    for tokens in sorted(set(request.tokens), reverse=True):
        for name in names:
            if name == SYNTHETIC:
                made.append(synthetic_prompt(loaded.tokenizer, tokens, seed=seed))
            else:
                title = Path(name).name
                made.append(text_prompt(loaded.tokenizer, texts[name], tokens, name=title))
    return made


def _held_out(loaded: Loaded, request: Request, texts: dict[str, str]) -> list[Prompt]:
    """Make the held-out prompts, at the longest length and at half of it."""
    longest = max(request.tokens)
    made = []
    for tokens in (longest, longest // 2):
        for name in request.held_out or [""]:
            if name == SYNTHETIC:
                seed = request.seed + HELD_OUT_SEED
                made.append(synthetic_prompt(loaded.tokenizer, tokens, seed=seed))
            else:
                text, title = texts.get(name), Path(name).name or "Persuasion"
                text = novel() if text is None else text
                made.append(text_prompt(loaded.tokenizer, text, tokens, name=title))
    return made


def _warn_of_length(console: Console, loaded: Loaded, prompts: list[Prompt]) -> None:
    limit, longest = position_limit(loaded.model), prompts[0].tokens
    if limit is not None and longest > limit:
        console.print(
            f"warning: {longest} tokens exceed the {limit} positions that {loaded.name} was made"
            " for: what heads attend to beyond them is not to be trusted",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _search(
    console: Console, request: Request, settings: Settings, loaded: Loaded, prompts: list[Prompt]
) -> Profile:
    config: Any = loaded.model.config
    weights = _weights_sha256(loaded.model)
    session = Session(
        read=_reader(loaded.model, request.backend),
        architecture=architecture_of(config.get_text_config()),
        prompts=prompts,
        settings=settings,
        identity={"model": loaded.name, "weights": weights, "versions": versions()},
        work=request.work,
        backend=request.backend,
    )
    kept = session.begin()
    if kept:
        console.print(f"going on where {request.work} ends: {kept} of {session.total} layers")
    with _progress(console) as progress:
        task = progress.add_task("search", total=session.total, completed=kept)
        session.score(on_layer=lambda: progress.advance(task))
    return session.choose(
        {"model": loaded.name, "seed": request.seed, "versions": versions()}
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("layers"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _reader(model: nn.Module, backend: Any):
    """Return what reads a prompt densely and shows each layer's queries, keys and values."""

    def read(ids: Int[Tensor, "1 n"], look: Look) -> None:
        def show(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
            window = window_of(module)
            look(
                Layer(
                    number=layer_of(module),
                    q=q,
                    k=k,
                    v=v,
                    scale=scale,
                    projection=output_projection(module, h=q.shape[1], d=v.shape[3]),
                    softcap=softcap_of(module),
                    windowed=window is not None and window < k.shape[2],
                )
            )

        call: Any = model
        device = next(model.parameters()).device
        dense = sparse_prefill(model, Dense(), backend=backend, record=False, on_qkv=show)
        with torch.inference_mode(), dense:
            call(ids.to(device), logits_to_keep=1, use_cache=False)

    return read


def _weights_sha256(model: nn.Module) -> str:
    """Hash the first values of every weight: enough to tell models apart."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        values = weight.detach().flatten()[:64].float().cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def _remove(work: Path) -> None:
    import shutil

    shutil.rmtree(work, ignore_errors=True)


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


def _report(
    console: Console, request: Request, loaded: Loaded, found: Profile, held_out: list[Prompt]
) -> None:
    """Check the profile on held-out text, show the table, and write the report."""
    profiles = {"found": found, "default": default_profile(found.architecture)}
    steps = 2 * found.architecture.layers * len(held_out)
    with _progress(console) as progress:
        task = progress.add_task("held-out", total=steps)
        rows = check_held_out(
            _reader(loaded.model, request.backend),
            held_out,
            profiles,
            backend=request.backend,
            on_layer=lambda: progress.advance(task),
        )
    for prompt in held_out:
        console.print(_table([row for row in rows if row.prompt is prompt]))
    if request.report is None:
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
    path = request.report / "report.json"
    write_atomically(path, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    console.print(f"wrote {path}")


def _table(rows: list[HeldOut]) -> Table:
    prompt = rows[0].prompt
    table = Table(
        "pattern", "cost", "density", "recall", "output error", "layer error", box=None,
        pad_edge=False, title=f"{prompt.name}, {prompt.tokens} tokens", title_justify="left",
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
