"""`sparsefill eval` and `sparsefill report`, as a user has them: killed, resumed, and wrong."""

from __future__ import annotations

import html
import io
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sparsefill.cli import eval as cli
from sparsefill.cli.app import app
from sparsefill.errors import InputError
from sparsefill.evals.folder import hold
from sparsefill.evals.lengths import parse_lengths
from sparsefill.evals.results import load_run
from sparsefill.evals.rows import Key
from sparsefill.evals.runner import Plan
from sparsefill.evals.task import Outcome
from sparsefill.evals.tasks import families
from sparsefill.evals.tasks.ruler.words import word_list, words_of_novels
from sparsefill.patterns import Dense
from sparsefill.reader import Method
from tests.evals.support import TOOK
from tests.support.tiny import save_tiny_llama

TASKS = (
    "ruler/niah_multikey_2",
    "infinitebench/kv_retrieval",
    "needle/minference",
    "copying",
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
    listed = " ".join(f"{a}{b}on" for a in "bcdfglmnrs" for b in "aeiouhlrty")  # to be copied
    story = "It was a long way to the town, and they walked. " * 400
    path.write_text(f"{story}They said {listed}. ", "utf-8")
    return path


def arguments(tiny: Path, words: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--model", str(tiny), "--haystack", str(words), "--out", str(out)]
    chunked = "a-shape:sink=4,window=64@500"
    methods = ["--method", "static", "--method", "full", "--method", chunked]
    return ["eval", *TASKS, *fixed, *methods, "--lengths", "1500", "--samples", "2", *more]


def call(*arguments: str):
    return CliRunner().invoke(app, [*arguments])


@pytest.fixture(scope="module")
def whole(tiny: Path, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measure without a break."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert call(*arguments(tiny, words, run)).exit_code == 0
    return run


def test_a_run_that_was_killed_in_every_task_reports_as_an_unbroken_one(
    tiny: Path, words: Path, whole: Path, tmp_path: Path
):
    broken = tmp_path / "broken" / "run"
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    tasks = [key.task for key in load_run(whole).rows]
    ends = [tasks.index(task) + tasks.count(task) // 2 + 1 for task in dict.fromkeys(tasks)]
    assert len(ends) == len(TASKS)
    for before, rows in pairwise([0, *ends]):  # between two methods of a sample
        killed = KILLED.format(rows=rows - before)
        command = [sys.executable, "-c", killed, *arguments(tiny, words, broken)]
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


def test_a_second_process_is_told_before_it_loads_a_model(tmp_path: Path, words: Path):
    with hold(tmp_path / "run"):
        result = call(*arguments(tmp_path / "no model", words, tmp_path / "run"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: another process is measuring into")
    assert len(result.stderr.splitlines()) == 1


def test_ruler_s_word_list_is_a_setting(tiny: Path, words: Path, tmp_path: Path, monkeypatch):
    def ask(task: str):
        fixed = ["--model", str(tiny), "--haystack", str(words), "--out", str(tmp_path / "run")]
        return call("eval", task, *fixed, "--method", "full", "--lengths", "1500", "--samples", "1")

    def word_list_there() -> dict:
        return load_run(tmp_path / "run").manifest.word_list

    assert ask("perplexity").exit_code == 0
    assert word_list_there() == {}
    assert ask("ruler/niah_multikey_2").exit_code == 0
    assert word_list_there() == word_list().provenance()
    monkeypatch.setattr(cli, "word_list", words_of_novels)
    result = ask("ruler/niah_multikey_2")
    assert result.exit_code == 2
    assert "holds a run with another word_list" in result.stderr
    assert ask("perplexity").exit_code == 0


def test_the_table_is_whole_at_80_columns():
    names = ("full", "minference", "static", "streaming-llm", "dilated", "strided", "infllm")
    methods = [Method(name=name, cells=Dense()) for name in names]
    methods.append(Method(name="vertical-slash:verticals=1000,slashes=6096", cells=Dense()))
    tasks = list(families()["fidelity"].values())
    plan = Plan(tasks=tasks, methods=methods, lengths=[1048576], samples=1)
    watch = cli._Watch(Console(width=80, file=io.StringIO()), plan)
    for place, method in enumerate(methods):
        key = Key("fidelity/last_positions", 1048576, 0, method.name)
        values = {"perplexity_ratio": 1.0004567 + place / 1000, "kl_median": 1.2345e-17 * place}
        watch.note(key, Outcome(tokens=9, prefill=TOOK, values=values))
    written = io.StringIO()
    Console(width=80, file=written).print(watch.table())
    said = written.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    cells = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in said.splitlines()]
    numbers = {(cell[1], cell[3], cell[4]) for cell in cells if len(cell) == 5 and cell[1]}
    for place in range(len(methods)):
        assert ("1048576", f"{1.0004567 + place / 1000:.4g}", "1") in numbers
        assert ("1048576", f"{1.2345e-17 * place:.4g}", "1") in numbers
    order = [cell[2] for cell in cells if len(cell) == 5 and cell[1]]
    assert order[: len(names)] == list(names)


def test_rows_and_what_is_said_of_them(tiny: Path, words: Path, tmp_path: Path):
    result = call(*arguments(tiny, words, tmp_path / "run", "--recall"))
    assert result.exit_code == 0, result.output
    assert "means of what was measured now" in result.output
    run = load_run(tmp_path / "run")
    assert len(run.rows) == len(run.times) == 3 * 2 * len(TASKS)
    for key, row in run.rows.items():
        assert row.density is not None
        assert row.recall is not None
        if key.method != "static":  # whose profile is for longer prompts
            sparse = key.method != "full"
            assert (row.density < 0.5) == sparse
            assert (row.recall < 0.999) == sparse
        assert 0.9 * 1500 < row.tokens + row.new_tokens <= 1500 + 32 * (key.task[0] == "f")
    assert run.manifest.recall
    assert "recall/0/0" not in result.output  # heads are for the report
    again = call(*arguments(tiny, words, tmp_path / "run", "--recall"))
    assert "every sample was measured before" in again.output


def test_what_keeps_some_keys_is_told(tiny: Path, words: Path, tmp_path: Path):
    run, out = tmp_path / "run", tmp_path / "report"
    fixed = ["--model", str(tiny), "--haystack", str(words), "--lengths", "1500", "--samples", "1"]
    methods = ["--method", "full+snapkv=2k", "--method", "full+snapkv=100"]
    result = call("eval", "copying", *fixed, *methods, "--out", str(run))
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "full+snapkv=2k keeps 2048 keys of each head: prompts of so many tokens or" in said
    assert "full+snapkv=100 keeps" not in said
    all_keys, some_keys = load_run(run).rows.values()
    assert some_keys.values != all_keys.values
    assert call("report", str(run), "--out", str(out)).exit_code == 0
    page = html.unescape((out / "report.html").read_text("utf-8"))
    assert 'full+snapkv=100: {"snapkv": 100}; full+snapkv=2k: {"snapkv": 2048}; dense' in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "magic"], "--method must be one of"),
        (["--method", "full@some"], "must name tokens such as 4096 or 4k"),
        (["--method", "static@4k"], "pass no chunk to a static method"),
        (["--method", "full@4k+snapkv"], "a prompt in one piece"),
        (["--method", "full+snapkv"], "reads as without +snapkv; leave out one of the two"),
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
