"""The tasks, one family each: what a user names, and what that means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsefill.errors import InputError
from sparsefill.evals.task import Measurable
from sparsefill.evals.tasks import needle
from sparsefill.evals.tasks.infinitebench import infinitebench_tasks
from sparsefill.evals.tasks.kinds import CopyingTask, FidelityTask, PerplexityTask
from sparsefill.evals.tasks.ruler import QA_SYNTHETIC, RULER

RULES = ("official", "minference")


def families(rules: str = "official") -> dict[str, dict[str, Measurable]]:
    """Return all tasks, by family and name.

    Args:
        rules: of InfiniteBench's scores and the length of its answers: `official`, or those of
            MInference's copy.

    Raises:
        InputError: there are no such rules.
    """
    others = (
        CopyingTask(name="copying/word_lists"),
        PerplexityTask(name="perplexity/windows"),
        FidelityTask(name="fidelity/last_positions"),
    )
    return {
        "ruler": {**RULER, QA_SYNTHETIC.name: QA_SYNTHETIC},
        "infinitebench": {**infinitebench_tasks(rules=rules, limits=rules, order="spread")},
        "needle": {task.name: task for task in needle.TASKS},
        **{task.name.partition("/")[0]: {task.name: task} for task in others},
    }


def tasks_of(
    names: Sequence[str], *, data: Path | None = None, rules: str = "official"
) -> tuple[list[Measurable], list[str]]:
    """Find tasks by `family/task`, or all of a family.

    Returns:
        the tasks; and the names of those of a whole family that are left out because they
        need files of `data`.

    Raises:
        InputError: no such task, or one that was named needs files.
    """
    every = families(rules)
    found: dict[str, Measurable] = {}
    left_out = []
    for name in names:
        own = every.get(name.partition("/")[0], {})
        if not own or ("/" in name and name not in own):
            known = ", ".join(own or every)
            raise InputError(f"there is no task {name!r}; use one of {known}")
        for task in [own[name]] if "/" in name else own.values():
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
