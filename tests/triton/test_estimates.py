"""The estimates as Triton kernels, in Triton's interpreter, against the torch operations."""
# pyright: reportArgumentType=false

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsefill import BlockTopK, SparseIndex, VerticalSlash
from sparsefill.estimate import vertical_slash
from sparsefill.estimate.heads import Heads, estimate_heads
from sparsefill.estimate.triton import select
from sparsefill.index import NEVER
from tests.support.inputs import far_apart, random_qkv
from tests.support.strategies import block_patterns, line_patterns

kernels = importlib.import_module("sparsefill.estimate.triton")

LEFT = st.sampled_from([0.0, 0.7, 1.0])  # share of the last sequence that is no padding
LENGTHS = [(1, 1), (64, 64), (63, 65), (200, 333), (300, 100)]


def heads_of(
    *,
    b: int = 2,
    n: int,
    m: int,
    d: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    softcap: float | None = None,
    left: float = 0.7,
) -> Heads:
    """Three query heads over two of three KV heads; of the last sequence a share is `left`."""
    q, k, _ = random_qkv(b=b, h=6, g=3, n=n, m=m, d=d, dtype=dtype)
    queries, keys = ([full] * (b - 1) + [int(full * left)] for full in (n, m))
    q[-1, :, queries[-1] :] = torch.nan
    k[-1, :, keys[-1] :] = torch.nan
    return Heads(
        q=q,
        k=k,
        members=torch.tensor([0, 1, 5]),
        scale=d**-0.5,
        softcap=softcap,
        query_lengths=torch.tensor(queries, dtype=torch.int32),
        key_lengths=torch.tensor(keys, dtype=torch.int32),
        kernels=kernels,
    )


def by_torch(heads: Heads) -> Heads:
    """Ask for torch operations, which NaN in the padding would confuse."""
    clean = {"q": torch.nan_to_num(heads.q), "k": torch.nan_to_num(heads.k)}
    return replace(heads, kernels=None, **clean)


def assert_same_sums(heads: Heads, probe: int = 64) -> None:
    patterns = [VerticalSlash(verticals=1, slashes=1, probe=probe, sink=0, window=0)] * heads.x
    got = kernels.line_sums(patterns, heads)
    expected = vertical_slash.line_sums(by_torch(heads), torch.full((heads.x,), probe))
    for kind, exact in enumerate(expected):
        for sequence, keys in enumerate(heads.key_lengths.tolist()):
            own = got[sequence, kind, :, :keys]
            torch.testing.assert_close(own, exact[sequence, :, :keys], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("probe", [1, 64, 100])
@pytest.mark.parametrize(("n", "m"), LENGTHS)
def test_sums_of_every_length(n: int, m: int, probe: int):
    assert_same_sums(heads_of(n=n, m=m), probe)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("d", [16, 80, 96, 128, 256])
def test_sums_of_every_head_dim(d: int, softcap: float | None):
    assert_same_sums(heads_of(n=100, m=140, d=d, softcap=softcap, dtype=torch.float16))


@pytest.mark.parametrize("least", [1, 2, 3])
def test_spans_of_keys_add_up(least: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "LEAST_SPAN", least)
    assert_same_sums(heads_of(n=200, m=520), probe=100)


def test_more_keys_than_spans_of_the_least_length(monkeypatch: pytest.MonkeyPatch):
    """66 tiles do not fit into 64 spans of one."""
    monkeypatch.setattr(kernels, "LEAST_SPAN", 1)
    heads = heads_of(b=1, n=64, m=66 * 64, d=16, left=1.0)
    assert_same_sums(replace(heads, members=heads.members[:1]))


def test_scores_that_look_like_forced_ones_do_not_overflow_lists():
    heads = heads_of(n=1000, m=1000, d=16, left=1.0)
    huge = replace(heads, q=heads.q * 1e19, k=heads.k * 1e19)
    index = kernels.block_topk([BlockTopK(blocks=1)] * heads.x, huge)
    assert index.row_ptr is not None
    assert int(index.row_ptr.diff().max()) <= 3


def assert_same_cells(pattern: VerticalSlash | BlockTopK, heads: Heads) -> None:
    """Compare lists; random sums have no ties."""
    got, expected = (
        estimate_heads(pattern, [pattern] * own.x, own) for own in (heads, by_torch(heads))
    )
    for name, entries in expected.lists().items():
        own: torch.Tensor | None = getattr(got, name)
        if name in ("slash_tiles", "column_indices"):
            counts = "slash_counts" if name == "slash_tiles" else "column_counts"
            own, entries = listed(got, name, counts), listed(expected, name, counts)
        if own is None or entries is None:
            assert own is entries, name
        else:
            assert own.tolist() == entries.tolist(), name


def listed(index: SparseIndex, entries: str, counts: str) -> torch.Tensor:
    """Return a list with `NEVER` past each count, as wide as the longest."""
    values, there = getattr(index, entries), getattr(index, counts)[..., None]
    width = int(there.max())
    return values[..., :width].masked_fill(torch.arange(width) >= there, NEVER)


@settings(max_examples=15)
@given(n=st.integers(1, 200), m=st.integers(1, 200), pattern=line_patterns(220), left=LEFT)
def test_lines_are_those_of_torch(n: int, m: int, pattern: VerticalSlash, left: float):
    assert_same_cells(pattern, heads_of(n=n, m=m, d=16, left=left))


@settings(max_examples=15)
@given(n=st.integers(1, 300), m=st.integers(1, 300), pattern=block_patterns(), left=LEFT)
def test_blocks_are_those_of_torch(n: int, m: int, pattern: BlockTopK, left: float):
    assert_same_cells(pattern, heads_of(n=n, m=m, d=16, left=left))


@pytest.mark.parametrize("d", [80, 128])
def test_blocks_of_other_head_dims(d: int):
    assert_same_cells(BlockTopK(blocks=2), heads_of(n=300, m=350, d=d))


def test_blocks_a_strip_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """70 blocks of queries do not fit into one strip of 64."""
    monkeypatch.setattr(kernels, "MAX_SCORES", 1)
    heads = heads_of(n=70 * 64 - 5, m=70 * 64, d=16)
    assert_same_cells(BlockTopK(blocks=3), replace(heads, members=heads.members[:1]))


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sequence", "head", "row"])
def test_tensors_of_more_than_32_bits_are_reached(axis: int):
    heads = heads_of(b=3 if axis == 0 else 1, n=320, m=320, d=16, left=1.0)
    far = replace(heads, q=far_apart(heads.q, axis), k=far_apart(heads.k, axis))
    for pattern in (VerticalSlash(verticals=9, slashes=9), BlockTopK(blocks=2)):
        assert_same_cells(pattern, far)


def test_budgets_of_heads_differ():
    heads = heads_of(n=200, m=200)
    patterns = [VerticalSlash(verticals=5 * i, slashes=70 - 9 * i, sink=i) for i in (0, 3, 5)]
    got = kernels.vertical_slash(patterns, heads)
    for x, pattern in enumerate(patterns):
        own = estimate_heads(pattern, [pattern] * 3, by_torch(heads))
        assert got.column_counts[:, x].tolist() == own.column_counts[:, x].tolist()
        assert got.slash_counts[:, x].tolist() == own.slash_counts[:, x].tolist()


@settings(max_examples=100)
@given(
    values=st.lists(
        st.floats(-10, 10, width=32) | st.sampled_from([0.0, -0.0, 1.0, torch.inf, -torch.inf]),
        min_size=1,
        max_size=50,
    ),
    budget=st.integers(0, 60),
    beyond=st.integers(0, 3),
)
@example(values=[-3.0, -1.0, -2.0, -4.0], budget=2, beyond=0)
def test_selection_keeps_the_largest(values: list[float], budget: int, beyond: int):
    """The best, all forced ones, of equal ones the first, and nothing past the length."""
    length = len(values)
    row = torch.tensor([*values, *[5.0] * beyond])
    forced = int((row[:length] == torch.inf).sum())
    kept = torch.full((length + beyond,), -1, dtype=torch.int32)
    count = torch.full((1,), -1, dtype=torch.int32)
    select.keep_largest[(1,)](
        row, torch.tensor([length]).int(), torch.tensor([budget]).int(), kept, count,
        0, 1, 1, 1, len(row), len(kept), BLOCK=16,
    )  # fmt: skip
    order = sorted(range(length), key=lambda i: (-values[i], i))  # -0 is 0
    best = [i for i in order if values[i] > -torch.inf][: max(budget, forced)]
    assert kept[: int(count)].tolist() == sorted(best)
    assert (kept[int(count) :] == -1).all()


def test_the_guard_sees_a_length_that_is_too_long():
    row, kept, count = torch.randn(20), torch.zeros(20).int(), torch.zeros(1).int()
    length, budget = (torch.tensor([value]).int() for value in (21, 4))
    with pytest.raises(Exception, match="outside of every tensor"):
        select.keep_largest[(1,)](
            row, length, budget, kept, count, 0, 1, 1, 1, 20, 20, BLOCK=16
        )  # fmt: skip
