"""`sparsefill info`: versions, machine, and which backend is used and why."""

from __future__ import annotations

from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table

from sparsefill import abi
from sparsefill.cost import COSTS, break_even
from sparsefill.environment import describe_environment
from sparsefill.kernels import AUTO_ORDER, BACKENDS, choose_backend
from sparsefill.native import missing_reason
from sparsefill.patterns import PATTERNS, Dense
from sparsefill.profile import DEFAULT_PATTERN, NOT_SEARCHED, Profile, shipped_profiles


def show_info(console: Console) -> None:
    """Print what a bug report or a puzzled user needs to know."""
    environment = describe_environment()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, version in environment["versions"].items():
        table.add_row(name, version)
    table.add_row("platform", environment["platform"])
    table.add_row("CPU", environment["cpu"])
    table.add_row("CPU features", ", ".join(environment["cpu_features"]) or "none that matter")
    table.add_row("threads", str(environment["threads"]))
    if environment["memory_bytes"]:
        table.add_row("memory", f"{environment['memory_bytes'] / 2**30:.1f} GiB")
    for gpu in environment["accelerators"]:
        gigabytes = gpu["memory_bytes"] / 2**30
        table.add_row("GPU", f"{gpu['name']}, {gigabytes:.0f} GiB, capability {gpu['capability']}")
    if not environment["accelerators"]:
        table.add_row("GPU", "none that torch sees")
    by_origin: dict[bool, list[str]] = {True: [], False: []}
    for name in shipped_profiles():
        by_origin[Profile.load(name).provenance.get("origin") != NOT_SEARCHED].append(name)
    table.add_row("profiles", ", ".join(by_origin[True]) or "none")
    table.add_row(f"profiles, {NOT_SEARCHED}", ", ".join(by_origin[False]) or "none")
    table.add_row("without a profile", repr(DEFAULT_PATTERN))
    table.add_row("compiled kernels", _compiled())
    console.print(table)
    console.print()
    query = torch.empty(1, 1, 1, 64)
    chosen = choose_backend("auto", query)
    backends = Table("backend", "what it is", "used by backend='auto'", box=None, pad_edge=False)
    for name, backend in BACKENDS.items():
        if name == chosen:
            reason = "yes: the fastest one that serves here"
        elif (refusal := backend.refusal(query)) is not None:
            reason = f"no: {refusal}"
        elif name in AUTO_ORDER:
            reason = f"no: {name} comes after {chosen}"
        else:
            reason = "no: only when asked for by name"
        backends.add_row(name, backend.about, reason)
    console.print(backends)
    console.print()
    console.print(_break_even(chosen))


def _compiled() -> str:
    """Say which instruction sets the compiled kernels have, or why there are none."""
    if (reason := missing_reason()) is not None:
        return f"none: {reason}; the portable backend (torch) is used instead"
    sets = abi.instruction_sets()
    used, *others = [name for name, available in sets.items() if available]
    lacking = [name for name, available in sets.items() if not available]
    text = f"{used} in use"
    if abi.shared_threads() is not None:
        text += " on torch's own threads"
    text += f", also {', '.join(others)}" if others else ""
    return text + (f"; this CPU lacks {', '.join(lacking)}" if lacking else "")


def _break_even(backend: str) -> Table:
    """Tabulate the prompt lengths from which each family is predicted to beat dense."""
    costs = COSTS[backend]
    table = Table("pattern", "sparse from", box=None, pad_edge=False, title_justify="left")
    table.title = f"Predicted break-even of {backend}; shorter prompts stay dense"
    table.caption = "In tiles of dense work: " + ", ".join(
        f"{name.replace('_', ' ')} {value:g}" for name, value in asdict(costs).items()
    )
    table.caption_justify = "left"
    for pattern in (DEFAULT_PATTERN, *(kind() for kind in PATTERNS.values() if kind is not Dense)):
        length = break_even(pattern, backend)
        table.add_row(repr(pattern), "never" if length is None else f"{length:,} tokens")
    return table
