"""What `info` and `prefill` print, write and refuse; `draw` is tested with the pictures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsefill import AShape, BlockTopK, native
from sparsefill.cli import main
from sparsefill.cli.inputs import DTYPES
from sparsefill.patterns import Pattern
from sparsefill.profile import Architecture, Profile
from tests.support.byte_bpe import RULE
from tests.support.tiny import (
    PROSE,
    SPARSE,
    TINY,
    TOKENS,
    assert_refused,
    prefill,
    read_report,
    run_cli,
    save_tiny_llama,
)

FASTEST = "torch" if native.library() is None else "cpu"


@pytest.fixture(autouse=True)
def _desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with one good prompt and every kind of bad file."""
    monkeypatch.chdir(tmp_path)
    Path("prompt.txt").write_text(PROSE * 20, "utf-8")
    Path("short.txt").write_text(PROSE, "utf-8")
    Path("empty.txt").write_text(" \n", "utf-8")
    Path("latin.txt").write_bytes("naïve".encode("latin-1"))
    Path("broken.json").write_text('{"schema": 1,', "utf-8")
    Path("no-config").mkdir()
    other = Architecture(layers=3, heads=4, kv_heads=2, head_dim=16)
    Profile.uniform(AShape(), other).save("other.json")


def test_info():
    result = run_cli("info")
    assert result.exit_code == 0
    assert torch.__version__ in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert any(row[:1] == [FASTEST] and "yes:" in row for row in rows)
    assert "compiled kernels" in result.stdout
    assert ["profiles", "smollm2-135m-instruct"] in rows
    assert any(
        row[:4] == ["profiles,", "not", "searched", "here"] and len(row) == 10 for row in rows
    )
    assert "sparse from" in result.stdout
    assert any(row[:1] == ["reference"] and "no:" in row for row in rows)


@pytest.mark.parametrize("compare", [None, "dense", "none"])
def test_report(tiny: Path, compare: str):
    result = prefill(model=tiny, compare=compare)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found = read_report()
    assert found["tokens"] == TOKENS
    assert found["backend"] == FASTEST
    assert found["method"] == SPARSE
    assert found["sparse_layers"] == 2
    assert 0.4 < found["density"] < 0.7  # 64 keys and a tile's excess, of 150 on average
    assert 0 < found["recall"]["p1"] < found["recall"]["mean"] < 1
    assert found["estimate_s"] > 0
    assert found["peak_bytes"] > 2**20
    assert found["environment"]["versions"]["torch"] == torch.__version__
    assert found["logits"]["positions"] == 256
    for name in ("ttft_s", "attention_s"):
        assert found[name].keys() == {"dense", "sparse"}
        assert found[name]["sparse"] > 0
    dense = [found[name]["dense"] for name in ("ttft_s", "attention_s", "generated")]
    fidelity = [found["logits"][name] for name in ("kl_mean", "top1_agreement")]
    if compare == "none":
        assert {*dense, *fidelity} == {None}
    else:
        assert None not in dense
        assert fidelity[0] > 0
        assert 0 < fidelity[1] < 1
    assert isinstance(found["generated"]["sparse"], str)
    assert sorted(os.listdir("out")) == ["cells-a-shape.png", "report.json"]


def test_method_dense_changes_nothing(tiny: Path):
    assert prefill(model=tiny, method="dense", backend="torch").exit_code == 0
    found = read_report()
    assert found["density"] == 1
    assert found["recall"] == {"mean": None, "p1": None}
    assert found["logits"] == {"positions": 256, "kl_mean": 0, "top1_agreement": 1}
    assert found["generated"]["dense"] == found["generated"]["sparse"]


@pytest.mark.parametrize("method", ["vertical-slash:verticals=9,slashes=9", "tri-shape:window=64"])
def test_method(tiny: Path, method: str):
    assert prefill(model=tiny, method=method, compare="none", out=None).exit_code == 0
    assert not Path("out").exists()


def test_long_prompts_are_told_of_the_engine(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    assert "--kv keep" not in prefill(model=tiny, compare="none").stdout
    monkeypatch.setattr("sparsefill.cli.prefill.LONG", 64)
    assert "with --kv keep" in prefill(model=tiny, compare="none").stdout
    assert "with --kv keep" not in prefill(model=tiny, compare="none", kv="keep").stdout


@pytest.mark.parametrize("computes", [True, False])
def test_bfloat16_is_warned_of_where_it_is_slow(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, computes: bool
):
    monkeypatch.setattr("sparsefill.cli.inputs.fast_bfloat16", lambda device: computes)
    asked = {dtype: prefill(model=tiny, compare="none", dtype=dtype) for dtype in DTYPES}
    warned = {dtype for dtype, result in asked.items() if "--dtype float32" in result.stdout}
    assert all(result.exit_code == 0 for result in asked.values())
    assert warned == (set() if computes else {"bfloat16"})


def test_cells_of_another_text(tiny: Path):
    lines = "vertical-slash:verticals=9,slashes=9,sink=1,window=1"
    Path("other.txt").write_text(PROSE[::-1] * 10, "utf-8")
    recall = {}
    for static in (None, "other.txt"):
        result = prefill(model=tiny, method=lines, min_length=1, compare="none", static=static)
        assert result.exit_code == 0, result.stderr
        found = read_report()
        assert found["static"] == static
        recall[static] = found["recall"]["mean"]
    assert recall["other.txt"] < recall[None]


def test_another_text_must_be_as_long(tiny: Path):
    Path("other.txt").write_text(PROSE, "utf-8")
    assert_refused(prefill(model=tiny, static="other.txt"), "other.txt has only")
    assert_refused(prefill(model=tiny, static="no.txt"), "check --static")


def test_a_profile_that_was_not_searched_is_named(tiny: Path):
    result = prefill(model=tiny, method=None, compare="none")
    assert "this profile was not searched here" in result.stdout
    Profile(
        architecture=TINY, layers=((AShape(),) * 4,) * 2, provenance={"origin": "searched here"}
    ).save("mine.json")
    result = prefill(model=tiny, method=None, profile="mine.json", compare="none")
    assert "not searched" not in result.stdout


def test_profile(tiny: Path):
    patterns: tuple[Pattern, ...] = (AShape(sink=4, window=64), BlockTopK(blocks=2))
    layers = ((patterns[0],) * 4, (patterns[0], patterns[1]) * 2)
    Profile(architecture=TINY, layers=layers).save("mine.json")
    result = prefill(model=tiny, method=None, profile="mine.json")
    assert result.exit_code == 0, result.stderr
    assert read_report()["method"] == "minference"
    pictures = ["cells-a-shape.png", "cells-block-topk.png"]
    assert sorted(os.listdir("out")) == [*pictures, "report.json"]
    assert all(Path("out", name).read_bytes().startswith(b"\x89PNG") for name in pictures)


BAD: dict[str, tuple[dict[str, object], str]] = {  # id: what is changed, what the error names
    "prompt-missing": ({"prompt_file": "nowhere.txt"}, "nowhere.txt"),
    "prompt-empty": ({"prompt_file": "empty.txt"}, "empty"),
    "prompt-not-utf8": ({"prompt_file": "latin.txt"}, "UTF-8"),
    "prompt-folder": ({"prompt_file": "no-config"}, "no-config"),
    "method-unknown": ({"method": "spiral"}, "unknown pattern 'spiral'"),
    "method-parameter": ({"method": "a-shape:width=3"}, "'width'"),
    "method-value": ({"method": "a-shape:window=none"}, "window=none"),
    "method-range": ({"method": "a-shape:window=0"}, "AShape.window"),
    "model-without-config": ({"model": "no-config"}, "config.json"),
    "gguf-missing": ({"model": "nowhere.gguf"}, "nowhere.gguf"),
    "profile-missing": ({"method": None, "profile": "nowhere.json"}, "nowhere.json"),
    "profile-broken": ({"method": None, "profile": "broken.json"}, "broken.json"),
    "profile-of-another": ({"method": None, "profile": "other.json"}, "layers=3"),
    "profile-and-method": ({"profile": "other.json"}, "--method"),
    "backend-unknown": ({"backend": "abacus"}, "unknown backend 'abacus'"),
    "backend-elsewhere": (
        {"backend": "triton", "device": "meta"},
        "needs tensors on a GPU, got meta",
    ),
    "dtype-unknown": ({"dtype": "int3"}, "'int3'"),
    "device-unknown": ({"device": "abacus"}, "'abacus'"),
    "compare-unknown": ({"compare": "sparse"}, "'sparse'"),
}


@pytest.mark.parametrize(("changed", "why"), BAD.values(), ids=BAD)
def test_prefill_refuses(tiny: Path, changed: dict[str, object], why: str):
    assert_refused(prefill(**{"model": tiny, **changed}), why)


def test_out_must_be_a_folder(tiny: Path):
    before = Path("short.txt").read_bytes()
    assert_refused(prefill(model=tiny, out="short.txt"), "short.txt")
    assert Path("short.txt").read_bytes() == before


def test_more_tokens_than_positions(tmp_path: Path):
    model = save_tiny_llama(tmp_path / "model", positions=128)
    why = f"{TOKENS} tokens exceed the 128 positions"
    assert_refused(prefill("--strict", model=model), why)
    result = prefill(model=model, out=None)
    assert result.exit_code == 0
    assert f"warning: {why}" in result.stdout
    assert "not to be trusted" in result.stdout


def test_fewer_tokens_than_asked(tiny: Path):
    why = f"only {len(PROSE)} of the {TOKENS} --tokens"
    assert_refused(prefill("--strict", model=tiny, prompt_file="short.txt"), why)
    result = prefill(model=tiny, prompt_file="short.txt")
    assert result.exit_code == 0
    assert why in result.stdout
    assert read_report()["tokens"] == len(PROSE)


def test_a_long_token_is_one_token(tiny: Path):
    Path("rules.txt").write_text(RULE * TOKENS, "utf-8")
    result = prefill("--strict", model=tiny, prompt_file="rules.txt")
    assert result.exit_code == 0, result.stderr
    assert read_report()["tokens"] == TOKENS


def test_a_model_in_brackets_is_not_markup(tiny: Path):
    shutil.copytree(tiny, "model[/]")
    result = prefill(model="model[/]", out=None)
    assert result.exit_code == 0, result.exception
    assert "model[/]: 300 tokens" in result.stdout


def test_a_folder_in_brackets_is_not_markup(tiny: Path):
    result = prefill(model=tiny, out="out[/]")
    assert result.exit_code == 0, result.exception
    assert "wrote out[/]/report.json" in result.stdout


def test_what_a_model_says_is_not_markup(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.decode", lambda *_, **__: "[/INST]")
    result = prefill(model=tiny)
    assert result.exit_code == 0, result.exception
    assert result.stdout.count("'[/INST]'") == 2
    assert read_report()["generated"] == {"dense": "[/INST]", "sparse": "[/INST]"}


@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
def test_a_failing_write_keeps_the_old_report(
    tiny: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise failure

    Path("out").mkdir()
    Path("out/report.json").write_text("old", "utf-8")
    monkeypatch.setattr(os, "replace", fail)
    result = prefill(model=tiny)
    assert result.exit_code == (2 if isinstance(failure, OSError) else 130)
    assert "Traceback" not in result.output
    assert os.listdir("out") == ["report.json"]
    assert Path("out/report.json").read_text("utf-8") == "old"


def test_an_unknown_model_from_the_shell():
    options = ["prefill", "--model", "nobody/nothing", "--prompt-file", "prompt.txt"]
    result = subprocess.run(
        [sys.executable, "-c", "from sparsefill.cli import main; main()", *options, "--out", "out"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert [line[:7] for line in result.stderr.splitlines()] == ["error: "]
    assert "nobody/nothing" in result.stderr
    assert not Path("out").exists()


def test_a_missing_dependency_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "sparsefill.cli.app")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "needs typer" in capsys.readouterr().err
