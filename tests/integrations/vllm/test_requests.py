"""Prompts are followed over their chunks, and told once when they have been read."""

from __future__ import annotations

import time

import pytest
import torch

from sparsefill.integrations.vllm.requests import FORGOTTEN, Request, Requests


class Reading:
    """A server that reads chunks of prompts, each known by its page and its keys."""

    def __init__(self, recall_every: int = 0) -> None:
        self.told: list[Request] = []
        self.requests = Requests(recall_every, self.told.append)

    def step(
        self,
        *chunks: tuple[tuple[int, int] | None, tuple[int, int]],
        continued: tuple[tuple[int, int], ...] = (),
        sparse: bool = True,
    ) -> list[Request]:
        self.requests.begin_step(continued)
        return [self.requests.read(before, after, sparse=sparse) for before, after in chunks]


def test_chunks_of_a_prompt_are_one_request():
    reading = Reading()
    [first] = reading.step((None, (3, 500)))
    [second] = reading.step(((3, 500), (9, 900)))
    assert second is first
    assert (first.keys, first.sparse_keys, first.chunks) == (900, 900, 2)
    assert not reading.told
    reading.step(continued=((9, 900),))
    assert reading.told == [first]
    assert not reading.requests.is_reading
    reading.step(continued=((9, 901),))
    assert reading.told == [first]  # once


def test_a_prefix_hit_was_read_by_somebody_else():
    reading = Reading()
    [hit] = reading.step(((7, 2560), (8, 3200)))
    assert (hit.keys, hit.sparse_keys, hit.chunks) == (3200, 640, 1)


def test_a_dense_chunk_counts_as_read_but_not_as_sparse():
    reading = Reading()
    reading.step((None, (3, 500)))
    [last] = reading.step(((3, 500), (4, 520)), sparse=False)
    assert (last.keys, last.sparse_keys, last.chunks) == (520, 500, 2)


def test_prompts_that_are_read_at_once_are_told_apart():
    reading = Reading()
    a, b = reading.step((None, (3, 500)), (None, (5, 500)))
    b_again, a_again = reading.step(((5, 500), (6, 700)), ((3, 500), (4, 800)))
    assert (a_again, b_again) == (a, b)
    reading.step(continued=((4, 800),))
    assert reading.told == [a]
    reading.step(continued=((6, 700),))
    assert reading.told == [a, b]


def test_who_hits_the_pages_of_a_prompt_in_the_same_step_is_another():
    reading = Reading()
    a, b = reading.step((None, (3, 512)), ((3, 512), (5, 600)))
    assert a is not b
    [again] = reading.step(((3, 512), (4, 1024)), continued=((5, 600),))
    assert again is a
    assert reading.told == [b]


def test_who_ends_with_the_prompt_or_is_given_up_is_told_later():
    reading = Reading()
    [only] = reading.step((None, (3, 500)))
    for _ in range(FORGOTTEN):
        reading.step()
    assert not reading.told
    reading.step()
    assert reading.told == [only]


def test_a_prompt_that_is_read_again_is_a_request_again():
    reading = Reading()
    [first] = reading.step((None, (3, 500)))
    [again] = reading.step((None, (9, 900)))
    assert again is not first
    assert again.keys == 900


@pytest.mark.parametrize(("every", "measured"), [(0, ""), (1, "xxxx"), (2, ".x.x"), (3, "..x.")])
def test_one_of_so_many_prompts_is_measured(every: int, measured: str):
    reading = Reading(every)
    found = ""
    for page in range(4):
        reading.step((None, (100 + page, 20)), sparse=False)  # a dense prompt counts for nothing
        [request] = reading.step((None, (page, 500)))
        [same] = reading.step(((page, 500), (page, 900)))  # nor does another chunk
        assert same is request
        found += "x" if same.measured else "."
    assert found == (measured or "....")


def test_density_is_weighed_by_cells_and_recall_is_not():
    request = Request()
    assert request.density is None
    assert request.mean_recall is None
    request.note(torch.tensor([[0.2, 0.4]]), 100, None)
    request.note(torch.tensor([[0.8, 1.0]]), 300, torch.tensor([[[0.5, 1.0]]]))
    assert request.density == pytest.approx((0.3 * 100 + 0.9 * 300) / 400)
    assert request.mean_recall == pytest.approx(0.75)


def test_chunks_that_vllm_read_count_as_dense():
    request = Request(dense_cells=600)
    assert request.density is None  # none of it is sparse
    request.note(torch.tensor([[0.2, 0.4]]), 100, None)
    request.note(torch.tensor([[0.2, 0.4]]), 300, None)
    assert request.density == pytest.approx((0.3 * 400 + 600) / 1000)


def test_prompts_that_end_in_the_same_pages_are_told_one_by_one():
    reading = Reading()
    [first] = reading.step((None, (3, 500)))
    [second] = reading.step((None, (3, 500)))  # the first ended with its prompt
    reading.step()
    assert reading.told == [first]
    third, fourth = reading.step((None, (3, 500)), (None, (3, 500)))
    reading.step()
    assert reading.told == [first, third, second]
    reading.step(continued=((3, 500),))
    assert reading.told == [first, third, second, fourth]


def test_a_prompt_takes_until_it_goes_on(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    reading = Reading()
    [request] = reading.step((None, (3, 500)))
    now[0] = 12.0
    request.note(torch.ones(1, 1), 1, None)
    assert request.seconds == 2.0
    now[0] = 13.0
    reading.step(continued=((3, 500),))
    assert request.seconds == 3.0
