"""The error-budget rule: how far from the oracle a result may be.

The oracle is the reference backend in float64. A backend may err by twice what plain
eager attention errs in the tested dtype, plus rounding:

    budget = 2 * (error(eager) + eps(tested dtype) * max |oracle|)

One exception: eager attention in float64 is the oracle, so its error cannot be seen.
It is taken to be what eager attention errs in float32, times eps(float64) /
eps(float32) = 2**-29, because rounding errors are proportional to eps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsefill import Attended, SparseIndex, attend
from tests.support.inputs import Qkv

MEASURABLE = 32  # rows below which eager's error may be small by luck


def assert_attended(
    got: Attended,
    qkv: Qkv,
    index: SparseIndex,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> None:
    """Fail unless `got` is as close to the oracle as its inputs' dtype allows."""
    assert got.out.dtype == qkv.q.dtype
    assert got.lse.dtype == torch.promote_types(qkv.q.dtype, torch.float32)

    def eager(inputs: Qkv) -> Attended:
        return attend(*inputs, index, scale=scale, softcap=softcap, backend="reference")

    assert_within_budget(got, qkv, eager, names=Attended._fields)


def assert_within_budget(
    got: Sequence[Tensor],
    qkv: Qkv,
    eager: Callable[[Qkv], Sequence[Tensor]],
    *,
    names: Sequence[str] = ("out",),
) -> None:
    """Fail unless each result is finite exactly where the oracle is, and there within budget.

    Args:
        eager: plain attention in the dtype of its inputs; in float64 it is the oracle.
        names: of the results, which are judged separately.
    """
    dtype = qkv.q.dtype
    measured = qkv.to(torch.float32) if dtype == torch.float64 else qkv
    rounding = torch.finfo(dtype).eps / torch.finfo(measured.q.dtype).eps
    oracle = eager(qkv.to(torch.float64))
    truth = eager(measured.to(torch.float64)) if measured is not qkv else oracle
    approximate = eager(measured)
    for i, name in enumerate(names):
        exact, finite = oracle[i], oracle[i].isfinite()
        wrong = int((got[i].isfinite() != finite).sum())
        assert not wrong, f"{name}: {wrong} entries should be finite and are not, or the reverse"
        assert torch.equal(got[i][~finite].double(), exact[~finite]), f"{name}: not -inf"
        if not finite.any():
            continue
        eager_error = rounding * _error(approximate[i][finite], truth[i][finite])
        largest = float(exact[finite].abs().max())
        allowed = 2 * (eager_error + torch.finfo(dtype).eps * largest)
        error = _error(got[i][finite], exact[finite])
        assert error <= allowed, f"{name}: error {error:.3g} exceeds the budget {allowed:.3g}"


def _error(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).abs().max())
