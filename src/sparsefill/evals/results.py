"""What an evaluation run leaves in its folder, and how runs are read back and put together.

`manifest.json` says what was run; `samples.jsonl` has one row for each sample and method,
appended as they come; `times.jsonl` has their times, apart, so that a run which was killed and
resumed leaves the same rows as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparsefill.errors import InputError
from sparsefill.evals.manifest import MANIFEST, SETTINGS, Manifest
from sparsefill.evals.pairing import Pairing
from sparsefill.evals.rows import SAMPLES, TIMES, AnyLine, Key, Line, Row, Times, read_lines
from sparsefill.strict_json import parse_json, read_text

FULL = ("full", "dense")  # names of full attention, which other methods are compared with


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's folder.

    Args:
        manifest: as it stands in the folder.
        rows: whose methods have the names of `called`.
        pairing: the samples of its rows.
        called: names of methods beside other runs, where they are not their own.
    """

    name: str
    manifest: Manifest
    rows: dict[Key, Row]
    times: dict[Key, Times]
    pairing: Pairing
    called: dict[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Return how each method is set, by what it is called."""
        return {self.called.get(name, name): how for name, how in self.manifest.methods.items()}


@dataclass(frozen=True, kw_only=True)
class Results:
    """Runs put together.

    Args:
        rows: of all runs, in order of their keys.
        run_of: number of the run that a row is from; times of two runs are never compared.
    """

    runs: tuple[Run, ...]
    rows: dict[Key, Row]
    run_of: dict[Key, int]

    def times(self, key: Key) -> Times | None:
        """Return how long a row took, if that was measured."""
        return self.runs[self.run_of[key]].times.get(key)

    @property
    def model(self) -> str:
        """Return the model of all runs."""
        return self.runs[0].manifest.model

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Return how each method is set."""
        return {name: how for run in self.runs for name, how in run.methods.items()}


def load_results(folders: Sequence[Path]) -> Results:
    """Read run folders and put them together.

    Raises:
        InputError: a folder cannot be read, or runs contradict each other.
    """
    if not folders:
        raise InputError("a report needs at least one run folder, got none")
    once = {folder.resolve(): folder for folder in folders}
    return merge_runs([load_run(folder) for folder in once.values()])


def load_run(folder: Path) -> Run:
    """Read one run's folder.

    Raises:
        InputError: there is no manifest, or of another schema; or a row is broken.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"there is no {MANIFEST} in {folder}; pass a folder that eval wrote")
    source = str(path)
    manifest = Manifest.parse(
        parse_json(read_text(path, what="manifest"), source=source), source=source
    )
    rows: dict[Key, Row] = {}
    lines: dict[Key, str] = {}
    pairing = Pairing()
    for source, row in read_lines(folder / SAMPLES, Row):
        _check_asked(row, manifest, source)
        pairing.meet(row, source)
        if rows.setdefault(row.key, row) != row:
            raise InputError(
                f"{source}: {row.key} stands there twice, with other content than in"
                f" {lines[row.key]}; run that sample again"
            )
        lines.setdefault(row.key, source)
    # a sample whose row was lost when the run was killed is read, and timed, again
    times: dict[Key, Times] = {}
    for source, found in read_lines(folder / TIMES, Times):
        _check_asked(found, manifest, source)
        if found.environment >= len(manifest.environments):
            raise InputError(f"{source}: environment {found.environment} is not in {MANIFEST}")
        times[found.key] = found
    name = folder.resolve().name.encode("utf-8", "replace").decode()
    return Run(name=name, manifest=manifest, rows=rows, times=times, pairing=pairing)


def _check_asked(line: Line, manifest: Manifest, source: str) -> None:
    for what, own, asked in (
        ("method", line.method, manifest.methods),
        ("task", line.task, manifest.tasks),
        ("length", line.length, manifest.lengths),
    ):
        if own not in asked:
            raise InputError(f"{source}: the {what} {own!r} is not in {MANIFEST}")


def merge_runs(runs: Iterable[Run]) -> Results:
    """Put runs together, whatever their order.

    Methods of one name that are set otherwise, as `minference` is by several profiles, are also
    called by the name of a run: the first that is set so.

    Raises:
        InputError: runs of several models; the same task by other settings, full attention set
            otherwise, or the same sample with another content.
    """
    ordered = _told_apart(sorted(runs, key=lambda run: (run.name, run.manifest.config_hash)))
    for place, run in enumerate(ordered):
        for other in ordered[:place]:
            _check_together(other, run)
    rows: dict[Key, Row] = {}
    run_of: dict[Key, int] = {}
    pairing = Pairing()
    for number, run in enumerate(ordered):
        for key, row in run.rows.items():
            pairing.meet(row, run.name)
            if rows.setdefault(key, row) != row:
                where = f"{ordered[run_of[key]].name} and {run.name}"
                raise InputError(f"{key} differs between {where}; report them apart")
            run_of.setdefault(key, number)
    return Results(runs=ordered, rows={key: rows[key] for key in sorted(rows)}, run_of=run_of)


def _told_apart(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Call methods of one name that are set otherwise by the first run set so, but for full."""
    first: dict[str, list[Run]] = {}
    for run in runs:
        for name, how in run.manifest.methods.items():
            known = first.setdefault(name, [])
            if all(how != other.manifest.methods[name] for other in known):
                known.append(run)

    def called(name: str, run: Run) -> str:
        how = run.manifest.methods[name]
        of = next(other for other in first[name] if other.manifest.methods[name] == how)
        if (found := f"{name} ({of.name})") in first:
            raise InputError(f"{found!r} would be the name of two methods; rename {of.name}")
        return found

    unlike = {name for name, known in first.items() if len(known) > 1} - {*FULL}
    return tuple(
        _renamed(run, {name: called(name, run) for name in unlike & run.manifest.methods.keys()})
        for run in runs
    )


def _renamed(run: Run, called: dict[str, str]) -> Run:
    def renamed(lines: Iterable[AnyLine]) -> dict[Key, AnyLine]:
        new = [replace(line, method=called.get(line.method, line.method)) for line in lines]
        return {line.key: line for line in new}

    rows, times = renamed(run.rows.values()), renamed(run.times.values())
    return replace(run, called=called, rows=rows, times=times)


def _check_together(first: Run, second: Run) -> None:
    one, two = first.manifest, second.manifest
    where = f"{first.name} and {second.name}"
    if one.model != two.model:
        raise InputError(
            f"a report is of one model, got {one.model!r} and {two.model!r} in {where};"
            " report them apart"
        )
    if one.weights != two.weights:
        raise InputError(
            f"a report is of one model, but the weights of {one.model!r} are {one.weights!r} and"
            f" {two.weights!r} in {where}; report them apart"
        )
    for name in first.methods.keys() & second.methods.keys():
        if first.methods[name] != second.methods[name]:
            remedy = "report them apart"
            if name not in FULL and first.name == second.name:
                remedy += ", or rename one of the folders"
            raise InputError(f"the method {name!r} is set otherwise in {where}; {remedy}")
    shared = {key.task for key in first.rows} & {key.task for key in second.rows}
    for setting in SETTINGS if shared else ():
        if not one.agrees_on(setting, two):
            values = getattr(one, setting), getattr(two, setting)
            raise InputError(
                f"{where} both hold {min(shared)}, but {setting} is {values[0]!r} in one and"
                f" {values[1]!r} in the other; report them apart"
            )
