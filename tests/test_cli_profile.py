"""`sparsefill profile`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsefill import AShape, Dense, VerticalSlash
from sparsefill.architecture import Architecture
from sparsefill.profile import Profile, shipped_profiles
from tests.support.tiny import TINY, assert_refused, run_cli, save_tiny_gguf, save_tiny_llama

ENTRIES = {str(head): ["vertical_and_slash", 30 + head, 800, 0.5 + head / 8] for head in range(4)}
CONFIG = [ENTRIES, {**ENTRIES, "3": ["stream_llm", 100, 800, 0.25]}]
ROPE_BASE = 500_000.0  # of the tiny model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_llama(folder / "tiny")
    save_tiny_gguf(folder / "tiny.gguf")
    return folder


@pytest.fixture(autouse=True)
def _desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("original.json").write_text(json.dumps(CONFIG), "utf-8")
    Path("broken.json").write_text(json.dumps(CONFIG)[:-9], "utf-8")
    Path("binary.json").write_bytes(b"\x80" * 99)


@pytest.mark.parametrize("name", ["tiny", "tiny.gguf"])
def test_import_and_export_for_a_model(models: Path, name: str):
    arguments = ["original.json", "--model", models / name, "--out", "own/profile.json"]
    result = run_cli("profile", "import", *arguments)
    assert result.exit_code == 0, result.stderr
    assert "2 layers of 4 heads, not searched here" in result.stdout
    profile = Profile.load("own/profile.json")
    expected = {**TINY.shape, "rope_base": ROPE_BASE}
    assert profile.architecture == Architecture(**expected)
    assert profile[1] == (
        *(VerticalSlash(verticals=30 + head, slashes=800) for head in range(3)),
        AShape(sink=100, window=800),
    )
    result = run_cli("profile", "export", "own/profile.json", "--out", "back.json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(Path("back.json").read_text("utf-8")) == CONFIG
    result = run_cli("profile", "check", "own/profile.json", "--model", models / name)
    assert result.exit_code == 0, result.stderr
    assert "is valid and fits" in result.stdout


@pytest.mark.parametrize("base", [None, 1e6])
def test_import_without_a_model(base: float | None):
    facts = ["--kv-heads", 2, "--head-dim", 16] + ([] if base is None else ["--rope-base", base])
    result = run_cli("profile", "import", "original.json", *facts, "--out", "own.json")
    assert result.exit_code == 0, result.stderr
    expected = {**TINY.shape, "rope_base": base}
    assert Profile.load("own.json").architecture == Architecture(**expected)


@pytest.mark.parametrize("name", shipped_profiles())
def test_show_and_check(name: str):
    result = run_cli("profile", "show", name)
    assert result.exit_code == 0, result.stderr
    profile = Profile.load(name)
    assert f"{profile.architecture.layers} layers" in result.stdout
    assert profile.provenance["model"] in result.stdout
    assert profile.provenance["origin"] in result.stdout
    result = run_cli("profile", "check", name)
    assert result.stdout.strip() == f"{name} is valid"


def test_show_scores(models: Path):
    run_cli("profile", "import", "original.json", "--model", models / "tiny", "--out", "own.json")
    assert "scores: 0.25 to 0.875, mean 0.6094" in run_cli("profile", "show", "own.json").stdout


FACTS = ["--kv-heads", 2, "--head-dim", 16, "--out", "out/own.json"]
BAD: dict[str, tuple[list[object], str]] = {
    "import-nothing-known": (
        ["import", "original.json", "--out", "out/o.json"],
        "pass --model, or",
    ),
    "import-both": (["import", "original.json", "--model", "x", *FACTS], "pass only one"),
    "import-missing": (["import", "none.json", *FACTS], "none.json"),
    "import-folder": (["import", ".", *FACTS], "cannot read MInference config"),
    "import-cut": (["import", "broken.json", *FACTS], "broken.json is not valid JSON"),
    "import-binary": (["import", "binary.json", *FACTS], "cannot read MInference config binary"),
    "import-no-model": (
        ["import", "original.json", "--model", "none.gguf", "--out", "out/o.json"],
        "none.gguf",
    ),
    "import-kv-heads": (
        ["import", "original.json", "--kv-heads", 0, "--head-dim", 8, "--out", "out/o.json"],
        "architecture.kv_heads",
    ),
    "export-dense": (["export", "dense.json", "--out", "out/o.json"], "layer 0, head 0 uses Dense"),
    "export-missing": (["export", "none", "--out", "out/o.json"], "no profile 'none'"),
    "check-original": (["check", "original.json"], "original.json must be an object with"),
    "show-binary": (["show", "binary.json"], "cannot read profile binary.json"),
}


@pytest.mark.parametrize(("arguments", "why"), BAD.values(), ids=BAD)
def test_refusals(arguments: list[object], why: str):
    Profile.uniform(Dense(), TINY).save("dense.json")
    assert_refused(run_cli("profile", *arguments), why)


def test_a_profile_of_another_rope_base_is_refused(models: Path):
    Profile.uniform(Dense(), Architecture(**TINY.shape, rope_base=1e4)).save("own.json")
    result = run_cli("profile", "check", "own.json", "--model", models / "tiny")
    assert_refused(result, "rope_base=10000, got rope_base=500000")


def test_a_config_of_another_model_is_refused(models: Path):
    Path("short.json").write_text(json.dumps(CONFIG[:1]), "utf-8")
    facts = ["--model", models / "tiny", "--out", "out/own.json"]
    result = run_cli("profile", "import", "short.json", *facts)
    assert_refused(result, "lists 1 layers, the model has 2")
