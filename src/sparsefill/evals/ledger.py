"""The folder of a run: a manifest of what is measured, and a row for each sample and method.

`samples.jsonl` holds what does not change from run to run, so that a run that was killed and
goes on ends in the same bytes; `times.jsonl` holds the seconds.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from sparsefill.atomic import write_atomically
from sparsefill.errors import InputError
from sparsefill.evals.task import Outcome

MANIFEST, SAMPLES, TIMES = "manifest.json", "samples.jsonl", "times.jsonl"
SCHEMA = 1
GROWING = ("tasks", "methods", "lengths", "samples")  # what a later run may add to
FREE = ("environment",)  # what may differ between the runs of a folder


class Key(NamedTuple):
    """What makes a row the same one."""

    method: str
    task: str
    length: int
    index: int


class Ledger:
    """The rows of a folder, and those still to come.

    Args:
        folder: made if need be; one that holds a run goes on with it.
        manifest: what is measured, and how.

    Raises:
        InputError: the folder holds a run with other settings, or something else.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        merged = _merged(folder, json.loads(json.dumps({"schema": SCHEMA, **manifest})))
        self._there = {
            Key(*(row[field] for field in Key._fields))
            for row in read_rows(folder / SAMPLES, mend=True)
        }
        read_rows(folder / TIMES, mend=True)
        write_atomically(folder / MANIFEST, json.dumps(merged, indent=1, sort_keys=True) + "\n")

    def __contains__(self, key: Key) -> bool:
        return key in self._there

    def add(self, key: Key, outcome: Outcome) -> None:
        """Append a row; it is on the disk when this returns."""
        body = asdict(outcome)
        prefill = body.pop("prefill")
        seconds = {name: prefill.pop(name) for name in list(prefill) if name.endswith("_s")}
        seconds["decode_s"] = body.pop("decode_s")
        # times first: a row of samples is the sign that both are there
        _append(self.folder / TIMES, {**key._asdict(), **seconds})
        _append(self.folder / SAMPLES, {**key._asdict(), **body, **prefill})
        self._there.add(key)


def read_rows(path: Path, *, mend: bool = False) -> list[dict[str, Any]]:
    """Read the rows of a file; a last line that was cut short is not one.

    Args:
        mend: also cut that line off, so that rows can be appended.

    Raises:
        InputError: another line is damaged.
    """
    if not path.exists():
        return []
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if mend and end < len(whole):
        os.truncate(path, end)
    rows = []
    for number, line in enumerate(whole[:end].splitlines(), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not all(name in row for name in Key._fields):
                raise ValueError("no row of a run")
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}, is damaged ({error}); remove the line, and it is measured"
                " again"
            ) from error
        rows.append(row)
    return rows


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _merged(folder: Path, mine: dict[str, Any]) -> dict[str, Any]:
    """Join what a folder holds with what is to be measured now."""
    path = folder / MANIFEST
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--out must be a new folder or one of a run, got {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        return mine
    try:
        there = json.loads(path.read_text("utf-8"))
        fixed = {name: own for name, own in mine.items() if name not in GROWING + FREE}
        other = [name for name, own in fixed.items() if there.get(name) != own]
        methods = {**there["methods"], **mine["methods"]}
        other += [
            f"method {name}" for name, own in there["methods"].items() if methods[name] != own
        ]
        grown = {
            "methods": methods,
            "tasks": list(dict.fromkeys([*there["tasks"], *mine["tasks"]])),
            "lengths": sorted({*there["lengths"], *mine["lengths"]}),
            "samples": max(there["samples"], mine["samples"]),
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); pass another --out") from error
    if other:
        raise InputError(
            f"{folder} holds a run with another {', '.join(sorted(other))}; pass the same, or"
            " another --out"
        )
    return {**there, **mine, **grown}
