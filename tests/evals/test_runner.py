"""A run measures each row once, and a run that was killed ends in the bytes of an unbroken one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsefill.errors import InputError
from sparsefill.evals.folder import hold
from sparsefill.evals.ledger import Ledger
from sparsefill.evals.results import load_run
from sparsefill.evals.rows import Key
from sparsefill.evals.runner import Plan, run
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making, Outcome, Task
from sparsefill.patterns import AShape, Dense
from sparsefill.reader import Method
from tests.evals.support import TOOK, Scripted, making
from tests.support.runs import MANIFEST_OF_ALL

SAYS = {"full": "the number is 7", "short": "no idea\u2028"}
METHODS = [Method(name="full", cells=Dense()), Method(name="short", cells=AShape())]
MANIFEST = replace(
    MANIFEST_OF_ALL,
    tasks=("a/task", "b/task"),
    methods={method.name: method.describe() for method in METHODS},
    lengths=(300, 600),
    samples=2,
    environments=(),
)
HERE, THERE = {"machine": "here"}, {"machine": "there"}


def make(making: Making) -> Sample:
    digits = making.draw().randrange(10)
    return Sample(
        task=making.task,
        length=making.length,
        index=making.index,
        prompt="x" * (making.length - 40),
        references=("7", str(digits)),
        new_tokens=20,
        recipe={"digits": digits},
    )


def share(answer: str, references) -> float:
    return sum(reference in answer for reference in references) / len(references)


TASKS = [Task(name=name, new_tokens=20, make=make, score=share) for name in MANIFEST.tasks]
PLAN = Plan(tasks=TASKS, methods=METHODS, lengths=[300, 600], samples=2)


class KilledError(Exception):
    """Ends a run as a kill does: nothing more is written."""


def measure(
    folder: Path, *, stop_after: int | None = None, environment: dict[str, Any] = HERE
) -> Scripted:
    reader = Scripted(SAYS)

    def watch(key: Key, outcome) -> None:
        if stop_after is not None and len(reader.read) >= stop_after:
            raise KilledError

    run(PLAN, reader, making, Ledger(folder, MANIFEST, environment), watch)
    return reader


def test_rows_hold_what_was_said_and_what_rebuilds_it(tmp_path: Path):
    measure(tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert len(run.rows) == len(run.times) == 16
    key = Key(task="a/task", length=300, index=0, method="full")
    first = run.rows[key]
    assert first.tokens == 261  # the tokenizer's first token, 260 bytes, no last one
    assert first.answer == "the number is 7"
    assert first.score in (0.5, 1.0)
    assert first.density == 0.5
    assert first.recipe.keys() == {"digits"}
    assert run.times[key].ttft_s == 0.5
    assert run.times[key].decode_s == 0.75
    assert {row.score for row in run.rows.values() if row.method == "short"} == {0.0}
    assert b"_s" not in (tmp_path / "run" / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("stop", [1, 2, 7, 15])
@pytest.mark.parametrize("torn", ["", '{"method": "full", "ta'])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path, stop: int, torn: str):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    measure(whole)
    with pytest.raises(KilledError):
        measure(broken, stop_after=stop)
    for name in ("samples.jsonl", "times.jsonl"):
        with (broken / name).open("a") as file:
            file.write(torn)
    again = measure(broken)
    assert len(again.read) == 16 - stop
    for name in ("samples.jsonl", "times.jsonl", "manifest.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_run_reads_nothing(tmp_path: Path):
    measure(tmp_path / "run")
    assert measure(tmp_path / "run").read == []


def test_the_methods_of_a_sample_read_the_same_prompt(tmp_path: Path):
    reader = measure(tmp_path / "run")
    pairs = zip(reader.read[::2], reader.read[1::2], strict=True)
    assert all(a[0] == "full" and b[0] == "short" and a[1] == b[1] for a, b in pairs)


def test_a_folder_may_grow(tmp_path: Path):
    measure(tmp_path / "run")
    more = replace(MANIFEST, tasks=("c/task",), lengths=(450,), samples=5)
    Ledger(tmp_path / "run", more, THERE)
    manifest = load_run(tmp_path / "run").manifest
    assert manifest.tasks == ("a/task", "b/task", "c/task")
    assert manifest.lengths == (300, 450, 600)
    assert manifest.samples == 5


def test_environments_are_kept_in_which_rows_were_measured(tmp_path: Path):
    with pytest.raises(KilledError):
        measure(tmp_path / "run", stop_after=3)
    with pytest.raises(KilledError):
        measure(tmp_path / "run", stop_after=2, environment=THERE)
    measure(tmp_path / "run")
    measure(tmp_path / "run", environment={"machine": "nothing is left for it"})
    run = load_run(tmp_path / "run")
    assert run.manifest.environments == (HERE, THERE)
    assert [own.environment for own in run.times.values()] == [0] * 3 + [1] * 2 + [0] * 11


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_a_row_that_could_not_be_read_back_is_not_written(tmp_path: Path, number: float):
    ledger = Ledger(tmp_path / "run", MANIFEST, HERE)
    key = Key(task="a/task", length=300, index=0, method="full")
    prefill = replace(TOOK, density=number)
    with pytest.raises(InputError, match="sample 0 of a/task at 300 tokens by 'full': "):
        ledger.add(key, Outcome(tokens=9, prefill=prefill))
    assert load_run(tmp_path / "run").rows == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 43}, "seed"),
        ({"weights": "ef"}, "weights"),
        ({"methods": {"full": {"pattern": "a-shape"}}}, "method full"),
    ],
)
def test_another_run_is_not_mixed_in(tmp_path: Path, change: dict, named: str):
    measure(tmp_path / "run")
    with pytest.raises(InputError, match=named):
        Ledger(tmp_path / "run", replace(MANIFEST, **change), HERE)


def test_foreign_folders_and_damage_are_refused(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="new folder or one of a run"), hold(tmp_path / "mine"):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    measure(tmp_path / "run")
    rows = tmp_path / "run" / "samples.jsonl"
    lines = rows.read_text().split("\n")  # answers hold other ends of lines
    rows.write_text("\n".join([*lines[:3], "{}", *lines[4:]]))
    with pytest.raises(InputError, match="line 4"):
        Ledger(tmp_path / "run", MANIFEST, HERE)
    assert rows.read_text().count("\n") == 16  # nothing was lost
