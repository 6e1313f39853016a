"""A dense pattern answers as vLLM does, however prompts are cut, shared and spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vllm.conftest import Ran, generate, prompts

LONG = (1, 3, 5)
DENSE = {"pattern": "dense", "min_length": 256}


def differences(ran: Ran, stock: Ran) -> list[float]:
    """Return the largest difference of the log-probabilities of each answer's tokens."""
    for own, other in zip(ran.answers, stock.answers, strict=True):
        assert own["tokens"] == other["tokens"]
    return [
        max(abs(x - y) for x, y in zip(own["logprobs"], other["logprobs"], strict=True))
        for own, other in zip(ran.answers, stock.answers, strict=True)
    ]


@pytest.mark.smoke
def test_without_being_chosen_the_plugin_does_nothing(stock: Ran):
    assert stock.told == []
    assert stock.metrics == ""


def test_a_dense_pattern_answers_as_vllm_does(stock: Ran, model: Path, scratch: Path):
    ran = generate(scratch, model, prompts(), {**DENSE, "recall_every": 1})
    found = differences(ran, stock)
    assert max(found) < 1e-4
    assert [found[i] for i in (0, 2, 4)] == [0, 0, 0]  # short prompts are vLLM's own
    prompts_read = [line for line in ran.told if "read sparsely in" in line]
    assert len(prompts_read) == 3, ran.told
    assert any("prompt of 700 tokens" in line for line in prompts_read)
    assert any("prompt of 1300 tokens" in line for line in prompts_read)
    # a page is 128 tokens: ten of the 1300 were found in the cache
    assert any("prompt of 1600 tokens, 320 of them read sparsely" in line for line in prompts_read)
    assert all("density 100.0 %, recall 100.00 %" in line for line in prompts_read)
    assert 'sparsefill:prompts_total{path="sparse"} 3.0' in ran.metrics
    assert 'sparsefill:prompts_total{path="dense"} 3.0' in ran.metrics
    assert "sparsefill:recall_count 3.0" in ran.metrics


@pytest.mark.smoke
def test_two_ranks_answer_as_one(stock: Ran, model: Path, scratch: Path):
    ran = generate(
        scratch,
        model,
        prompts(),
        DENSE,
        tensor_parallel_size=2,
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
    )
    assert max(differences(ran, stock)) < 1e-4
    starts = [line for line in ran.told if "read long prompts by dense" in line]
    assert len(starts) == 2, ran.told  # one a rank
    assert 'sparsefill:prompts_total{path="sparse"} 3.0' in ran.metrics  # counted once


@pytest.mark.parametrize(
    "changed",
    [{"max_num_batched_tokens": 333}, {"max_num_batched_tokens": 2048}, {"dtype": "bfloat16"}],
    ids=["unaligned chunks", "whole prompts", "bf16"],
)
def test_sparse_prompts_are_read_sparsely_and_others_as_before(
    changed: dict[str, Any], stock: Ran, model: Path, scratch: Path
):
    sparse = {"pattern": "a-shape:sink=64,window=64", "min_length": 256, "recall_every": 2}
    ran = generate(scratch, model, prompts(), sparse, **changed)
    same = [
        own["tokens"] == other["tokens"]
        for own, other in zip(ran.answers, stock.answers, strict=True)
    ]
    firsts = [
        abs(own["logprobs"][0] - other["logprobs"][0])
        for own, other in zip(ran.answers, stock.answers, strict=True)
    ]
    assert all(firsts[i] > 0.01 for i in LONG), firsts
    if "dtype" not in changed:
        assert all(same[i] for i in (0, 2, 4))
        assert all(firsts[i] < 1e-4 for i in (0, 2, 4)), firsts
    assert 'sparsefill:prompts_total{path="sparse"} 3.0' in ran.metrics
    assert "sparsefill:recall_count 1.0" in ran.metrics


def test_compiled_models_are_served(stock: Ran, model: Path, scratch: Path):
    ran = generate(scratch, model, prompts(), DENSE, enforce_eager=False)
    assert max(differences(ran, stock)) < 1e-4
    assert 'sparsefill:prompts_total{path="sparse"} 3.0' in ran.metrics


def test_pipeline_stages_read_their_own_layers(stock: Ran, model: Path, scratch: Path):
    ran = generate(
        scratch,
        model,
        prompts(),
        DENSE,
        pipeline_parallel_size=2,
        enforce_eager=False,  # vLLM's own pipelines need that on a CPU
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
    )
    assert max(differences(ran, stock)) < 1e-4
    starts = sorted(line for line in ran.told if "read long prompts by dense" in line)
    assert ["layers 0 to 0" in starts[0], "layers 1 to 1" in starts[1]] == [True, True]
    assert 'sparsefill:prompts_total{path="sparse"} 3.0' in ran.metrics
