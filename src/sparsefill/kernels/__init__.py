"""Attention over exactly the cells that an index names.

Third of the three stages: one signature, several backends. A backend asked for by name
serves or raises; `"auto"` takes the first of `AUTO_ORDER` that can serve.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor

from sparsefill import abi, gpu
from sparsefill._checks import check_finite, check_maths, check_qkv
from sparsefill.errors import InputError, ShapeError, UnsupportedError
from sparsefill.index import SparseIndex

BackendName = Literal[
    "auto",
    "reference",
    "torch",
    "triton",
    "triton-pointers",
    "triton-descriptors",
    "triton-hopper",
    "cpu",
    "cpu-amx",
    "cpu-avx512bf16",
    "cpu-avx512",
    "cpu-avx2",
    "cpu-baseline",
]


class Attended(NamedTuple):
    """What attention returns: the output and the log-sum-exp of every query row."""

    out: Float[Tensor, "b h n d"]
    lse: Float[Tensor, "b h n"]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of `attend`.

    Args:
        module: where its `attend` function lives; imported when first used.
        about: what it is for, in one line.
        refusal: says why it cannot serve some queries, or None if it can.
        options: what its `attend` is called with besides.
    """

    module: str
    about: str
    refusal: Callable[[Tensor], str | None] = lambda q: None
    options: Mapping[str, str] = field(default_factory=dict)


def _triton(about: str, **options: gpu.Variant) -> Backend:
    """Describe the Triton kernels, or one variant of them."""
    return Backend(
        module="sparsefill.kernels.triton",
        about=f"{about}; verified without a GPU, not yet run on any",
        refusal=functools.partial(gpu.refusal, **options),
        options=options,
    )


def _compiled(isa: str) -> Backend:
    """Describe the compiled kernels, restricted to one instruction set."""
    return Backend(
        module="sparsefill.kernels.cpu",
        about=f"the compiled CPU kernels for {isa}, whatever the CPU could do better",
        refusal=functools.partial(abi.refusal, isa=isa),
        options={"isa": isa},
    )


BACKENDS: dict[str, Backend] = {
    "reference": Backend(
        module="sparsefill.kernels.reference", about="readable oracle; memory grows with n * m"
    ),
    "torch": Backend(
        module="sparsefill.kernels.torch", about="portable; plain torch operations on any device"
    ),
    "triton": _triton("Triton kernels for GPUs, with the loads that suit the GPU"),
    "triton-pointers": _triton("Triton kernels that load by pointers", variant="pointers"),
    "triton-descriptors": _triton(
        "Triton kernels that load by tensor descriptors (TMA)", variant="descriptors"
    ),
    "triton-hopper": _triton("one kernel for Hopper alone, in Gluon", variant="hopper"),
    "cpu": Backend(
        module="sparsefill.kernels.cpu",
        about="compiled kernels for CPUs; picks the best instruction set",
        refusal=abi.refusal,
    ),
    **{f"cpu-{isa}": _compiled(isa) for isa in abi.ISAS},
}

AUTO_ORDER = ("triton", "cpu", "torch")  # fastest first; the oracle is never chosen


def choose_backend(backend: str, q: Float[Tensor, "b h n d"]) -> str:
    """Resolve `"auto"`, and check that the backend can serve these queries.

    Example:
        >>> import torch
        >>> choose_backend("auto", torch.zeros(1, 1, 1, 64, dtype=torch.float64))
        'torch'
    """
    if backend != "auto" and backend not in BACKENDS:
        raise InputError(
            f"unknown backend {backend!r}; use one of {', '.join(get_args(BackendName))}"
        )
    names = AUTO_ORDER if backend == "auto" else (backend,)
    refusals = []
    for name in names:
        refusal = BACKENDS[name].refusal(q)
        if refusal is None:
            return name
        refusals.append(f"{name} backend {refusal}")
    why = "; ".join(refusals)
    raise UnsupportedError(f"{why}; pass backend='torch', or change the inputs")


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    backend: BackendName = "auto",
) -> Attended:
    """Attend over the cells of `index`.

    Rows without any key, and rows past a sequence's length, give zeros and an LSE of
    minus infinity.

    Args:
        index: with one head per query head, or one per KV head shared by its group.
        scale: what scores are multiplied by; `d ** -0.5` when None.
        softcap: scores are bounded to `softcap * tanh(score / softcap)` when given.
        backend: `"auto"`, or one of `BACKENDS`, which then serves or raises.

    Returns:
        `out` in the dtype of `q`; `lse`, natural logarithm, in float32 (float64 for
        float64 inputs).

    Raises:
        ShapeError: a tensor does not fit the others or the index.
        InputError: a tensor holds NaN or infinity.
        UnsupportedError: the backend cannot serve this call.

    Example:
        >>> import torch
        >>> from sparsefill import AShape, estimate
        >>> q = torch.randn(1, 2, 100, 64)
        >>> out, lse = attend(q, q, q, estimate(AShape(), q, q))
        >>> out.shape, lse.shape
        (torch.Size([1, 2, 100, 64]), torch.Size([1, 2, 100]))
    """
    check_qkv(q, k, v)
    check_index(q, k, index)
    check_finite(q, k, v, index.query_lengths, index.key_lengths)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    check_maths(scale, softcap)
    return attend_unchecked(q, k, v, index, scale=scale, softcap=softcap, backend=backend)


def attend_unchecked(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    *,
    scale: float,
    softcap: float | None,
    backend: BackendName,
) -> Attended:
    """Do what `attend` does, on inputs that were checked already."""
    chosen = BACKENDS[choose_backend(backend, q)]
    implementation = importlib.import_module(chosen.module)
    return Attended(
        *implementation.attend(q, k, v, index, scale=scale, softcap=softcap, **chosen.options)
    )


def check_index(q: Tensor, k: Tensor, index: SparseIndex) -> None:
    """Raise unless the index was made for tensors of these shapes."""
    b, h, n, _ = q.shape
    g, m = k.shape[1], k.shape[2]
    if (index.b, index.n, index.m) != (b, n, m) or index.x not in (h, g):
        raise ShapeError(
            f"index must be for b={b}, n={n}, m={m} and {h} query or {g} KV heads,"
            f" got {index}; estimate it from the same q and k"
        )
    if index.device != q.device:
        raise ShapeError(f"index must be on {q.device}, got {index.device}; estimate it there")
    index.check_lists()
