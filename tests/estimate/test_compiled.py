"""The compiled estimates: the same sums up to rounding, hence the same cells."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from sparsefill import (
    BlockTopK,
    InputError,
    ShapeError,
    SparseIndex,
    UnsupportedError,
    VerticalSlash,
    abi,
    attend,
    estimate,
)
from sparsefill.estimate import compiled, vertical_slash
from sparsefill.estimate.heads import Heads
from sparsefill.kernels import BackendName
from tests.support.inputs import random_qkv
from tests.support.strategies import block_patterns, line_patterns

ISAS = [name for name, available in abi.instruction_sets().items() if available]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels in this installation")

# Weights are rounded once: to float32, or to bfloat16 (2^-9) after a 2^-13 exponential.
RELATIVE = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 2**-8}

LENGTHS = [(1, 1), (64, 64), (63, 65), (300, 300), (200, 333), (300, 100)]


def heads_of(dtype: torch.dtype, *, n: int, m: int, d: int = 64, **settings: object) -> Heads:
    """Three query heads over two KV heads, the second sequence shorter."""
    q, k, _ = random_qkv(b=2, h=6, g=2, n=n, m=m, d=d, dtype=dtype)
    fields = {
        "q": q,
        "k": k,
        "members": torch.tensor([0, 1, 4]),
        "scale": d**-0.5,
        "softcap": None,
        "query_lengths": torch.tensor([n, max(0, n - 3)], dtype=torch.int32),
        "key_lengths": torch.tensor([m, max(0, m - 7)], dtype=torch.int32),
        "kernels": compiled,
    }
    return Heads(**{**fields, **settings})  # type: ignore[arg-type]


def assert_same_sums(heads: Heads, probe: int) -> None:
    patterns = [VerticalSlash(verticals=1, slashes=1, probe=probe)] * heads.x
    got = compiled.line_sums(patterns, heads)
    expected = vertical_slash.line_sums(heads, torch.full((heads.x,), probe))
    for own, exact in zip(got, expected, strict=True):
        # near the smallest weight that exp2 yields, only the absolute error counts
        torch.testing.assert_close(own, exact, rtol=RELATIVE[heads.q.dtype], atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("probe", [1, 64, 100])
def test_sums_of_every_instruction_set(isa: str, dtype: torch.dtype, probe: int):
    for n, m in LENGTHS:
        assert_same_sums(heads_of(dtype, n=n, m=m, isa=isa), probe)


@pytest.mark.parametrize("d", [8, 32, 72, 80, 128, 256])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_sums_of_every_head_dim(d: int, softcap: float | None):
    assert_same_sums(heads_of(torch.bfloat16, n=200, m=333, d=d, softcap=softcap), 64)


@pytest.mark.parametrize("scale", [0.0, -0.125])
def test_sums_of_odd_scales(scale: float):
    assert_same_sums(heads_of(torch.float32, n=200, m=333, scale=scale), 64)


def test_a_score_far_above_the_sampled_ones():
    """References are sampled at both ends; a key between may score 2^200 times higher."""
    heads = heads_of(torch.float32, n=1000, m=1000)
    heads.k[:, :, 500] = heads.q[:, ::3, -1] * 40
    assert_same_sums(heads, 64)


def test_many_chunks_of_keys():
    assert_same_sums(heads_of(torch.bfloat16, n=100, m=9000), 64)


def test_weights_that_are_too_many_to_keep():
    """Beyond 128 MiB of weights the second pass scores again."""
    heads = heads_of(torch.float32, n=64, m=200_000, d=8)
    assert_same_sums(heads, 64)


@given(n=st.integers(1, 300), m=st.integers(1, 300), pattern=line_patterns(320))
def test_lines_are_those_of_torch(n: int, m: int, pattern: VerticalSlash):
    assert_same_cells(pattern, n, m)


@given(n=st.integers(1, 300), m=st.integers(1, 300), pattern=block_patterns())
def test_blocks_are_those_of_torch(n: int, m: int, pattern: BlockTopK):
    assert_same_cells(pattern, n, m)


def assert_same_cells(pattern: VerticalSlash | BlockTopK, n: int, m: int) -> None:
    """Compare masks; random float32 sums have no ties but between keys without any weight."""
    q, k, _ = random_qkv(b=2, h=4, g=2, n=n, m=m, dtype=torch.float32)
    lengths: dict[str, Any] = {
        "query_lengths": torch.tensor([n, n - n // 3]),
        "key_lengths": torch.tensor([m, m - m // 4]),
    }

    def index(backend: str) -> SparseIndex:
        return estimate(pattern, q, k, backend=backend, **lengths)

    assert torch.equal(index("cpu").to_mask(), index("torch").to_mask())


def test_a_backend_that_cannot_serve_is_refused():
    q = torch.randn(1, 1, 10, 64, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="float64"):
        estimate(VerticalSlash(), q, q, backend="cpu")
    assert estimate(VerticalSlash(), q, q).n == 10


@pytest.mark.parametrize("score", [60, 130, 200, 380, 1000, 5000])
def test_a_key_far_above_all_others_is_kept(score: float):
    """Where exponentials overflow, or would wrap without a bound, the reference is exact."""
    q, k, _ = random_qkv(h=1, g=1, n=4096, m=4096, dtype=torch.float32)
    q[:, :, -64:] += 1
    k *= 0.01
    k[:, :, 2000] = score / 8
    pattern = VerticalSlash(verticals=100, slashes=64)
    for dtype in (torch.float32, torch.bfloat16):
        index = estimate(pattern, q.to(dtype), k.to(dtype), backend="cpu")
        assert 2000 in index.column_indices[0, 0, : int(index.column_counts[0, 0])].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_does_not_matter(dtype: torch.dtype):
    q, k, v = random_qkv(h=2, g=1, n=300, m=300, dtype=torch.float32)
    patterns = (VerticalSlash(verticals=9, slashes=9), BlockTopK(blocks=2))
    expected = estimate(patterns, q, k, backend="cpu")
    result = attend(q, k, v, expected, backend="cpu")
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        index = estimate(patterns, q, k, backend="cpu")
        got = attend(q, k, v, index, backend="cpu")
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(index.to_mask(), expected.to_mask())
    assert torch.equal(got.out, result.out)
    assert torch.equal(got.lse, result.lse)


MISFITS = {
    "sequences": (torch.zeros(3, 2, 64, 8), torch.zeros(1, 2, 64, 8), {}),
    "head_dim": (torch.zeros(1, 2, 64, 16), torch.zeros(1, 2, 64, 8), {}),
    "dtype": (torch.zeros(1, 2, 64, 8), torch.zeros(1, 2, 64, 8, dtype=torch.bfloat16), {}),
    "one length for two": (
        torch.zeros(2, 2, 64, 8),
        torch.zeros(2, 2, 64, 8),
        {"query_lengths": torch.tensor([64])},
    ),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("pattern", [VerticalSlash(), BlockTopK()], ids=lambda p: p.name)
def test_tensors_that_do_not_fit_are_refused(name: str, pattern: VerticalSlash | BlockTopK):
    q, k, lengths = MISFITS[name]
    with pytest.raises((ShapeError, TypeCheckError)):
        estimate(pattern, q, k, backend="cpu", **lengths)


def test_lengths_of_any_layout():
    q, k, _ = random_qkv(b=2, h=2, g=2, n=100, m=100, dtype=torch.float32)
    lengths = torch.tensor([90, 0, 80, 0], dtype=torch.int32)[::2]
    index = estimate(VerticalSlash(), q, k, query_lengths=lengths, key_lengths=lengths)
    assert index.query_lengths.tolist() == [90, 80]


@pytest.mark.parametrize("backend", get_args(BackendName))
def test_every_backend_of_attend_is_known(backend: str):
    name, _, isa = backend.partition("-")
    q = torch.randn(1, 1, 100, 64)
    if name == "triton":
        with pytest.raises(UnsupportedError, match="needs tensors on a GPU, got cpu"):
            estimate(VerticalSlash(), q, q, backend=backend)
        return
    if isa and isa not in ISAS:
        pytest.skip(f"this CPU lacks {isa}")
    assert estimate(VerticalSlash(), q, q, backend=backend).n == 100


@pytest.mark.parametrize("backend", ["nonsense", "cpu-", "auto-avx2", "cpu-sse9"])
def test_an_unknown_backend_is_refused(backend: str):
    q = torch.zeros(1, 1, 64, 8)
    with pytest.raises(InputError, match="unknown backend"):
        estimate(VerticalSlash(), q, q, backend=backend)
