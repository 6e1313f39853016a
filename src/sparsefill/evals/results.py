"""What an evaluation run leaves in its folder, and how runs are read back and put together.

`manifest.json` says what was run; `samples.jsonl` has one row for each sample and method,
appended as they come; `times.jsonl` has their times, apart, so that a run which was killed and
resumed leaves the same rows as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sparsefill.errors import InputError
from sparsefill.evals.fields import Fields
from sparsefill.strict_json import parse_json, read_text

SCHEMA = 1
MANIFEST, SAMPLES, TIMES = "manifest.json", "samples.jsonl", "times.jsonl"
SETTINGS = (  # must agree between runs whose samples are compared
    "template",
    "seed",
    "haystack",
    "rules",
    "dtype",
    "min_length",
)
AnyLine = TypeVar("AnyLine", bound="Line")


@dataclass(frozen=True, order=True)
class Key:
    """Which sample, read by which method; sorts by task, then length."""

    task: str
    length: int
    index: int
    method: str


# how each field of a line is read
READ: dict[str, Callable[[Fields, str], Any]] = {
    **dict.fromkeys(("method", "task", "answer"), Fields.text),
    "length": partial(Fields.whole, least=1),
    **dict.fromkeys(("index", "tokens", "new_tokens"), Fields.whole),
    "score": Fields.share,
    "references": lambda found, name: tuple(found.texts(name)),
    "recipe": Fields.mapping,
    **dict.fromkeys(("density", "recall"), Fields.number),
    "values": Fields.numbers,
    **dict.fromkeys(("ttft_s", "attention_s", "estimate_s", "decode_s"), Fields.number),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a file of rows: something about one sample, read by one method.

    Args:
        length: tokens aimed for.
    """

    method: str
    task: str
    length: int
    index: int

    @property
    def key(self) -> Key:
        """Return what the line is told by."""
        return Key(self.task, self.length, self.index, self.method)

    def line(self) -> str:
        """Write it as a line of its file."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def parse(cls: type[AnyLine], data: Any, *, source: str) -> AnyLine:
        """Check one line's data.

        Raises:
            InputError: something is missing, unknown or of the wrong kind.
        """
        found = Fields(data, source=source)
        line = cls(**{field.name: READ[field.name](found, field.name) for field in fields(cls)})
        found.end()
        return line


@dataclass(frozen=True, kw_only=True)
class Row(Line):
    """What one method made of one sample: a line of `samples.jsonl`.

    Args:
        tokens: of the prompt.
        new_tokens: the most tokens of an answer.
        score: from 0 to 1; None where nothing is scored.
        references: right answers.
        recipe: what rebuilds the sample; `depth_percent` is where a needle lies.
        density: cells kept, of causal cells.
        recall: attention mass kept.
        values: whatever else was measured. `nll` is in nats a token, over `nll_tokens` tokens if
            that is there; `NAME/LAYER/HEAD` is one cell of a map of heads.
    """

    tokens: int
    new_tokens: int
    score: float | None
    answer: str
    references: tuple[str, ...] = ()
    recipe: dict[str, Any]
    density: float | None = None
    recall: float | None = None
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Times(Line):
    """How long one method took for one sample, in seconds: a line of `times.jsonl`.

    None stands where it was not measured.
    """

    ttft_s: float | None = None
    attention_s: float | None = None
    estimate_s: float | None = None
    decode_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was run, and where.

    Args:
        tasks: names of tasks.
        weights: of the model: a hash.
        samples: of each task and length.
        methods: how each is set, by name.
        rules: whose limits on answers and whose scores hold.
        min_length: keys below which methods stay dense; None where each decides.
        recall: whether it was measured.
        environment: versions and machine.
    """

    tasks: tuple[str, ...]
    model: str
    weights: str
    template: str
    seed: int
    samples: int
    lengths: tuple[int, ...]
    methods: dict[str, dict[str, Any]]
    haystack: dict[str, Any]
    rules: str
    dtype: str
    device: str
    backend: str
    min_length: int | None
    recall: bool
    environment: dict[str, Any]

    def as_data(self) -> dict[str, Any]:
        """Describe it as `manifest.json` does."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        tasks, lengths = list(data.pop("tasks")), list(data.pop("lengths"))
        return {"schema": SCHEMA, "tasks": tasks, "lengths": lengths, **data}

    @property
    def config_hash(self) -> str:
        """Tell apart what decides rows: everything but the environment."""
        data = self.as_data()
        del data["environment"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def parse(cls, data: Any, *, source: str) -> Manifest:
        """Check a manifest's data.

        Raises:
            InputError: another schema, or something missing, unknown or of the wrong kind.
        """
        found = Fields(data, source=source)
        schema = found.whole("schema")
        if schema != SCHEMA:
            raise InputError(
                f"{source}: schema must be {SCHEMA}, got {schema}; report it with the version of"
                " sparsefill that ran it"
            )
        manifest = cls(
            tasks=tuple(found.texts("tasks")),
            model=found.text("model"),
            weights=found.text("weights"),
            template=found.text("template"),
            seed=found.whole("seed", least=None),
            samples=found.whole("samples"),
            lengths=tuple(found.wholes("lengths")),
            methods=found.mappings("methods"),
            haystack=found.mapping("haystack"),
            rules=found.text("rules"),
            dtype=found.text("dtype"),
            device=found.text("device"),
            backend=found.text("backend"),
            min_length=found.whole("min_length") if found.given("min_length") else None,
            recall=found.truth("recall"),
            environment=found.mapping("environment"),
        )
        found.end()
        return manifest


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's folder."""

    name: str
    manifest: Manifest
    rows: dict[Key, Row]
    times: dict[Key, Times]


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
        return {name: how for run in self.runs for name, how in run.manifest.methods.items()}


def load_results(folders: Sequence[Path]) -> Results:
    """Read run folders and put them together.

    Raises:
        InputError: a folder cannot be read, or runs contradict each other.
    """
    if not folders:
        raise InputError("a report needs at least one run folder, got none")
    return merge_runs([load_run(folder) for folder in dict.fromkeys(folders)])


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
    for source, row in read_lines(folder / SAMPLES, Row):
        if row.method not in manifest.methods:
            raise InputError(f"{source}: the method {row.method!r} is not in {MANIFEST}")
        if rows.setdefault(row.key, row) != row:
            raise InputError(
                f"{source}: {_title(row.key)} stands there twice, with other content than in"
                f" {lines[row.key]}; run that sample again"
            )
        lines.setdefault(row.key, source)
    # a sample whose row was lost when the run was killed is read, and timed, again
    times = {found.key: found for _, found in read_lines(folder / TIMES, Times)}
    return Run(name=folder.name, manifest=manifest, rows=rows, times=times)


def read_lines(path: Path, kind: type[AnyLine]) -> Iterator[tuple[str, AnyLine]]:
    """Yield each line's place and what it holds; nothing if there is no file.

    A last line that was torn when the run was killed is left out.

    Raises:
        InputError: another line is broken.
    """
    if not path.is_file():
        return
    text = whole_lines(path.read_bytes())
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        source = f"{path}, line {number}"
        try:
            decoded = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source} must be UTF-8 text, got {error}") from error
        yield source, kind.parse(parse_json(decoded, source=source), source=source)


def whole_lines(content: bytes) -> bytes:
    r"""Return content up to the last line that was written whole.

    Whoever goes on with a file cuts it there first.

    Example:
        >>> whole_lines(b'{"index": 0}\n{"ind')
        b'{"index": 0}\n'
    """
    return content[: content.rfind(b"\n") + 1]


def merge_runs(runs: Iterable[Run]) -> Results:
    """Put runs together, whatever their order.

    Raises:
        InputError: runs of several models; the same task by other settings, the same method set
            otherwise, or the same sample with another content.
    """
    ordered = tuple(sorted(runs, key=lambda run: (run.name, run.manifest.config_hash)))
    for place, run in enumerate(ordered):
        for other in ordered[:place]:
            _check_together(other, run)
    rows: dict[Key, Row] = {}
    run_of: dict[Key, int] = {}
    for number, run in enumerate(ordered):
        for key, row in run.rows.items():
            if rows.setdefault(key, row) != row:
                where = f"{ordered[run_of[key]].name} and {run.name}"
                raise InputError(f"{_title(key)} differs between {where}; report them apart")
            run_of.setdefault(key, number)
    return Results(runs=ordered, rows={key: rows[key] for key in sorted(rows)}, run_of=run_of)


def _check_together(first: Run, second: Run) -> None:
    one, two = first.manifest, second.manifest
    where = f"{first.name} and {second.name}"
    if one.model != two.model:
        raise InputError(
            f"a report is of one model, got {one.model!r} and {two.model!r} in {where};"
            " report them apart"
        )
    for name in one.methods.keys() & two.methods.keys():
        if one.methods[name] != two.methods[name]:
            raise InputError(f"the method {name!r} is set otherwise in {where}; report them apart")
    shared = {key.task for key in first.rows} & {key.task for key in second.rows}
    for setting in SETTINGS if shared else ():
        values = getattr(one, setting), getattr(two, setting)
        if values[0] != values[1]:
            raise InputError(
                f"{where} both hold {min(shared)}, but {setting} is {values[0]!r} in one and"
                f" {values[1]!r} in the other; report them apart"
            )


def _title(key: Key) -> str:
    return f"sample {key.index} of {key.task} at {key.length} tokens by {key.method!r}"
