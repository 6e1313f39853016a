"""`sparsefill eval` and `sparsefill report`, as a user has them: killed, resumed, and wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsefill.cli.app import app
from sparsefill.cli.eval import parse_lengths
from sparsefill.errors import InputError
from sparsefill.evals.results import load_run
from tests.support.tiny import save_tiny_llama

TASKS = (
    "ruler/niah_multikey_2",
    "infinitebench/kv_retrieval",
    "needle/minference",
    "perplexity",
    "fidelity",
)
KILLED = """
import os, signal
from sparsefill.evals.ledger import Ledger
add, kept = Ledger.add, []
def add_and_die(self, key, outcome):
    add(self, key, outcome)
    kept.append(key)
    if len(kept) == {rows}:
        os.kill(os.getpid(), signal.SIGKILL)
Ledger.add = add_and_die
from sparsefill.cli import main
main()
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text("It was a long way to the town, and they walked. " * 400, "utf-8")
    return path


def arguments(tiny: Path, words: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--model", str(tiny), "--haystack", str(words), "--out", str(out)]
    methods = ["--method", "full", "--method", "a-shape:sink=4,window=64"]
    return ["eval", *TASKS, *fixed, *methods, "--lengths", "1500", "--samples", "2", *more]


def call(*arguments: str):
    return CliRunner().invoke(app, [*arguments])


@pytest.mark.parametrize("rows", [1, 3, 8, 9])
def test_a_killed_run_reports_as_an_unbroken_one(
    tiny: Path, words: Path, tmp_path: Path, rows: int
):
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    assert call(*arguments(tiny, words, whole)).exit_code == 0
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED.format(rows=rows), *arguments(tiny, words, broken)]
    done = subprocess.run(command, env=there, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(load_run(broken).rows) == rows
    again = call(*arguments(tiny, words, broken))
    assert again.exit_code == 0, again.output
    for name in ("samples.jsonl", "manifest.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    pages = []
    for run in (whole, broken):
        out = run.parent / "report"
        assert call("report", str(run), "--out", str(out), "--no-times").exit_code == 0
        pages.append({p.name: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()})
    assert pages[0] == pages[1]
    assert "report.html" in pages[0]


def test_rows_and_what_is_said_of_them(tiny: Path, words: Path, tmp_path: Path):
    result = call(*arguments(tiny, words, tmp_path / "run", "--recall"))
    assert result.exit_code == 0, result.output
    assert "means of what was measured now" in result.output
    run = load_run(tmp_path / "run")
    assert len(run.rows) == len(run.times) == 2 * 2 * len(TASKS)
    for key, row in run.rows.items():
        sparse = key.method != "full"
        assert row.density is not None
        assert (row.density < 0.5) == sparse
        assert row.recall is not None
        assert (row.recall < 0.999) == sparse
        assert 0.9 * 1500 < row.tokens + row.new_tokens <= 1500 + 32 * (key.task[0] == "f")
    assert run.manifest.recall


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "magic"], "--method must be one of"),
        (["--template", "html"], "template must be one of"),
        (["--rules", "house"], "rules must be one of"),
        (["--haystack", "nowhere"], "there is no file or folder nowhere"),
        (["--profile", "nowhere.json"], "nowhere.json"),
        (["--dtype", "int3"], "--dtype must be"),
        (["--lengths", "12"], "length"),
        (["--lengths", "4q"], "--lengths must be numbers"),
        (["--samples", "9999"], "fewer than"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(
    tiny: Path, words: Path, tmp_path: Path, more: list[str], message: str
):
    result = call(*arguments(tiny, words, tmp_path / "run", *more))
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert not (tmp_path / "run" / "samples.jsonl").exists()


@pytest.mark.parametrize("text", ["", "4096,", "0", "-1", "1e3", "k", "1:2", "1:2:0", "1:2:3:4"])
def test_lengths_that_are_none(text: str):
    with pytest.raises(InputError, match="--lengths must be numbers"):
        parse_lengths(text)
