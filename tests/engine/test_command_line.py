"""`sparsefill prefill` with the engine: plan, progress, report, interruption, resuming."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsefill.cli.engine import parse_size
from sparsefill.errors import InputError
from tests.support.tiny import PROSE, assert_refused, prefill, read_report


@pytest.fixture(autouse=True)
def _desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompt.txt").write_text(PROSE * 20, "utf-8")


def with_engine(tiny: Path, *flags: str, **changed: object) -> Any:
    return prefill(*flags, **{"model": tiny, "compare": "none", "chunk": 128, **changed})


def test_the_engine_reports_plan_and_peak(tiny: Path):
    assert prefill(model=tiny, compare="none").exit_code == 0
    plain = read_report()
    result = with_engine(tiny, kv="int8")
    assert result.exit_code == 0, result.output
    assert result.stdout.index("memory expected: kv int8, order layers") < result.stdout.index(
        "100 %"
    )
    assert "tokens/s" in result.stdout
    report = read_report()
    engine = report["engine"]
    assert (engine["kv"], engine["order"], engine["chunk"]) == ("int8", "layers", 128)
    plan = engine["plan_bytes"]
    assert plan["peak"] == sum(size for name, size in plan.items() if name != "peak")
    assert engine["peak_bytes"] > plan["weights"]
    assert report["density"] == pytest.approx(plain["density"])
    assert report["sparse_layers"] == plain["sparse_layers"] == 2
    assert report["generated"]["sparse"][:1] == plain["generated"]["sparse"][:1]
    assert engine["recall_row_blocks"] == 16  # more than there are, so all are measured
    assert report["recall"] == pytest.approx(plain["recall"], rel=1e-5)
    assert "recall, mean (16 row blocks of each layer)" in result.stdout
    assert report["ttft_s"]["dense"] is None


def test_recall_by_chunks_is_not_measured(tiny: Path):
    result = with_engine(tiny, order="chunks")
    assert result.exit_code == 0, result.output
    assert read_report()["recall"] == {"mean": None, "p1": None}
    assert "recall" not in result.stdout


def test_nothing_is_read_densely_unless_asked(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a reading in one piece")

    monkeypatch.setattr("sparsefill.cli.prefill.read_prompt", refuse)
    for compare in (None, "none"):
        assert with_engine(tiny, kv="drop", compare=compare).exit_code == 0
    assert isinstance(with_engine(tiny, kv="drop", compare="dense").exception, AssertionError)


@pytest.mark.parametrize(
    ("kv", "new_tokens", "told"), [("drop", 8, True), ("drop", 1, False), ("keep", 8, False)]
)
def test_without_keys_only_the_first_token_is_told(
    tiny: Path, kv: str, new_tokens: int, told: bool
):
    result = with_engine(tiny, kv=kv, new_tokens=new_tokens)
    assert result.exit_code == 0, result.output
    assert ("only the first of the --new-tokens" in result.stdout) == told


def test_dense_without_memory_leaves_the_report(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room for dense")

    monkeypatch.setattr("sparsefill.cli.prefill.read_prompt", fail)
    result = with_engine(tiny, compare="dense")
    assert result.exit_code == 2
    assert "no room for dense" in result.stderr
    report = read_report()
    assert report["ttft_s"]["sparse"] > 0
    assert report["ttft_s"]["dense"] is None
    assert report["engine"]["peak_bytes"] > 0


def test_dense_logits_are_compared(tiny: Path):
    result = with_engine(tiny, compare="dense", method="dense", backend="torch", order="chunks")
    assert result.exit_code == 0, result.output
    report = read_report()
    assert report["logits"]["top1_agreement"] == 1
    assert report["logits"]["kl_mean"] < 1e-6
    assert report["generated"]["dense"] == report["generated"]["sparse"]


def test_max_memory_chooses_the_chunk_or_refuses(tiny: Path):
    result = with_engine(tiny, chunk=None, max_memory="64GiB")
    assert result.exit_code == 0, result.output
    assert read_report()["engine"]["chunk"] == 8192
    before = Path("out/report.json").stat().st_mtime_ns
    result = with_engine(tiny, chunk=None, max_memory="1MiB")
    assert result.exit_code == 2
    assert "got max_memory=0.00 GiB" in result.stderr
    assert Path("out/report.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"kv": "float4"}, "kv must be one of"),
        ({"kv": "disk"}, "pass --save-kv"),
        ({"order": "heads"}, "order must be one of"),
        ({"chunk": 3}, "at least 64 tokens, got 3"),
        ({"max_memory": "much"}, "--max-memory must be a size such as 8GiB"),
        ({"static": "prompt.txt"}, "--static reads the prompt in one piece"),
    ],
    ids=lambda own: own if isinstance(own, str) else "-".join(own),
)
def test_bad_options_are_refused(tiny: Path, changed: dict[str, Any], why: str):
    assert_refused(with_engine(tiny, **changed), why)


def test_resuming_needs_a_folder(tiny: Path):
    assert_refused(with_engine(tiny, "--resume"), "pass --save-kv")


def test_ctrl_c_says_how_to_resume(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    from sparsefill.cli.engine import _Watch

    step = _Watch.step

    def interrupt(self: _Watch, done: int, total: int) -> None:
        step(self, done, total)
        if done == total - 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_Watch, "step", interrupt)
        result = with_engine(tiny, save_kv="kept")
        assert result.exit_code == 130
        last = result.stdout.splitlines()[-1]
        assert last == "stopped; the same command with --resume goes on with what kept holds"
        without = with_engine(tiny)
        assert "nothing was saved: with --save-kv DIR" in without.stdout.splitlines()[-1]
    result = with_engine(tiny, "--resume", save_kv="kept")
    assert result.exit_code == 0, result.output
    resumed = read_report()
    assert resumed["engine"]["resumed"]
    assert with_engine(tiny).exit_code == 0
    assert read_report()["generated"] == resumed["generated"]


@pytest.mark.parametrize(("order", "stopped_at", "units"), [("layers", 7, 2), ("chunks", 2, 3)])
def test_a_part_is_not_compared_with_the_whole(
    tiny: Path, order: str, stopped_at: int, units: int, monkeypatch: pytest.MonkeyPatch
):
    from sparsefill.cli.engine import _Watch

    def interrupt(self: _Watch, done: int, total: int) -> None:
        if done == stopped_at:
            raise KeyboardInterrupt

    wanted: dict[str, Any] = {
        "order": order,
        "save_kv": "kept",
        "compare": "dense",
        "tokens": 600,  # three chunks
    }
    with monkeypatch.context() as patched:
        patched.setattr(_Watch, "step", interrupt)
        assert with_engine(tiny, **wanted).exit_code == 130
    result = with_engine(tiny, "--resume", **wanted)
    assert result.exit_code == 0, result.output
    assert f"resumed: 1 of {units} {order} were read now" in result.stdout
    assert not re.search(r"\d\.\d\dx", result.stdout)
    report = read_report()
    engine = report["engine"]
    assert (engine[order], engine[f"{order}_read"]) == (units, 1)
    assert report["ttft_s"]["sparse"] is report["attention_s"]["sparse"] is None
    assert report["estimate_s"] is report["density"] is report["sparse_layers"] is None
    assert report["recall"] == {"mean": None, "p1": None}
    assert report["ttft_s"]["dense"] > 0
    assert report["logits"]["kl_mean"] > 0
    assert engine["read_now"]["seconds"] > engine["read_now"]["attention_s"] > 0
    assert engine["read_now"]["density"] < 1


def test_resuming_what_had_not_begun_is_a_whole_reading(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    from sparsefill.cli.engine import _Watch

    def interrupt(self: _Watch, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_Watch, "step", interrupt)
        assert with_engine(tiny, save_kv="kept").exit_code == 130
    result = with_engine(tiny, "--resume", save_kv="kept", compare="dense")
    assert "resumed:" not in result.stdout
    report = read_report()
    assert report["engine"]["resumed"]
    assert report["engine"]["layers_read"] == 2
    assert report["ttft_s"]["sparse"] > 0
    assert re.search(r"\d\.\d\dx", result.stdout)


def test_an_interrupt_before_anything_is_saved_promises_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(plan: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsefill.cli.engine.plan_table", interrupt)
    result = with_engine(tiny, save_kv="kept")
    assert result.exit_code == 130
    assert "stopped before anything was saved to kept; begin again" in result.stdout


def test_a_signal_ends_the_command_cleanly(tiny: Path):
    """The real thing: a process that gets SIGINT while it reads."""
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # jobs may ignore it
        "from sparsefill.cli.engine import _Watch\n"
        "step = _Watch.step\n"
        "def interrupt(self, done, total):\n"
        "    step(self, done, total)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "_Watch.step = interrupt\n"
        "from sparsefill.cli import main\n"
        "main()\n"
    )
    options = ["prefill", "--model", str(tiny), "--prompt-file", "prompt.txt", "--tokens", "300"]
    options += ["--compare", "none", "--kv", "keep", "--save-kv", "kept"]
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
        env=there,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "--resume goes on" in done.stdout


MISSING = {  # what is not there: how to simulate it, and what the error says
    "caches-of-layers": (
        "import types, transformers\n"
        "import transformers.cache_utils\n"
        "transformers.cache_utils = types.SimpleNamespace()\n",  # as the engine sees it
        "from release 4.56 on",
    ),
    "greenlet": ("import sys\nsys.modules['greenlet'] = None\n", "greenlet is not installed"),
}


@pytest.mark.parametrize(("lacking", "why"), MISSING.values(), ids=MISSING)
def test_only_the_engine_needs_what_it_needs(tiny: Path, lacking: str, why: str):
    code = lacking + "from sparsefill.cli import main\nmain()\n"
    command = [sys.executable, "-c", code, "prefill", "--model", str(tiny), "--tokens", "300"]
    command += ["--prompt-file", "prompt.txt", "--compare", "none"]
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    plain, engine = (
        subprocess.run([*command, *options], env=there, capture_output=True, text=True, timeout=120)
        for options in ([], ["--kv", "keep"])
    )
    assert plain.returncode == 0, plain.stderr
    assert "time to first token" in plain.stdout
    assert engine.returncode == 2, engine.stderr
    (line,) = engine.stderr.splitlines()
    assert line.startswith("error: ")
    assert why in line


@pytest.mark.parametrize("text", ["", "GiB", "8 XiB", "-1", "0", "nan", "inf", "1..2G", "1e999"])
def test_a_size_that_is_none(text: str):
    with pytest.raises(InputError, match="--max-memory must be a size"):
        parse_size(text)
