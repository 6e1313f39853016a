"""The tasks, one family each: what a user names, and what that means."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from sparsefill.errors import InputError
from sparsefill.evals.task import Measurable

FAMILIES = {  # family: (module, the name of its tasks there)
    "ruler": ("ruler", "RULER"),
    "infinitebench": ("infinitebench", "INFINITEBENCH"),
    "needle": ("needle", "NEEDLE"),
    "copying": ("copying", "COPYING"),
    "perplexity": ("perplexity", "PERPLEXITY"),
    "fidelity": ("fidelity", "FIDELITY"),
}


def family(name: str) -> dict[str, Measurable]:
    """Return the tasks of a family, by name.

    Raises:
        InputError: no such family.
    """
    if name not in FAMILIES:
        raise InputError(f"there are no tasks {name!r}; use {', '.join(FAMILIES)}, or one of them")
    module, tasks = FAMILIES[name]
    return {task.name: task for task in getattr(import_module(f"{__name__}.{module}"), tasks)}


def tasks_of(names: Sequence[str], *, data: Path | None) -> tuple[list[Measurable], list[str]]:
    """Find tasks by `family/task`, or all of a family.

    Returns:
        the tasks; and the names of those of a whole family that are left out because they
        need files of `data`.

    Raises:
        InputError: no such task, or one that was named needs files.
    """
    found: dict[str, Measurable] = {}
    left_out = []
    for name in names:
        every = family(name.partition("/")[0])
        if "/" in name and name not in every:
            raise InputError(f"there is no task {name!r}; use one of {', '.join(every)}")
        for task in [every[name]] if "/" in name else every.values():
            if data is None and not getattr(task, "offline", True):
                if "/" in name:
                    raise InputError(
                        f"{name} needs the files that its benchmark publishes; pass --data DIR"
                    )
                left_out.append(task.name)
            else:
                found[task.name] = task
    if not found:
        raise InputError("no task is left to run; name one that needs no files, or pass --data")
    return list(found.values()), left_out
