"""The error-budget rule: how far from the oracle a result may be.

The oracle is the reference backend in float64. A backend may err by twice what plain
eager attention errs in the tested dtype, plus rounding:

    budget = 2 * (error(eager) + eps(tested dtype) * max |oracle|)
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefill import Attended, SparseIndex, attend
from tests.support.inputs import Qkv


def assert_within_budget(
    got: Attended,
    qkv: Qkv,
    index: SparseIndex,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> None:
    """Fail unless `got` is as close to the oracle as its inputs' dtype allows."""
    exact, eager = (
        attend(*inputs, index, scale=scale, softcap=softcap, backend="reference")
        for inputs in (qkv.to(torch.float64), qkv)
    )
    assert got.out.dtype == qkv.q.dtype
    assert got.lse.dtype == torch.promote_types(qkv.q.dtype, torch.float32)
    for name in Attended._fields:
        assert_close(
            getattr(got, name),
            exact=getattr(exact, name),
            eager=getattr(eager, name),
            dtype=qkv.q.dtype,
            name=name,
        )


def assert_close(
    got: Tensor, *, exact: Tensor, eager: Tensor, dtype: torch.dtype, name: str = "out"
) -> None:
    """Fail unless `got` is finite exactly where `exact` is, and there within budget."""
    assert got.shape == exact.shape, f"{name}: shape {got.shape} is not {exact.shape}"
    finite = exact.isfinite()
    wrong = int((got.isfinite() != finite).sum())
    assert not wrong, f"{name}: {wrong} entries should be finite and are not, or the reverse"
    assert torch.equal(got[~finite].double(), exact[~finite]), f"{name}: not -inf where empty"
    if not finite.any():
        return
    allowed = budget(exact[finite], eager[finite], dtype)
    error = _error(got[finite], exact[finite])
    assert error <= allowed, f"{name}: error {error:.3g} exceeds the budget {allowed:.3g}"


def budget(exact: Tensor, eager: Tensor, dtype: torch.dtype) -> float:
    """Return the largest error that the rule allows."""
    return 2 * (_error(eager, exact) + torch.finfo(dtype).eps * float(exact.abs().max()))


def _error(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).abs().max())
