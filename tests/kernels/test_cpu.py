"""The compiled backend beyond the table: what it refuses, layouts, threads, instruction sets.

The C++ side has tests of its own (`make sanitize`): random calls compared with plain code.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefill import Attended, SparseIndex, abi, attend, estimate, sparse_attention
from sparsefill.errors import InputError, ShapeError, UnsupportedError
from sparsefill.index import NEVER
from sparsefill.kernels import choose_backend
from tests.support.closeness import assert_attended
from tests.support.inputs import PATTERNS, Qkv, patterns_of, random_qkv

needs_library = pytest.mark.skipif(not abi.instruction_sets(), reason="no compiled kernels")
LENGTH = 200  # 4 row blocks, which end before keys 64, 128, 192 and 256


def small_index() -> SparseIndex:
    """Make a valid index of 2 heads that uses all of the format."""
    lists: dict[str, Any] = {
        "query_lengths": [LENGTH],
        "key_lengths": [LENGTH],
        "slash_counts": [[2, 1]],
        "slash_tiles": [[[0, 64], [10, NEVER]]],
        "column_counts": [[3, 0]],
        "column_indices": [[[1, 5, 9], [-1, -1, -1]]],
        "row_ptr": [[[0, 0, 0, 0, 2], [2, 2, 2, 3, 3]]],
        "tile_starts": [0, 64, 30],
    }
    tensors: dict[str, Any] = {
        name: torch.tensor(values, dtype=torch.int32) for name, values in lists.items()
    }
    return SparseIndex(n=LENGTH, m=LENGTH, **tensors)


def small_qkv() -> Qkv:
    return random_qkv(h=2, g=1, n=LENGTH, dtype=torch.float32)


def mixed(**shape: Any) -> tuple[Qkv, SparseIndex]:
    """Make inputs and an index with a head of every pattern."""
    qkv = random_qkv(**{"b": 2, "h": 12, "g": 2, "n": 300, "dtype": torch.float32, **shape})
    return qkv, estimate(patterns_of("mixed", qkv.q.shape[1]), qkv.q, qkv.k)


def assert_same(got: Attended, expected: Attended) -> None:
    assert torch.equal(got.out, expected.out)
    assert torch.equal(got.lse, expected.lse)


# ---- what is refused --------------------------------------------------------------------

HOSTILE = {  # list, place, value, and what the message says
    "too-many-slashes": ("slash_counts", (0, 0), 3, "3 slash tiles, but there is room for 2"),
    "negative-slashes": ("slash_counts", (0, 1), -1, "head 1: -1 slash tiles"),
    "slash-in-the-future": ("slash_tiles", (0, 0, 0), -1, "slash tiles must lie in 0"),
    "slashes-overlap": ("slash_tiles", (0, 0, 1), 63, "at least 64, got 63 after 0"),
    "too-many-columns": ("column_counts", (0, 1), 4, "4 columns, but there is room for 3"),
    "negative-columns": ("column_counts", (0, 0), -(2**31), "-2147483648 columns"),
    "column-twice": ("column_indices", (0, 0, 1), 1, "at least 1, got 1 after 1"),
    "column-past-the-keys": ("column_indices", (0, 0, 2), LENGTH, "must lie in 0..199, got 200"),
    "negative-column": ("column_indices", (0, 0, 0), -1, "must lie in 0..199, got -1"),
    "row-ptr-descends": ("row_ptr", (0, 1, 2), 0, "row_ptr must ascend in 0..3, got 2, 0"),
    "row-ptr-too-large": ("row_ptr", (0, 1, 4), 4, "row_ptr must ascend in 0..3, got 3, 4"),
    "row-ptr-negative": ("row_ptr", (0, 0, 0), -1, "row_ptr must ascend in 0..3, got -1, 0"),
    "tiles-overlap": ("tile_starts", (1,), 63, "tile starts must ascend by at least 64, got 63"),
    "tile-on-a-slash": ("tile_starts", (1,), 65, "tile 65 overlaps the slash tile of offset 64"),
    "tile-before-key-0": ("tile_starts", (0,), -64, "tile starts must lie in -63"),
    "too-many-queries": ("query_lengths", (0,), 201, "query_lengths must lie in 0..200, got 201"),
    "negative-queries": ("query_lengths", (0,), -1, "query_lengths must lie in 0..200, got -1"),
    "too-many-keys": ("key_lengths", (0,), 201, "key_lengths must lie in 0..200, got 201"),
    "negative-keys": ("key_lengths", (0,), -1, "key_lengths must lie in 0..200, got -1"),
}


@needs_library
@pytest.mark.parametrize(("name", "place", "value", "message"), HOSTILE.values(), ids=[*HOSTILE])
def test_an_index_that_breaks_an_invariant_is_refused(
    name: str, place: tuple[int, ...], value: int, message: str
):
    index = small_index()
    attend(*small_qkv(), index, backend="cpu")  # served as it is
    getattr(index, name)[place] = value
    with pytest.raises(InputError) as refused:
        attend(*small_qkv(), index, backend="cpu")
    assert message in str(refused.value)


MISSHAPEN: dict[str, Callable[[SparseIndex], dict[str, Tensor]]] = {  # would be read out of bounds
    "int64": lambda index: {"slash_tiles": index.slash_tiles.long()},
    "one-head": lambda index: {"column_counts": index.column_counts[:, :1]},
    "short-row-ptr": lambda index: {"row_ptr": index.row_ptr[:, :, :-1]},  # type: ignore[index]
    "no-lengths": lambda index: {"key_lengths": index.key_lengths[:0]},
}


@needs_library
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("change", MISSHAPEN.values(), ids=[*MISSHAPEN])
def test_an_index_whose_lists_do_not_fit_is_refused(change: Callable[..., dict[str, Tensor]]):
    index = small_index()
    with pytest.raises(ShapeError, match="int32"):
        attend(*small_qkv(), replace(index, **change(index)), backend="cpu")


UNSERVED = {
    "needs one of float32, bfloat16, float16": torch.zeros(1, 1, 1, 64, dtype=torch.float64),
    "multiple of 8 up to 256, got 12": torch.zeros(1, 1, 1, 12),
    "multiple of 8 up to 256, got 264": torch.zeros(1, 1, 1, 264),
    "needs tensors on the CPU, got meta": torch.zeros(1, 1, 1, 64, device="meta"),
}


@pytest.mark.parametrize(("message", "q"), UNSERVED.items(), ids=[*UNSERVED])
@pytest.mark.parametrize("backend", ["cpu", "cpu-baseline"])
def test_what_cannot_be_served_is_refused_by_name(backend: str, message: str, q: Tensor):
    with pytest.raises(UnsupportedError, match=f"^{backend} backend .*{message}"):
        choose_backend(backend, q)
    assert choose_backend("auto", q) == "torch"


@needs_library
def test_an_instruction_set_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(abi, "instruction_sets", lambda: {"amx": False, "baseline": True})
    with pytest.raises(UnsupportedError, match="cpu-amx backend needs a CPU with amx"):
        attend(*small_qkv(), small_index(), backend="cpu-amx")
    with pytest.raises(UnsupportedError, match="a compiler that knows it"):
        attend(*small_qkv(), small_index(), backend="cpu-avx2")


def test_without_the_library_auto_falls_to_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(abi, "missing_reason", lambda: "no compiled kernels; install a wheel")
    monkeypatch.setattr(abi, "library", lambda: None)
    qkv, index = small_qkv(), small_index()
    with pytest.raises(UnsupportedError, match="cpu backend cannot run: no compiled kernels; inst"):
        attend(*qkv, index, backend="cpu")
    with pytest.raises(UnsupportedError, match="cannot run: no compiled kernels"):
        abi.call("sparsefill_attend")
    assert_same(attend(*qkv, index), attend(*qkv, index, backend="torch"))


# ---- what is chosen ---------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("dtype", abi.TYPES, ids=str)
def test_auto_picks_the_compiled_kernels(dtype: torch.dtype):
    assert choose_backend("auto", torch.zeros(1, 1, 1, 64, dtype=dtype)) == "cpu"


@needs_library
def test_the_best_instruction_set_is_used():
    best = next(isa for isa, available in abi.instruction_sets().items() if available)
    qkv, index = mixed(dtype=torch.bfloat16)
    named: Any = f"cpu-{best}"
    assert_same(attend(*qkv, index, backend="cpu"), attend(*qkv, index, backend=named))


@needs_library
def test_vectors_of_any_width_add_up_in_one_order():
    if not all(abi.instruction_sets().get(isa) for isa in ("avx2", "avx512")):
        pytest.skip("needs a CPU with avx512")
    for softcap in (None, 2.0):
        qkv, index = mixed(n=333)
        narrow = attend(*qkv, index, softcap=softcap, backend="cpu-avx2")
        assert_same(attend(*qkv, index, softcap=softcap, backend="cpu-avx512"), narrow)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e2, 1e5])
def test_huge_scores_stay_within_the_error_budget(size: float, dtype: torch.dtype):
    plain = random_qkv(h=6, g=2, n=300, dtype=torch.float32)
    qkv = Qkv(plain.q * size, plain.k * size, plain.v).to(dtype)  # scores up to size**2 * 30
    index = estimate(patterns_of("mixed", 6), qkv.q, qkv.k)
    assert_attended(attend(*qkv, index, backend="cpu"), qkv, index)


# ---- layouts ----------------------------------------------------------------------------


def sparse(x: Tensor) -> Tensor:
    """Lay a tensor out with a gap after every element."""
    return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads-last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch-last": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "d-not-contiguous": sparse,
    "d-first": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "padded": lambda x: torch.nn.functional.pad(x, (1, 4), value=torch.nan)[..., 1:-4],
    "cut-from-more-heads": lambda x: torch.nn.functional.pad(x, (0, 0, 0, 3, 2, 1))[:, 2:-1, :-3],
}


@needs_library
@pytest.mark.parametrize("dtype", abi.TYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=[*LAYOUTS])
def test_layouts_change_nothing(layout: Callable[[Tensor], Tensor], dtype: torch.dtype):
    qkv, index = mixed(h=6, n=150, d=40, dtype=dtype)
    expected = attend(*qkv, index, backend="cpu")
    assert_same(attend(*qkv.map(layout), index, backend="cpu"), expected)


@needs_library
def test_one_key_head_may_stand_for_several():
    qkv, index = mixed(h=6, g=1)
    repeated = qkv._replace(k=qkv.k.expand(-1, 6, -1, -1), v=qkv.v.expand(-1, 6, -1, -1))
    expected = attend(*qkv, index, backend="cpu")
    assert_same(attend(*repeated, index, backend="cpu"), expected)


@needs_library
def test_lists_may_have_any_stride():
    qkv, index = mixed(b=1)
    spread = {n: v[..., None].expand(*v.shape, 2)[..., 0] for n, v in lists_of(index).items()}
    assert_same(
        attend(*qkv, replace(index, **spread), backend="cpu"), attend(*qkv, index, backend="cpu")
    )


def lists_of(index: SparseIndex) -> dict[str, Tensor]:
    return {name: value for name, value in vars(index).items() if isinstance(value, Tensor)}


@needs_library
def test_the_output_is_laid_out_heads_last():
    qkv, index = mixed()
    out, lse = attend(*qkv, index, backend="cpu")
    assert out.transpose(1, 2).is_contiguous()
    assert lse.is_contiguous()


@needs_library
def test_sequences_without_queries_or_keys():
    qkv = random_qkv(b=4, h=6, g=2, n=90, m=70, dtype=torch.float32)
    queries, keys = torch.tensor([0, 0, 90, 90]), torch.tensor([0, 70, 0, 70])
    lengths: dict[str, Any] = {"query_lengths": queries, "key_lengths": keys}
    index = estimate(patterns_of("mixed", 6), qkv.q, qkv.k, **lengths)
    out, lse = attend(*qkv, index, backend="cpu")
    assert bool((out[:3] == 0).all())
    assert bool((lse[:3] == -torch.inf).all())
    sees = torch.arange(90) + 70 - 90 >= 0
    assert bool((lse[3].isfinite() == sees).all())
    assert bool((out[3, :, ~sees] == 0).all())


# ---- threads ----------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("dtype", abi.TYPES, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype):
    qkv, index = mixed(dtype=dtype)
    expected = attend(*qkv, index, backend="cpu")
    for threads in (2, 3, 16):
        torch.set_num_threads(threads)  # the next test starts from one again
        assert_same(attend(*qkv, index, backend="cpu"), expected)


@needs_library
def test_several_callers_at_once():
    torch.set_num_threads(2)
    work = [mixed(n=n) for n in (150, 300)] * 4  # different inputs, and the same

    def call(one: tuple[Qkv, SparseIndex]) -> Attended:
        qkv, index = one
        return attend(*qkv, index, backend="cpu")

    expected = [call(one) for one in work]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(call, work))
    for one, alone in zip(got, expected, strict=True):
        assert_same(one, alone)


@needs_library
def test_sparse_attention_takes_this_backend():
    qkv = small_qkv()
    pattern = PATTERNS["vertical-slash"]
    index = estimate(pattern, qkv.q, qkv.k)
    got = sparse_attention(*qkv, pattern, backend="cpu")
    assert torch.equal(got, attend(*qkv, index, backend="cpu").out)
