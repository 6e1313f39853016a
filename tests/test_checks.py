"""Every bad input gets the right error, saying what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefill import (
    AShape,
    InputError,
    ShapeError,
    SparsefillError,
    UnsupportedError,
    attend,
    estimate,
    kernels,
    sparse_attention,
)
from tests.support.inputs import Qkv, random_qkv

PATTERN = AShape(sink=1, window=9)
GOOD = random_qkv(b=2, h=4, g=2, n=100, m=120, dtype=torch.float32)
INDEX = estimate(PATTERN, GOOD.q, GOOD.k)

pytestmark = pytest.mark.usefixtures("unchecked_types")  # the shapes below are wrong on purpose


def spoilt(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[1, 1, 7, 3] = value
    return x


AXES = ("must have 4 axes", "got shape", "add the missing axis or transpose")
DTYPE = ("must be one of float64, float32, bfloat16, float16", "got torch.", "cast it")
SHARED = ("q, k and v must share dtype and device", "got q torch.float32 on cpu", "cast or move")
KEYS = ("k and v must both have shape (b=2, g, m, d=32)", "got k (", "pass keys and values of the")
GROUP = ("with h a multiple of g", "got h=4, g=3", "do not split query heads unevenly")
EMPTY = ("must not be empty", "got q (", "pass at least one query and one key")
GRAD = ("forward pass only", "got an input that requires grad", "inference_mode() or torch.no_grad")
PLACE = "got 1 NaN or infinite values, the first at sequence 1, head 1, position 7"
FINITE = ("must be finite", PLACE, "check the model's weights and dtype")

q, k, v = GOOD
BAD_TENSORS: dict[str, tuple[tuple[Tensor, Tensor, Tensor], type, tuple[str, ...]]] = {
    "q-3d": ((q[0], k, v), ShapeError, AXES),
    "k-3d": ((q, k[0], v), ShapeError, AXES),
    "v-5d": ((q, k, v[None]), ShapeError, AXES),
    "integers": (GOOD.to(torch.int32), ShapeError, DTYPE),
    "complex": (GOOD.to(torch.complex64), ShapeError, DTYPE),
    "half-keys": ((q, k.half(), v.half()), ShapeError, SHARED),
    "double-values": ((q, k, v.double()), ShapeError, SHARED),
    "other-device": ((q, k.to("meta"), v), ShapeError, SHARED),
    "batch": ((q, k[:1], v[:1]), ShapeError, KEYS),
    "values-length": ((q, k, v[:, :, 1:]), ShapeError, KEYS),
    "values-heads": ((q, k, v[:, :1]), ShapeError, KEYS),
    "values-dim": ((q, k, v[..., :16]), ShapeError, KEYS),
    "head-dim": ((q, k[..., :16], v[..., :16]), ShapeError, KEYS),
    "groups": ((q, k[:, [0, 1, 0]], v[:, [0, 1, 0]]), ShapeError, GROUP),
    "no-batch": ((q[:0], k[:0], v[:0]), ShapeError, EMPTY),
    "no-queries": ((q[:, :, :0], k, v), ShapeError, EMPTY),
    "no-keys": ((q, k[:, :, :0], v[:, :, :0]), ShapeError, EMPTY),
    "no-kv-heads": ((q, k[:, :0], v[:, :0]), ShapeError, EMPTY),
    "grad": ((q, k, v.clone().requires_grad_()), UnsupportedError, GRAD),
    "nan-q": ((spoilt(q, torch.nan), k, v), InputError, ("q " + FINITE[0], *FINITE[1:])),
    "inf-k": ((q, spoilt(k, torch.inf), v), InputError, ("k " + FINITE[0], *FINITE[1:])),
    "minus-inf-v": ((q, k, spoilt(v, -torch.inf)), InputError, ("v " + FINITE[0], *FINITE[1:])),
}


def refuse(call: Callable[[], Any], error: type, parts: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, SparsefillError)
    message, rest = str(caught.value), str(caught.value)
    for part in parts:  # in this order
        assert part in rest, f"{part!r} is missing or misplaced in {message!r}"
        rest = rest.split(part, 1)[1]
    assert ";" in message, f"{message!r} does not say what to do"


@pytest.mark.parametrize("case", BAD_TENSORS)
@pytest.mark.parametrize("front", ["sparse_attention", "attend"])
def test_bad_tensors(front: str, case: str):
    tensors, error, parts = BAD_TENSORS[case]
    if front == "attend":
        refuse(lambda: attend(*tensors, INDEX), error, parts)
    else:
        refuse(lambda: sparse_attention(*tensors, PATTERN), error, parts)


@pytest.mark.parametrize("name", ["query_lengths", "key_lengths"])
@pytest.mark.parametrize(
    ("lengths", "got"),
    [
        (torch.tensor([100]), "got shape (1,) of torch.int64"),
        (torch.tensor([[100, 100]]), "got shape (1, 2)"),
        (torch.tensor([100.0, 100.0]), "got shape (2,) of torch.float32"),
        (torch.tensor([True, True]), "got shape (2,) of torch.bool"),
    ],
    ids=["too-few", "2d", "floating", "boolean"],
)
def test_lengths_that_are_not_one_integer_per_sequence(name: str, lengths: Tensor, got: str):
    options: dict[str, Any] = {name: lengths}
    parts = (f"{name} must be 2 integers, one per sequence", got)
    refuse(lambda: sparse_attention(*GOOD, PATTERN, **options), ShapeError, parts)


@pytest.mark.parametrize(("name", "most"), [("query_lengths", 100), ("key_lengths", 120)])
@pytest.mark.parametrize("wrong", [-1, 121, 2**40])
def test_lengths_outside_the_padded_length(name: str, most: int, wrong: int):
    parts = (f"{name} must lie in 0..{most}", f"got [3, {wrong}]", "pass the number of real")
    options: dict[str, Any] = {name: torch.tensor([3, wrong])}
    refuse(lambda: sparse_attention(*GOOD, PATTERN, **options), ShapeError, parts)


@pytest.mark.parametrize("count", [0, 2, 5])
def test_the_wrong_number_of_patterns(count: int):
    parts = ("one pattern per query head", f"got {count} patterns for h=4", "pass one pattern")
    refuse(lambda: sparse_attention(*GOOD, [PATTERN] * count), ShapeError, parts)


@pytest.mark.parametrize(
    "other",
    [
        random_qkv(b=1, h=4, g=2, n=100, m=120),
        random_qkv(b=2, h=4, g=2, n=99, m=120),
        random_qkv(b=2, h=4, g=2, n=100, m=121),
        random_qkv(b=2, h=3, g=1, n=100, m=120),
        random_qkv(b=2, h=1, g=1, n=100, m=120),
    ],
    ids=["batch", "queries", "keys", "three-heads", "one-head"],
)
def test_an_index_of_other_tensors(other: Qkv):
    index = estimate(PATTERN, other.q, other.k)
    expected = "index must be for b=2, n=100, m=120 and 4 query or 2 KV heads"
    parts = (expected, f"got {index}", "estimate it from the same q and k")
    refuse(lambda: attend(*GOOD, index), ShapeError, parts)


def test_an_index_on_another_device():
    index = replace(INDEX, slash_counts=INDEX.slash_counts.to("meta"))
    parts = ("index must be on cpu", "got meta", "estimate it there")
    refuse(lambda: attend(*GOOD, index), ShapeError, parts)


@pytest.mark.parametrize("name", ["cuda", "", "Torch"])
def test_an_unknown_backend(name: Any):
    parts = (f"unknown backend {name!r}", "use one of auto, reference, torch")
    refuse(lambda: attend(*GOOD, INDEX, backend=name), InputError, parts)
    refuse(lambda: sparse_attention(*GOOD, PATTERN, backend=name), InputError, parts)


def test_a_backend_that_cannot_serve_never_falls_back(monkeypatch: pytest.MonkeyPatch):
    for name in kernels.AUTO_ORDER:
        limited = replace(kernels.BACKENDS[name], refusal=lambda q: f"needs 64, got {q.shape[-1]}")
        monkeypatch.setitem(kernels.BACKENDS, name, limited)
    parts = ("torch backend needs 64, got 32", "pass backend='torch', or change")
    for name in ("torch", "auto"):
        refuse(lambda own=name: attend(*GOOD, INDEX, backend=own), UnsupportedError, parts)
    assert attend(*GOOD, INDEX, backend="reference").out.isfinite().all()


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_inputs_that_require_grad_are_served_where_grad_is_off(quiet: Callable[[], Any]):
    tensors = GOOD.map(lambda t: t.clone().requires_grad_())
    with quiet():
        out = sparse_attention(*tensors, PATTERN)
    assert not out.requires_grad


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads-first": lambda x: x,
    "heads-last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "with-gaps": lambda x: torch.nn.functional.pad(x, (3, 5, 0, 7), value=torch.nan)[
        :, :, : x.shape[2], 3 : 3 + x.shape[3]
    ],
    "rows-last": lambda x: x.mT.contiguous().mT,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 1, 1099, 39), (1, 0, 600, 17)], ids=str)
def test_what_is_not_finite_is_found_in_any_layout(
    dtype: torch.dtype, layout: str, place: tuple[int, ...]
):
    qkv = random_qkv(b=2, h=2, g=2, n=1100, d=40, dtype=dtype)
    index = estimate(PATTERN, qkv.q, qkv.k)
    laid_out = qkv.map(LAYOUTS[layout])
    assert attend(*laid_out, index).out.isfinite().all()
    sequence, head, position, _ = place
    found = f"at sequence {sequence}, head {head}, position {position};"
    for name, tensor in zip("qkv", laid_out, strict=True):
        before = tensor[place].clone()
        for value in (torch.nan, -torch.inf):
            tensor[place] = value
            refuse(lambda: attend(*laid_out, index), InputError, (f"{name} must be finite", found))
        tensor[place] = before


@pytest.mark.parametrize("position", [0, 1023, 1024, 2047, 4099])
@pytest.mark.parametrize("layout", ["heads-first", "heads-last"])
def test_what_is_not_finite_is_found_by_several_threads(layout: str, position: int):
    qkv = random_qkv(h=8, g=8, n=4100, d=64, dtype=torch.bfloat16).map(LAYOUTS[layout])
    index = estimate(PATTERN, qkv.q, qkv.k)
    qkv.v[0, 5, position, 63] = torch.nan
    torch.set_num_threads(2)  # which the suite sets back for each test
    found = f"at sequence 0, head 5, position {position};"
    refuse(lambda: attend(*qkv, index), InputError, ("v must be finite", found))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_padding_may_hold_anything(value: float):
    tensors = GOOD.map(lambda t: spoilt(t, value))
    five = torch.tensor([100, 5])
    got = sparse_attention(
        *tensors, PATTERN, query_lengths=five, key_lengths=five, backend="reference"
    )
    expected = sparse_attention(
        *GOOD, PATTERN, query_lengths=five, key_lengths=five, backend="reference"
    )
    assert torch.equal(got, expected)
