"""The folder of a run while it grows; `results` says what the folder holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from sparsefill.atomic import write_atomically
from sparsefill.errors import InputError
from sparsefill.evals.manifest import MANIFEST, Manifest
from sparsefill.evals.pairing import Pairing
from sparsefill.evals.results import load_run
from sparsefill.evals.rows import SAMPLES, TIMES, Key, Row, Times, whole_lines
from sparsefill.evals.task import Outcome

GROWING = ("tasks", "methods", "lengths", "samples", "word_list", "environments")


class Ledger:
    """The rows of a folder, and those still to come.

    Args:
        folder: that whoever writes holds (`folder.hold`); one of a run goes on with it.
        manifest: what is measured, and how.
        environment: versions and machine, now.

    Raises:
        InputError: the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, manifest: Manifest, environment: dict[str, Any]) -> None:
        self.folder = folder
        self._there: set[Key] = set()
        self._pairing = Pairing()
        self._environment: dict[str, Any] = json.loads(json.dumps(environment))  # as read back
        if (folder / MANIFEST).is_file():
            run = load_run(folder)
            manifest = _joined(folder, run.manifest, manifest)
            self._there, self._pairing = set(run.rows), run.pairing
        for name in (SAMPLES, TIMES):
            _cut_torn_line(folder / name)
        self._manifest = manifest
        self._write_manifest()

    def __contains__(self, key: Key) -> bool:
        return key in self._there

    def add(self, key: Key, outcome: Outcome) -> None:
        """Append a row; it is on the disk when this returns.

        Raises:
            InputError: a number is none that can be, the sample is another one than that of other
                methods, or there is no room on the disk.
        """
        which, prefill = asdict(key), outcome.prefill
        times = Times(
            **which,
            environment=self._number_of_environment(),
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
        times, row = times.checked(), row.checked()
        self._pairing.meet(row, "this run")
        # times first: a row of samples is the sign that both are there
        _append(self.folder / TIMES, times.line())
        _append(self.folder / SAMPLES, row.line())
        self._there.add(key)

    def _number_of_environment(self) -> int:
        """Return where the manifest has this environment; it is added with its first row."""
        known = self._manifest.environments
        if self._environment not in known:
            known = (*known, self._environment)
            self._manifest = replace(self._manifest, environments=known)
            self._write_manifest()
        return known.index(self._environment)

    def _write_manifest(self) -> None:
        path = self.folder / MANIFEST
        with _told(path):
            write_atomically(path, self._manifest.text())


def _cut_torn_line(path: Path) -> None:
    """Cut off a last line that was not written whole, so that rows can be appended."""
    if path.is_file():
        with _told(path):
            os.truncate(path, len(whole_lines(path.read_bytes())))


def _append(path: Path, line: str) -> None:
    with _told(path), path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Name the file that cannot be written, and say what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or make it writable, and"
            " run the same command again: it goes on after the last whole row"
        ) from error


def _joined(folder: Path, there: Manifest, mine: Manifest) -> Manifest:
    """Join what a folder holds with what is to be measured now."""
    fixed = [field.name for field in fields(mine) if field.name not in GROWING]
    mine = Manifest.parse(json.loads(json.dumps(mine.as_data())), source="the run")  # as read back
    other = [name for name in fixed if getattr(there, name) != getattr(mine, name)]
    methods = {**there.methods, **mine.methods}
    other += [f"method {name}" for name, own in there.methods.items() if methods[name] != own]
    if not there.agrees_on("word_list", mine):
        other.append("word_list")
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
        word_list=there.word_list or mine.word_list,
        environments=there.environments,
    )
