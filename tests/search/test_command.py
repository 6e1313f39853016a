"""`sparsefill search` on a tiny model: profile, report, resume, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sparsefill.data import novel
from sparsefill.integrations.transformers.loading import load_model
from sparsefill.integrations.transformers.reading import read_prompt
from sparsefill.profile import Profile
from sparsefill.search import session
from tests.support.tiny import (
    PROSE,
    TINY,
    assert_refused,
    read_report,
    run_cli,
    save_tiny_llama,
)

TOKENS = 512


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare a model and two texts in the current folder."""
    monkeypatch.chdir(tmp_path)
    save_tiny_llama(tmp_path / "tiny")
    Path("one.txt").write_text(PROSE * 20, "utf-8")
    Path("two.txt").write_text(PROSE[::-1] * 20, "utf-8")
    return tmp_path


def search(*flags: object, **changed: object) -> Any:
    options: dict[str, object] = {
        "model": "tiny",
        "out": "profile.json",
        "prompts": "synthetic",
        "tokens": TOKENS,
        "budget": 0.5,
        "budgets": "head",
    } | changed
    parts = [
        part
        for name, value in options.items()
        for part in (f"--{name.replace('_', '-')}", value)
        if value is not None
    ]
    return run_cli("search", *parts, *flags)


def test_a_profile_and_its_report(desk: Path):
    result = search(
        "--prompts",
        "synthetic",
        "--tokens",
        384,
        "--held-out",
        "two.txt",
        prompts="one.txt",
        report="out",
        budgets="model",
        budget=0.75,
        combine="worst",
    )
    assert result.exit_code == 0, result.output
    assert "0:00:00" in result.output  # time left
    profile = Profile.load("profile.json")
    profile.require(TINY)
    said = profile.provenance
    assert [(p["name"], p["tokens"]) for p in said["prompts"]] == [
        ("one.txt", 512),
        ("synthetic key-value retrieval, seed 0", 512),
        ("one.txt", 384),
        ("synthetic key-value retrieval, seed 0", 384),
    ]
    assert said["combine"] == "worst"
    assert 0.6 < said["calibration"]["cost"] <= 0.75
    assert "warning" not in result.output

    report = read_report()
    assert report["profile"] == said
    assert sum(report["heads"].values()) == 8
    assert [(p["name"], p["tokens"]) for p in report["held_out"]] == [
        ("two.txt", 512),
        ("two.txt", 256),
    ]
    for prompt in report["held_out"]:
        rows = {row["name"]: row for row in prompt["rows"]}
        found, uniform = rows["found"], [row for row in prompt["rows"] if row["pattern"]]
        assert list(rows)[:4] == [
            "found",
            "found, slashes fixed",
            "default",
            "found, static indices",
        ]
        fixed, static = rows["found, slashes fixed"], rows["found, static indices"]
        assert fixed["cost"] == pytest.approx(found["cost"], abs=0.1)
        if prompt["tokens"] == 512:  # a shorter prompt reads only a part of what was kept
            assert static["cost"] == pytest.approx(found["cost"], abs=0.1)
        assert static["cost"] <= found["cost"] + 0.1
        assert static["recall"]["mean"] < found["recall"]["mean"]
        assert {row["pattern"]["pattern"] for row in uniform} == {
            "a-shape",
            "vertical-slash",
            "block-topk",
        }
        for row in uniform:
            # dearer by a block at most: block top-k has no other costs
            assert found["cost"] - 0.03 <= row["cost"] < found["cost"] + 0.25
            assert 0 < row["recall"]["mean"] <= 1
            assert row["output_error"]["mean"] >= 0
    assert not list(desk.glob("*.search"))

    model, tokenizer, _ = load_model("tiny")
    ids = tokenizer(PROSE[::-1] * 20, return_tensors="pt").input_ids[:, :TOKENS]
    run = read_prompt(model, ids, profile, min_length=1, measure_recall=True).run
    found = report["held_out"][0]["rows"][0]
    assert run.density == pytest.approx(found["density"], abs=0.02)
    assert float(run.recall().mean()) == pytest.approx(found["recall"]["mean"], abs=0.05)


def test_slashes_may_be_fixed(desk: Path):
    result = search(slashes="fixed", tokens=768, budgets="model", report="out", prompts="one.txt")
    assert result.exit_code == 0, result.output
    profile = Profile.load("profile.json")
    assert profile.provenance["slashes"] == "fixed"
    names = {pattern.name for layer in profile.layers for pattern in layer}
    assert "fixed-slash" in names
    assert "vertical-slash" not in names
    for prompt in read_report()["held_out"]:
        assert "found, slashes fixed" not in [row["name"] for row in prompt["rows"]]
    assert "fixed" not in str(search(out="other.json").output)


def test_a_novel_is_read_unless_prompts_are_given(desk: Path):
    assert search(prompts=None, budget=0.7).exit_code == 0
    prompts = Profile.load("profile.json").provenance["prompts"]
    assert [p["name"].partition(",")[0] for p in prompts] == [
        "Northanger Abbey",
        "synthetic key-value retrieval",
    ]
    assert search(prompts="novel", budget=0.7).exit_code == 0
    assert len(Profile.load("profile.json").provenance["prompts"]) == 1


def test_a_prompt_longer_than_the_novel_is_synthetic(desk: Path, monkeypatch: pytest.MonkeyPatch):
    from sparsefill.cli import search as command

    monkeypatch.setattr(command, "novel", lambda name="persuasion": PROSE[:300])
    result = search(prompts=None)
    assert result.exit_code == 0
    assert "Northanger Abbey has only" in result.output
    assert "searching on synthetic prompts alone" in result.output
    assert len(Profile.load("profile.json").provenance["prompts"]) == 1
    assert_refused(search(prompts="novel"), "Northanger Abbey has only")


def test_a_budget_that_no_candidate_meets_is_told(desk: Path):
    result = search(budget=0.1)
    assert result.exit_code == 0
    assert "warning: the cheapest candidates cost 58." in result.output


def test_the_same_seed_gives_the_same_file(desk: Path):
    for name, seed in (("a.json", 7), ("b.json", 7), ("c.json", 8)):
        assert search(out=name, seed=seed).exit_code == 0
    a, b, c = (Path(name).read_bytes() for name in ("a.json", "b.json", "c.json"))
    assert a == b != c
    assert str(desk).encode() not in a


def test_a_killed_command_goes_on(desk: Path, monkeypatch: pytest.MonkeyPatch):
    real, calls = session.score_layer, []

    def killed_at_the_second(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(session, "score_layer", killed_at_the_second)
    assert search().exit_code != 0
    assert not Path("profile.json").exists()
    assert_refused(search(seed=5), "holds a search with another prompts")
    resumed = search()
    assert resumed.exit_code == 0, resumed.output
    assert "going on with 1 of 2 layers" in resumed.output
    assert len(calls) == 3
    assert search(out="whole.json").exit_code == 0
    assert Path("profile.json").read_bytes() == Path("whole.json").read_bytes()


ERRORS: dict[str, tuple[dict[str, object], str]] = {
    "no-model": ({"model": "none.gguf"}, "no GGUF file at none.gguf"),
    "no-prompt-file": ({"prompts": "none.txt"}, "no prompt file at none.txt; check --prompts"),
    "no-held-out-file": ({"held_out": "none.txt"}, "check --held-out"),
    "too-short": ({"prompts": "one.txt", "tokens": 3000}, "one.txt has only"),
    "budget-above": ({"budget": 1.5}, "between 0 and 1, got 1.5"),
    "budget-below": ({"budget": 0}, "between 0 and 1, got 0.0"),
    "objective": ({"objective": "mass"}, "objective must be one of output, recall, got 'mass'"),
    "budgets": ({"budgets": "layer"}, "budgets must be one of head, model"),
    "slashes": ({"slashes": "none"}, "slashes must be one of online, fixed, got 'none'"),
    "backend": ({"backend": "fpga"}, "unknown backend 'fpga'"),
    "out-is-a-folder": ({"out": "tiny"}, "--out must be a file"),
    "out-in-a-file": ({"out": "one.txt/profile.json"}, "--out must be in a folder"),
    "report-is-a-file": ({"report": "one.txt"}, "--report must be in a folder"),
}


@pytest.mark.parametrize(("changed", "why"), ERRORS.values(), ids=ERRORS)
def test_errors(desk: Path, changed: dict[str, object], why: str):
    assert_refused(search(**changed), why)
    assert not list(desk.glob("*.search"))


def test_changed_weights_are_noticed(desk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.Session, "finish", lambda self: None)  # keep the work folder
    assert search().exit_code == 0
    path = Path("tiny/model.safetensors")
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.q_proj.weight"][-1, -1] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    assert_refused(search(), "holds a search with another weights")


DAMAGE = {
    "scores-cut": ("prompt-0-layer-1.json", '{"patterns": [', "damaged"),
    "scores-empty": ("prompt-0-layer-1.json", "{}", "damaged"),
    "scores-list": ("prompt-0-layer-1.json", "[]", "damaged"),
    "search-cut": ("search.json", '{"arch', "damaged"),
    "search-list": ("search.json", "[]", "damaged"),
}


@pytest.mark.parametrize(("name", "text", "why"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_work_folder(desk: Path, monkeypatch: pytest.MonkeyPatch, name, text, why):
    with monkeypatch.context() as kept:
        kept.setattr(session.Session, "finish", lambda self: None)
        assert search().exit_code == 0
    Path("profile.json.search", name).write_text(text, "utf-8")
    assert_refused(search(), why)


def test_scores_without_their_search_are_refused(desk: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as kept:
        kept.setattr(session.Session, "finish", lambda self: None)
        assert search().exit_code == 0
    Path("profile.json.search/search.json").unlink()
    assert_refused(search(), "not the work folder of a search")


def test_held_out_retrieval_has_other_keys(desk: Path):
    assert search("--held-out", "synthetic", report="out").exit_code == 0
    (calibration,) = Profile.load("profile.json").provenance["prompts"]
    held = read_report()["held_out"][0]
    assert held["tokens"] == calibration["tokens"]
    assert held["sha256"] != calibration["sha256"]


def test_held_out_text_is_compared_with_every_prompt(desk: Path):
    Path("copy.txt").write_text(novel() + "\n", "utf-8")
    assert_refused(
        search("--held-out", "novel", prompts="copy.txt"), "--held-out must name other text"
    )


def test_a_model_of_windows_alone(desk: Path):
    save_tiny_llama(Path("windows"))
    config = json.loads(Path("windows/config.json").read_text("utf-8"))
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    config["sliding_window"] = 48
    Path("windows/config.json").write_text(json.dumps(config), "utf-8")
    result = search(model="windows")
    assert result.exit_code == 2, result.output
    assert "every layer has a sliding window" in result.stderr


def test_held_out_text_must_be_other_text(desk: Path):
    assert_refused(search(prompts="one.txt", held_out="one.txt"), "--held-out must name other text")
