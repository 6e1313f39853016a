"""What is left of a step when some requests are taken out of it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsefill.integrations.vllm.plan import chunks_of, foreign_fields, split
from tests.integrations.vllm.fakes import OLD, Common, Row, row, step_of

ROWS = st.lists(
    st.builds(row, st.integers(0, 100), st.integers(1, 90), st.integers(1, 50)),
    min_size=1,
    max_size=6,
)


def chunks(common: Any) -> list[Any]:
    starts = common.query_start_loc_cpu.tolist()
    return chunks_of(starts, common.seq_lens.tolist())


def left_of(common: Any, taken: set[int]) -> tuple[Any, Any]:
    chosen = [chunk for chunk in chunks(common) if chunk.row in taken]
    return split(common, chosen, lambda left: left)


@given(rows=ROWS, data=st.data(), padding=st.integers(0, 2))
def test_the_rest_is_the_step_that_it_would_be_alone(rows: list[Row], data: Any, padding: int):
    taken = data.draw(st.sets(st.sampled_from(range(len(rows))), min_size=1))
    common = step_of(rows, padding=padding)
    common._token_to_req_indices_cache = torch.zeros(1)  # of the whole step: it must go
    tokens, left = left_of(common, taken)
    rest = [r for i, r in enumerate(rows) if i not in taken]
    if not rest:
        assert tokens is None
        assert left is None
        return
    alone = step_of(rest)
    alone.max_seq_len = common.max_seq_len  # an upper bound
    width = alone.block_table_tensor.shape[1]
    for own in fields(Common):
        got, expected = getattr(left, own.name), getattr(alone, own.name)
        if own.name == "block_table_tensor":
            got = got[:, :width]
            expected = expected[:, : got.shape[1]]
        if isinstance(expected, torch.Tensor):
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected), own.name
        else:
            assert got == expected, own.name
    kept = [c for c in chunks(common) if c.row not in taken]
    assert tokens.tolist() == [t for c in kept for t in range(c.start, c.stop)]


@given(rows=ROWS)
def test_chunks_are_the_requests(rows: list[Row]):
    found = chunks(step_of(rows))
    assert [(c.context, c.queries, c.keys) for c in found] == [
        (r.context, r.queries, r.keys) for r in rows
    ]
    assert [c.row for c in found] == list(range(len(rows)))
    assert [c.start for c in found] == [0, *(c.stop for c in found[:-1])]


def test_rows_of_padding_are_left_out():
    common = step_of([row(0, 70), row(5, 1)], padding=3)
    _, left = left_of(common, {0})
    assert left.num_reqs == 1
    assert left.seq_lens.tolist() == [6]
    assert left_of(common, {0, 1}) == (None, None)


def test_fields_that_a_release_lacks_are_no_matter():
    new = step_of([row(0, 70), row(5, 1)])
    old = OLD(**{own.name: getattr(new, own.name) for own in fields(OLD)})
    tokens, left = left_of(old, {0})
    assert tokens.tolist() == [70]
    assert left.num_reqs == 1
    assert foreign_fields(old) == []


def test_requests_keep_their_number():
    common = step_of([row(0, 70), row(5, 1), row(9, 2)])
    common.req_idx = np.array([7, 3, 5])
    _, left = left_of(common, {0})
    assert left.req_idx.tolist() == [3, 5]


def test_what_is_not_known_is_seen():
    common = step_of([row(0, 70)])
    assert foreign_fields(common) == []
    common._token_to_req_indices_cache = torch.zeros(1)
    assert foreign_fields(common) == []
    common.logits_indices_padded = torch.zeros(1)
    assert foreign_fields(common) == ["logits_indices_padded"]
