"""Every family by its name, every method by its name, and figures from what a model says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.evals.methods import method_of, names
from sparsefill.evals.task import Measurable, Task
from sparsefill.evals.tasks import families, tasks_of
from sparsefill.patterns import AShape, Dense, InfLLM, Interleaved, VerticalSlash
from sparsefill.profile import Architecture, Profile
from sparsefill.reader import Heads, Method
from tests.evals.support import Scripted, making

PROFILE = Profile.uniform(VerticalSlash(), Architecture(layers=1, heads=2, kv_heads=1, head_dim=64))
FULL = Method(name="full", cells=Dense())


def test_the_families():
    every = families()
    assert {name: len(tasks) for name, tasks in every.items()} == {
        "ruler": 14,
        "infinitebench": 12,
        "needle": 2,
        "copying": 1,
        "perplexity": 1,
        "fidelity": 1,
    }
    for family, tasks in every.items():
        assert all(name.startswith(f"{family}/") for name in tasks)
        assert all(isinstance(task, Measurable) for task in tasks.values())


def test_a_family_without_its_files_leaves_tasks_out_and_says_so(tmp_path: Path):
    tasks, left_out = tasks_of(["ruler", "needle/minference", "ruler/vt"])
    assert len(tasks) == 13  # 11, the stand-in, and the needle; none twice
    assert left_out == ["ruler/qa_1", "ruler/qa_2"]
    tasks, left_out = tasks_of(["ruler"], data=tmp_path)
    assert len(tasks) == 14
    assert left_out == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["quality"], "there is no task 'quality'; use one of ruler, infinitebench"),
        (["ruler/quality"], "there is no task 'ruler/quality'; use one of ruler/niah_single_1"),
        (["ruler/qa_1"], "ruler/qa_1 needs the files that its benchmark publishes; pass --data"),
        ([], "no task is left"),
    ],
)
def test_tasks_that_there_are_not(names: list[str], message: str):
    with pytest.raises(InputError, match=message):
        tasks_of(names)


def test_rules_of_infinitebench():
    limits = []
    for rules in ("official", "minference"):
        task = families(rules)["infinitebench"]["infinitebench/passkey"]
        assert isinstance(task, Task)
        limits.append(task.new_tokens)
    assert limits == [6, 15]
    with pytest.raises(InputError, match="rules must be one of"):
        families("house")


def test_the_methods_of_the_paper():
    found = {name: method_of(name, PROFILE) for name in names()}
    assert {name: method.cells for name, method in found.items()} == {
        "full": Dense(),
        "minference": PROFILE,
        "static": PROFILE,
        "streaming-llm": AShape(sink=1024, window=4096),
        "dilated": Interleaved(sink=1024, even=8192, odd=0),
        "strided": Interleaved(sink=1024, even=2048, odd=6144),
        "infllm": InfLLM(sink=128, window=8192),
    }
    assert [name for name, method in found.items() if method.static] == ["static"]
    described = [repr(method.describe()) for method in found.values()]
    assert len(set(described)) == len(described)
    assert method_of("a-shape:sink=4,window=64", PROFILE).cells == AShape(sink=4, window=64)
    with pytest.raises(InputError, match="--method must be one of full, minference"):
        method_of("magic", PROFILE)


def test_methods_in_chunks():
    for name, chunk in (("minference@4k", 4096), ("a-shape:sink=4,window=64@300", 300)):
        whole, method = method_of(name.partition("@")[0], PROFILE), method_of(name, PROFILE)
        assert (method.name, method.cells, method.chunk) == (name, whole.cells, chunk)
        assert method.describe() == {**whole.describe(), "chunk": chunk}
    for name in ("minference@", "minference@4q", "full@-1", "full@0"):
        with pytest.raises(InputError, match="must name tokens such as 4096 or 4k"):
            method_of(name, PROFILE)
    for name in ("static@4k", "minference@63", "minference@9999999999k"):
        with pytest.raises(InputError, match="needs 64 to 2\\^31 - 1 tokens"):
            method_of(name, PROFILE)


def test_methods_that_decode_with_some_keys():
    for name, keys in (("full+snapkv", 4096), ("a-shape:sink=4,window=64+snapkv=300", 300)):
        whole, method = method_of(name.partition("+")[0], PROFILE), method_of(name, PROFILE)
        assert (method.name, method.cells, method.keys) == (name, whole.cells, keys)
        assert method.describe() == {**whole.describe(), "decode": {"snapkv": keys}}
    assert method_of("static+snapkv", PROFILE).static
    for name in ("full+snapkv=", "full+snapkv=4q", "full+snapkv:4k", "full+snapkv4k"):
        with pytest.raises(InputError, match="must name tokens such as 4096 or 4k"):
            method_of(name, PROFILE)
    for name in ("full@4k+snapkv", "full+snapkv=63"):
        with pytest.raises(InputError, match="needs 64 to 2\\^31 - 1 of them, and a prompt in one"):
            method_of(name, PROFILE)
    with pytest.raises(InputError, match="must be one of full"):
        method_of("full+quest", PROFILE)


@pytest.mark.parametrize(
    ("typed", "called"),
    [
        ("minference@4096", "minference@4k"),
        ("minference@4K", "minference@4k"),
        ("full@1048576", "full@1m"),
        ("full@4097", "full@4097"),
        ("full+snapkv=4096", "full+snapkv"),
        ("full+snapkv=1024", "full+snapkv=1k"),
    ],
)
def test_a_method_has_one_name(typed: str, called: str):
    assert method_of(typed, PROFILE).name == called


def test_copying_is_scored_by_its_words():
    task = families()["copying"]["copying/word_lists"]
    words = " ".join(f"{a}{b}{c}word." for a in "abcdef" for b in "abcdef" for c in "ghi")
    from sparsefill.evals.haystack import Haystack

    made = making(task.name, length=2500, haystack=Haystack("words", words * 9))
    outcome = task.prepare(made)(Scripted({}), FULL)
    assert outcome.score == 1
    assert outcome.values == {
        "nll_of_words": 0.5,
        "right_tokens": 1.0,
        "nll_of_words_at_12": 0.5,
        "nll_of_words_at_52": 0.5,
        "nll_of_words_at_88": 0.5,
    }
    assert outcome.tokens < 2500


def test_perplexity_is_told_by_position():
    task = families()["perplexity"]["perplexity/windows"]
    outcome = task.prepare(making(task.name, length=3000, index=2))(Scripted({}), FULL)
    assert outcome.tokens == 3000
    assert outcome.score is None
    assert outcome.values["nll"] == 2
    assert outcome.values["nll_tokens"] == 2999
    assert outcome.values["perplexity"] == pytest.approx(7.389, abs=1e-3)
    parts = [name for name in outcome.values if name.startswith("nll_to_")]
    assert parts == ["nll_to_1024", "nll_to_2048", "nll_to_2999"]


def test_fidelity_of_the_same_logits():
    task = families()["fidelity"]["fidelity/last_positions"]
    reader = Scripted({})
    outcome = task.prepare(making(task.name, length=700))(reader, FULL)
    assert reader.read == [("full", 700)]
    assert outcome.values["kl_mean"] == 0
    assert outcome.values["top1"] == outcome.values["perplexity_ratio"] == 1
    assert outcome.values["same_greedy_tokens"] == 32


def test_fidelity_reads_full_attention_once_for_all_methods_of_a_sample():
    measure = families()["fidelity"]["fidelity/last_positions"].prepare(
        making("fidelity/last_positions", length=700)
    )
    reader, sparse = Scripted({}), Method(name="sparse", cells=AShape())
    for method in (sparse, FULL, sparse):
        measure(reader, method)
    assert [name for name, _ in reader.read] == ["sparse", "full", "full", "sparse"]


def test_fidelity_is_told_by_layer_and_head_where_something_is_left_out():
    task, reader = families()["fidelity"]["fidelity/last_positions"], Scripted({})
    whole = task.prepare(making(task.name, length=700))(reader, FULL).values
    assert (whole["recall"], whole["output_error"]) == (1, 0)
    assert not any("/" in name for name in whole)
    rising = torch.arange(6, dtype=torch.float64).view(2, 3) / 6
    reader.heads = Heads(rising, rising + 1, rising)
    values = task.prepare(making(task.name, length=700))(reader, FULL).values
    assert values["recall"] == pytest.approx(5 / 12)
    assert values["output_error"] == pytest.approx(17 / 12)
    named = {name: own for name, own in values.items() if "/" in name}
    assert len(named) == 3 * 6
    assert named["recall/1/0"] == named["density/1/0"] == 0.5
    assert named["output_error/0/1"] == round(7 / 6, 6)


@pytest.mark.parametrize("length", [1, 2])
def test_fidelity_without_a_known_next_token_is_refused_before_anything_is_read(length: int):
    task = families()["fidelity"]["fidelity/last_positions"]
    with pytest.raises(InputError, match=f"needs 3 tokens for that, got {length}; pass a larger"):
        task.prepare(making(task.name, length=length))
    outcome = task.prepare(making(task.name, length=3))(Scripted({}), FULL)
    assert outcome.values["rows"] == 2
    assert "perplexity_ratio" in outcome.values


def test_a_scorer_without_its_package_is_told_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    row = {"context": "A book.", "input": "", "answer": ["It ends."]}
    (tmp_path / "longbook_sum_eng.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    task = families()["infinitebench"]["infinitebench/longbook_sum_eng"]
    made = making(task.name, length=4000, data=tmp_path)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UnsupportedError, match="package rouge-score"):
        task.prepare(made)
