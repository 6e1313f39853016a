"""Which requests of a step are read sparsely: long chunks of prompts, and nothing else."""

from __future__ import annotations

import logging

import pytest
import torch

from sparsefill.integrations.vllm.requests import Request, Requests
from sparsefill.integrations.vllm.steps import Steps
from sparsefill.patterns import AShape
from tests.integrations.vllm.fakes import PAGE, Row, rank_heads, row, step_of

SPARSE = AShape(sink=64, window=64)


def steps(*, counts: bool = True, **options) -> tuple[Steps, list[Request]]:
    told: list[Request] = []
    requests = Requests(0, told.append) if counts else None
    heads = rank_heads(SPARSE, min_length=options.pop("min_length", 200))
    return Steps(heads=heads, layers=[0, 1], page=PAGE, requests=requests, **options), told


MIXED = [
    row(500, 1, 2, prompt=400),  # decode
    row(0, 300, 40),  # a whole prompt
    row(0, 150, 60),  # short
    row(1021, 63, 80),  # a last chunk of less than a row block
    row(333, 77, 160),  # a chunk with unaligned ends
]


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
def test_long_chunks_are_chosen_wherever_they_stand(counts: bool, padding: int):
    for rows, expected in ((MIXED, [1, 4]), (MIXED[::-1], [0, 3])):
        own, _ = steps(counts=counts)
        chosen = own.choose(step_of(rows, padding=padding))
        assert [c.row for c in chosen] == expected
        assert sorted((c.context, c.queries) for c in chosen) == [(0, 300), (333, 77)]


def test_steps_of_decode_are_left_after_one_comparison():
    own, _ = steps()
    common = step_of([row(500, 1, prompt=400)])
    del common.query_start_loc_cpu, common.block_table_tensor
    assert own.choose(common) == []


def test_what_a_request_generated_is_not_read_sparsely():
    # after a preemption all keys are computed again, in chunks that may begin behind the prompt
    again = step_of([row(300, 200, prompt=290), row(0, 500, 50, prompt=290)])
    for counts in (True, False):  # all ranks of tensor parallelism choose alike
        own, _ = steps(counts=counts)
        assert [c.row for c in own.choose(again)] == [1]


def test_a_preempted_prompt_is_read_again_from_its_start():
    own, told = steps()
    [first] = own.choose(step_of([row(0, 300)]))
    [again] = own.choose(step_of([row(0, 400, 70)]))  # in other pages
    assert first.request is not again.request
    own.choose(step_of([row(400, 1, 70, prompt=400)]))
    assert [r.keys for r in told] == [400]


def chunked(prompt: int, sizes: list[int], first_page: int) -> list[Row]:
    pages = row(0, prompt, first_page).pages
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [
        Row(context=end - size, queries=size, pages=pages, prompt=prompt)
        for end, size in zip(ends, sizes, strict=True)
    ]


def test_prompts_are_followed_through_steps_with_others():
    own, told = steps()
    long, other = chunked(700, [299, 321, 80, 1], 2), chunked(260, [260, 1], 60)
    [a] = own.choose(step_of([long[0]]))
    [b, c] = own.choose(step_of([long[1], other[0]]))
    assert a.request is b.request
    assert b.request is not c.request
    [d] = own.choose(step_of([other[1], long[2]]))  # rows are not kept
    assert d.request is a.request
    assert told == [c.request]
    own.choose(step_of([long[3]]))
    assert told == [c.request, a.request]
    assert a.request is not None
    assert (a.request.keys, a.request.sparse_keys, a.request.chunks) == (700, 700, 3)
    assert own.requests is not None
    assert not own.requests.is_reading


@pytest.mark.parametrize("n", [2, 63, 100])
def test_short_prompts_are_told_as_dense(n: int):
    own, told = steps()
    own.choose(step_of([row(0, n, prompt=n)]))
    own.choose(step_of([row(n, 1, prompt=n)]))
    assert [(r.keys, r.sparse_keys, r.density) for r in told] == [(n, 0, None)]


def test_tokens_guessed_ahead_are_no_prompt():
    own, told = steps(widest_decode=5)
    common = step_of([row(700, 5)])
    prompt = step_of([row(0, 700)])
    common.is_prefilling = prompt.is_prefilling = None  # as in some steps and releases
    [chunk] = own.choose(prompt)
    assert own.choose(common) == []
    assert told == [chunk.request]
    assert own.requests is not None
    assert not own.requests.is_reading


def test_a_release_without_lengths_on_the_host_is_served():
    own, _ = steps()
    common = step_of([row(0, 300)])
    common.seq_lens_cpu_upper_bound = None
    assert len(own.choose(common)) == 1


@pytest.mark.parametrize("causal", [False, torch.ones(1, dtype=torch.bool)])
def test_what_is_not_causal_is_left_to_vllm(causal):
    own, _ = steps()
    common = step_of([row(0, 300)])
    common.causal = causal
    assert own.choose(common) == []


def test_a_step_with_something_unknown_is_left_to_vllm_and_told_once(caplog):
    own, _ = steps()
    common = step_of([row(0, 300)])
    common.logits_indices_padded = torch.zeros(1)
    with caplog.at_level(logging.WARNING, "vllm.sparsefill"):
        assert own.choose(common) == []
        assert own.choose(common) == []
    assert [r.getMessage() for r in caplog.records] == [
        "sparsefill: steps with logits_indices_padded are left to vLLM"
    ]
