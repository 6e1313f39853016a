"""Every backend, pattern and shape against the oracle, within the error budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsefill import Attended, Pattern, SparseIndex, attend, estimate, sparse_attention
from sparsefill.attention import attend_cells, attend_in_stages, attend_rows
from sparsefill.errors import ShapeError
from sparsefill.estimate import Cells
from sparsefill.kernels import BACKENDS as REGISTERED
from sparsefill.kernels import BackendName
from sparsefill.metrics import dense_lse
from sparsefill.tile import TILE
from tests.support.closeness import MEASURABLE, assert_attended
from tests.support.inputs import PATTERNS, Qkv, patterns_of, random_qkv, with_garbage
from tests.support.strategies import Shape, patterns, random_index, shapes
from tests.support.table import CASES, DTYPES, NAMES, Case, case_inputs

BACKENDS: list[BackendName] = ["torch", "cpu"]  # those that the oracle judges
WIDEST = {"torch": "f64", "cpu": "f32"}  # dtype that a backend serves
INSTRUCTION_SETS = [name for name in get_args(BackendName) if name.startswith("cpu-")]
MAX_SCORES: dict[BackendName, str] = {"torch": "sparsefill.kernels.torch.MAX_SCORES"}


def serves(backend: str, dtype: str) -> bool:
    """Tell whether a backend takes inputs of this type."""
    return backend == "torch" or dtype != "f64"


JUDGED = [(name, c) for c in CASES for name in BACKENDS if serves(name, c.dtype)]
NARROW = [c for c in CASES if c.pattern == "mixed" and c.g == 2 and serves("cpu", c.dtype)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    skip_unless_served(request.param)
    return request.param


def skip_unless_served(name: str) -> None:
    """Skip the test where this machine lacks what the backend needs."""
    if (reason := REGISTERED[name].refusal(torch.zeros(1, 1, 1, 64))) is not None:
        pytest.skip(f"{name} {reason}")


ROWS = 2 * MEASURABLE  # so many shapes are drawn that one of 300 is lucky with half of this


def measurable(shape: Shape) -> Shape:
    """Repeat the sequences of a batch until there are enough rows to judge."""
    seen = int(torch.minimum(shape.query_lengths, shape.key_lengths).sum()) * shape.h
    copies = -(-ROWS // seen) if seen else 1
    queries, keys = (t.repeat(copies) for t in (shape.query_lengths, shape.key_lengths))
    return shape._replace(b=shape.b * copies, query_lengths=queries, key_lengths=keys)


def select(index: SparseIndex, axis: int, places: Tensor) -> SparseIndex:
    """Take some sequences (axis 0) or heads (axis 1) of an index."""
    names = ["slash_counts", "slash_tiles", "column_counts", "column_indices", "row_ptr"]
    names += ["query_lengths", "key_lengths"] if axis == 0 else []
    own = {name: getattr(index, name) for name in names}
    chosen = {n: None if t is None else t.index_select(axis, places) for n, t in own.items()}
    return replace(index, **chosen)


@pytest.mark.parametrize(("backend", "case"), JUDGED, ids=str, indirect=["backend"])
def test_stays_within_the_error_budget(case: Case, backend: BackendName):
    qkv, index = case_inputs(case)
    got = attend(*qkv, index, softcap=case.softcap, backend=backend)
    assert_attended(got, qkv, index, softcap=case.softcap)


@pytest.mark.parametrize("case", NARROW, ids=str)
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_instruction_set_stays_within_the_error_budget(case: Case, name: BackendName):
    skip_unless_served(name)
    qkv, index = case_inputs(case)
    got = attend(*qkv, index, softcap=case.softcap, backend=name)
    assert_attended(got, qkv, index, softcap=case.softcap)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    shape=shapes(longest=200).map(measurable),
    pattern=patterns(),
    shared=st.booleans(),
    dtype=st.sampled_from([*DTYPES]),
)
def test_any_shape_and_pattern(
    backend: BackendName, shape: Shape, pattern: Pattern, shared: bool, dtype: str
):
    skip_unless_served(backend)
    qkv = shape.qkv(DTYPES[dtype if serves(backend, dtype) else WIDEST[backend]])
    index = estimate(
        pattern,
        qkv.q[:, :: shape.h // shape.g if shared else 1],
        qkv.k,
        query_lengths=shape.query_lengths,
        key_lengths=shape.key_lengths,
    )
    assert_attended(attend(*qkv, index, backend=backend), qkv, index)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    shape=shapes(longest=200).map(measurable),
    shared=st.booleans(),
    scale=st.sampled_from([None, 0.5]),
)
def test_any_index(backend: BackendName, shape: Shape, shared: bool, scale: float | None):
    skip_unless_served(backend)
    qkv = shape.qkv(torch.float32)
    index = random_index(shape, x=shape.g if shared else shape.h)
    got = attend(*qkv, index, scale=scale, backend=backend)
    assert_attended(got, qkv, index, scale=scale)


@pytest.mark.parametrize("backend", BACKENDS)
@given(shape=shapes(longest=200), seed=st.integers(0, 9), data=st.data())
def test_some_rows_find_what_they_find_among_all(
    backend: BackendName, shape: Shape, seed: int, data: st.DataObject
):
    skip_unless_served(backend)
    qkv = shape.qkv(torch.float32)
    cells = Cells(index=random_index(shape._replace(seed=seed), x=shape.h))
    maths: dict[str, Any] = {"scale": 0.5, "softcap": None, "backend": backend}
    firsts = data.draw(st.lists(st.integers(0, (shape.n - 1) // TILE), min_size=1, max_size=3))
    rows = [slice(f * TILE, data.draw(st.integers(f * TILE + 1, shape.n))) for f in firsts]
    whole, some = attend_cells(*qkv, cells, **maths), attend_rows(*qkv, cells, rows, **maths)
    for every, got in zip(whole, some, strict=True):
        torch.testing.assert_close(got, torch.cat([every[:, :, span] for span in rows], dim=2))


@pytest.mark.parametrize("rows", [[], [slice(10, 20)], [slice(0, 64), slice(65, 70)]], ids=str)
def test_rows_that_are_no_row_blocks_are_refused(rows: list[slice]):
    qkv = random_qkv(n=100, m=100)
    with pytest.raises(ShapeError, match="begin at multiples of 64"):
        attend_in_stages(*qkv, PATTERNS["dense"], rows=rows)


@pytest.mark.parametrize("name", NAMES)
def test_garbage_in_padding_changes_nothing(name: str, backend: BackendName):
    clean = random_qkv(b=5, h=6, g=2, dtype=torch.float32)
    queries, keys = torch.tensor([[200, 70, 0, 1, 200], [200, 70, 9, 150, 77]])
    lengths: dict[str, Any] = {"query_lengths": queries, "key_lengths": keys}
    index = estimate(patterns_of(name, 6), clean.q, clean.k, **lengths)
    garbage = with_garbage(clean, queries, keys)
    got = attend(*garbage, index, backend=backend)
    assert_attended(got, clean, index)
    assert bool((got.lse[2] == -torch.inf).all())
    front = sparse_attention(*garbage, patterns_of(name, 6), **lengths, backend=backend)
    assert torch.equal(front, got.out)


@pytest.mark.parametrize(("n", "m"), [(300, 300), (65, 190), (190, 65)])
def test_the_dense_pattern_is_dense_attention(n: int, m: int, backend: BackendName):
    qkv = random_qkv(b=2, h=4, g=2, n=n, m=m, dtype=DTYPES[WIDEST[backend]])
    index = estimate(PATTERNS["dense"], qkv.q, qkv.k)
    got = attend(*qkv, index, backend=backend)
    torch.testing.assert_close(got.lse, dense_lse(qkv.q, qkv.k))
    sees = torch.arange(n) + m - n >= 0
    causal = torch.ones(n, m, dtype=torch.bool).tril(m - n)[sees]
    stock = torch.nn.functional.scaled_dot_product_attention(
        qkv.q[:, :, sees], qkv.k, qkv.v, attn_mask=causal, enable_gqa=True
    )
    torch.testing.assert_close(got.out[:, :, sees], stock)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_batch_permutes_the_output(name: str, backend: BackendName):
    qkv, index = case_inputs(Case(name, b=3, h=6))
    order = torch.tensor([2, 0, 1])
    permuted = attend(*qkv.map(lambda t: t[order]), select(index, 0, order), backend=backend)
    assert_attended(Attended(*(t[order.argsort()] for t in permuted)), qkv, index)


@pytest.mark.parametrize("name", NAMES)
def test_a_shared_index_is_the_index_of_each_query_head(name: str, backend: BackendName):
    qkv, index = case_inputs(Case(name, b=2, h=12, g=4, shared=True))
    each = select(index, 1, torch.arange(4).repeat_interleave(3))
    assert_attended(attend(*qkv, each, backend=backend), qkv, index)
    assert_attended(attend(*qkv, index, backend=backend), qkv, each)


@pytest.mark.parametrize("n", [128, 200])
def test_heads_last_layouts_are_read_in_place(n: int, backend: BackendName):
    qkv, index = case_inputs(Case("mixed", b=2, h=6, n=n))
    views = qkv.map(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2))
    assert_attended(attend(*views, index, backend=backend), qkv, index)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [64, 192])
def test_chunks_of_queries_add_up_to_the_whole(name: str, first: int, backend: BackendName):
    qkv, index = case_inputs(Case(name, h=6, n=300))
    mask, parts = index.to_mask(), []
    for queries, keys in ((slice(first), slice(first)), (slice(first, None), slice(None))):
        own = Qkv(qkv.q[:, :, queries], qkv.k[:, :, keys], qkv.v[:, :, keys])
        chunk = SparseIndex.from_mask(mask[:, :, queries, keys])
        parts.append(attend(*own, chunk, backend=backend))
    whole = Attended(*(torch.cat(part, dim=2) for part in zip(*parts, strict=True)))
    assert_attended(whole, qkv, index)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_scores", [1, 100_000])
@pytest.mark.parametrize("backend", MAX_SCORES)
def test_small_batches_of_work_change_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, max_scores: int, backend: BackendName
):
    monkeypatch.setattr(MAX_SCORES[backend], max_scores)
    qkv, index = case_inputs(Case(name, b=2, h=6, n=200, m=333))
    assert_attended(attend(*qkv, index, backend=backend), qkv, index)
