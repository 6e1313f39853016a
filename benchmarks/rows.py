"""One row per measurement: its schema, its key, and the file that rows are appended to."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparsefill.environment import describe_environment
from sparsefill.errors import InputError

FOLDER = Path(__file__).parent


class Key(NamedTuple):
    """What makes a measurement the same one."""

    case: str
    backend: str
    pattern: str
    dtype: str
    n: int
    h: int
    g: int
    d: int
    target_density: float | None
    model: str | None
    threads: int
    prompt: str | None = None
    reader: str | None = None
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; every time is in seconds, and None means not measured.

    Args:
        case: name of the benchmark.
        backend: whose kernels attended: one of ours, or a peer such as `sdpa`.
        pattern: which cells were kept.
        threads: of torch and of the kernels.
        target_density: what was asked for; `density` is what came out.
        recall: mean attention mass kept.
        repeats: how many timed runs `median_s` and `iqr_s` stand for.
        baseline: the dense attention that `speedup` compares with.
        speedup: `baseline_s / median_s`.
        proportional: `speedup * density`, 1 if a cell costs what it costs the baseline.
        efficiency: own time at density 1, times density, divided by own time.
        peak_fraction: share of the machine's measured peak rate.
        share: `estimate_s / attend_s`.
        dense_s: dense attention through the same backend.
        parameters: the pattern with its budget, where a budget was searched or given.
        model: what was prefilled.
        prompt: what it read.
        reader: what read it, where not transformers alone: the prefill engine, and how.
        device: where the tensors were; the CPU when None, as in rows from before there was it.
        linear_s: the rest of a prefill, beside estimate and attention.
        peak_bytes: the most memory that the process held while reading.
        planned_bytes: what the engine expected of it.
        tflops: 10^12 operations on kept cells per second of attending.
        work: what was counted, and the least time that the device could take for it.
        error: what went wrong: there is no time, or a value is not right.
        skipped: why it was not tried.
    """

    case: str
    backend: str
    pattern: str
    dtype: str
    n: int
    h: int
    g: int
    d: int
    threads: int
    environment: dict[str, Any]
    target_density: float | None = None
    density: float | None = None
    recall: float | None = None
    median_s: float | None = None
    iqr_s: float | None = None
    repeats: int = 0
    baseline: str | None = None
    baseline_s: float | None = None
    speedup: float | None = None
    proportional: float | None = None
    efficiency: float | None = None
    peak_fraction: float | None = None
    estimate_s: float | None = None
    attend_s: float | None = None
    share: float | None = None
    dense_s: float | None = None
    parameters: dict[str, Any] | None = None
    model: str | None = None
    prompt: str | None = None
    reader: str | None = None
    device: str | None = None
    linear_s: float | None = None
    peak_bytes: int | None = None
    planned_bytes: int | None = None
    tflops: float | None = None
    work: dict[str, float | None] | None = None
    error: str | None = None
    skipped: str | None = None

    @property
    def done(self) -> bool:
        """Whether this was measured, or checked and right."""
        return self.error is None and self.skipped is None

    @property
    def key(self) -> Key:
        """What a later run compares to know that this row is there."""
        fields = {name: getattr(self, name) for name in Key._fields}
        return Key(**{**fields, "device": self.device or "cpu"})


class Ledger:
    """Rows of a JSON-lines file: those that were there, and those appended now.

    Args:
        again: measure what is there once more.

    Raises:
        InputError: the file holds something else.
    """

    def __init__(self, path: Path, *, again: bool = False) -> None:
        if path.is_dir():
            raise InputError(f"--out must be a file, got the folder {path}; add a file name")
        self.path = path
        self.rows = list(read_rows(path)) if path.is_file() else []
        self._known = {row.key for row in self.rows if row.done and not again}

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def add(self, row: Row) -> None:
        """Append a row to the file at once: an interrupted run loses nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(row), allow_nan=False, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self.rows.append(row)
        if row.done:
            self._known.add(row.key)


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a file.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise InputError(f"expected a file of benchmark rows, got {path}; check the name")
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if line.strip():
            try:
                yield Row(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"line {number} of {path} must be a benchmark row, got {line[:40]!r}"
                    f" ({error}); remove that line or pass another file"
                ) from None


def environment() -> dict[str, Any]:
    """Describe machine, versions and commit, as every row stores them."""
    return {**describe_environment(), "commit": commit(), "date": date.today().isoformat()}


def commit() -> str:
    """Name the commit of the working tree, with `-dirty` if it has been changed."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*")
    try:
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def default_path(found: dict[str, Any]) -> Path:
    """Return where the rows of this machine, day and commit go."""
    gpus = found["accelerators"]
    name = gpus[0]["name"] if gpus else f"{found['cpu']} {torch.get_num_threads()} cores"
    device = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return FOLDER / "results" / device / f"{found['date']}-{found['commit']}.jsonl"
