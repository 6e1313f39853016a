"""`sparsefill info`: versions, machine, and which backend is used and why."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from sparsefill.environment import describe_environment
from sparsefill.kernels import AUTO_ORDER, BACKENDS, choose_backend
from sparsefill.profile import DEFAULT_PATTERN, shipped_profiles


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
    table.add_row("profiles", ", ".join(shipped_profiles()) or "none")
    table.add_row("without a profile", repr(DEFAULT_PATTERN))
    console.print(table)
    console.print()
    chosen = choose_backend("auto", torch.empty(1, 1, 1, 64))
    backends = Table("backend", "what it is", "used by backend='auto'", box=None, pad_edge=False)
    for name, backend in BACKENDS.items():
        if name == chosen:
            reason = "yes: the fastest one that serves here"
        elif name in AUTO_ORDER:
            reason = f"no: {name} comes after {chosen}"
        else:
            reason = "no: only when asked for by name"
        backends.add_row(name, backend.about, reason)
    console.print(backends)
