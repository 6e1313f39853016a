"""The folder of a run while it grows; `results` says what the folder holds."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path

from sparsefill.atomic import write_atomically
from sparsefill.errors import InputError
from sparsefill.evals.results import (
    MANIFEST,
    SAMPLES,
    TIMES,
    Key,
    Manifest,
    Row,
    Times,
    load_run,
    whole_lines,
)
from sparsefill.evals.task import Outcome

GROWING = ("tasks", "methods", "lengths", "samples")  # what a later run may add to
FREE = ("environment",)  # what may differ between the runs of a folder


class Ledger:
    """The rows of a folder, and those still to come.

    Args:
        folder: made if need be; one that holds a run goes on with it.
        manifest: what is measured, and how.

    Raises:
        InputError: the folder holds a run with other settings, or something else.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._there: set[Key] = set()
        if (folder / MANIFEST).is_file():
            run = load_run(folder)
            manifest = _joined(folder, run.manifest, manifest)
            self._there = set(run.rows)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--out must be a new folder or one of a run, got {folder}")
        for name in (SAMPLES, TIMES):
            _cut_torn_line(folder / name)
        text = json.dumps(manifest.as_data(), indent=1, sort_keys=True)
        write_atomically(folder / MANIFEST, text + "\n")

    def __contains__(self, key: Key) -> bool:
        return key in self._there

    def add(self, key: Key, outcome: Outcome) -> None:
        """Append a row; it is on the disk when this returns."""
        which, prefill = asdict(key), outcome.prefill
        times = Times(
            **which,
            ttft_s=prefill.ttft_s,
            attention_s=prefill.attention_s,
            estimate_s=prefill.estimate_s,
            decode_s=outcome.decode_s,
        )
        row = Row(
            **which,
            tokens=outcome.tokens,
            new_tokens=outcome.new_tokens,
            score=outcome.score,
            answer=outcome.answer,
            references=outcome.references,
            recipe=outcome.recipe,
            density=prefill.density,
            recall=prefill.recall,
            values=outcome.values,
        )
        # times first: a row of samples is the sign that both are there
        _append(self.folder / TIMES, times.line())
        _append(self.folder / SAMPLES, row.line())
        self._there.add(key)


def _cut_torn_line(path: Path) -> None:
    """Cut off a last line that was not written whole, so that rows can be appended."""
    if path.is_file():
        os.truncate(path, len(whole_lines(path.read_bytes())))


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _joined(folder: Path, there: Manifest, mine: Manifest) -> Manifest:
    """Join what a folder holds with what is to be measured now."""
    fixed = [field.name for field in fields(mine) if field.name not in GROWING + FREE]
    mine = Manifest.parse(json.loads(json.dumps(mine.as_data())), source="the run")  # as read back
    other = [name for name in fixed if getattr(there, name) != getattr(mine, name)]
    methods = {**there.methods, **mine.methods}
    other += [f"method {name}" for name, own in there.methods.items() if methods[name] != own]
    if other:
        raise InputError(
            f"{folder} holds a run with another {', '.join(sorted(other))}; pass the same, or"
            " another --out"
        )
    return replace(
        mine,
        tasks=tuple(dict.fromkeys([*there.tasks, *mine.tasks])),
        methods=methods,
        lengths=tuple(sorted({*there.lengths, *mine.lengths})),
        samples=max(there.samples, mine.samples),
    )
