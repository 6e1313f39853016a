"""The correctness gate: nothing is timed before its result was compared with the oracle.

Two rules judge a sample of row blocks, since whole long prompts would not fit the oracle's
float64. Accuracy is the rule that the tests apply (DESIGN.md): over all of the sample, at
most twice the error of plain eager attention in the same dtype, plus rounding. The first
rows have the largest outputs and so decide that budget; therefore every row block must
also be nearer to its oracle than one wrong tile would leave it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.problem import Qkv
from sparsefill import SparseIndex
from sparsefill.errors import SparsefillError
from sparsefill.tile import TILE

SAMPLES = 6  # row blocks compared: the first head's first, the last's last, four random ones


class GateError(SparsefillError):
    """A backend's result is wrong, so its time would mean nothing."""


def check_result(
    name: str,
    out: Float[Tensor, "1 h n d"],
    lse: Float[Tensor, "1 h n"] | None,
    qkv: Qkv,
    index: SparseIndex,
    *,
    scale: float | None = None,
    seed: int = 0,
) -> None:
    """Raise unless a result is as close to the oracle as its dtype allows.

    Args:
        name: of what made the result, for the error.
        lse: None for a peer that does not return it.
        seed: chooses heads and row blocks.
    """
    if out.shape != qkv.q.shape or out.dtype != qkv.q.dtype:
        raise GateError(
            f"{name} must return {qkv.q.dtype} of shape {tuple(qkv.q.shape)},"
            f" got {out.dtype} of shape {tuple(out.shape)}; nothing was timed"
        )
    parts = ("out",) if lse is None else ("out", "lse")
    compared: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {part: [] for part in parts}
    for head, row_block in _places(qkv.q.shape[1], index.row_blocks, seed):
        one, seen = _rows_of(qkv, index, head, row_block)
        at = slice(row_block * TILE, row_block * TILE + one.q.shape[2])
        got = {"out": out[0, head, at]} | ({} if lse is None else {"lse": lse[0, head, at]})
        oracle = _attend(Qkv(*(t.double() for t in one)), seen, scale)
        eager = _attend(one, seen, scale)
        for part in parts:
            compared[part].append((got[part], eager[part], oracle[part]))
        if (moved := _moved(got["out"], oracle["out"])) > (most := _half_a_tile(seen)):
            raise GateError(
                f"{name} must attend to the cells of the index, got head {head}, row block"
                f" {row_block} off by {moved:.1%} where less than {most:.1%} is rounding;"
                " nothing was timed, mend it first"
            )
    for part, results in compared.items():
        got_all, eager_all, oracle_all = (torch.cat(own) for own in zip(*results, strict=True))
        excess = _excess(got_all, eager_all, oracle_all, torch.finfo(out.dtype).eps)
        if excess is not None:
            raise GateError(
                f"{name} must agree with the oracle, got {part} {excess}; nothing was timed,"
                " mend it first"
            )


def _places(h: int, rows: int, seed: int) -> list[tuple[int, int]]:
    """Choose heads and row blocks: the first, the farthest into memory, and random ones."""
    generator = torch.Generator("cpu").manual_seed(seed)  # the same places on every device
    heads, blocks = (
        torch.randint(most, (SAMPLES - 2,), generator=generator, device="cpu").tolist()
        for most in (h, rows)
    )
    return [(0, 0), (h - 1, rows - 1), *zip(heads, blocks, strict=True)]


def _rows_of(
    qkv: Qkv, index: SparseIndex, head: int, row_block: int
) -> tuple[Qkv, Bool[Tensor, "rows keys"]]:
    """Gather the queries of a row block, the keys that its index names, and who sees what."""
    h, g = qkv.q.shape[1], qkv.k.shape[1]
    device = index.device
    place = (torch.tensor([i], device=device) for i in (0, head * index.x // h, row_block))
    keys = index.keys_of(*place)[0]
    first = row_block * TILE
    queries = torch.arange(first, min(first + TILE, index.n), device=device)
    own = (qkv.k[:, head * g // h, keys][:, None], qkv.v[:, head * g // h, keys][:, None])
    seen = keys <= queries[:, None] + (index.m - index.n)
    return Qkv(qkv.q[:, [head]][:, :, queries], *own), seen


def _attend(qkv: Qkv, seen: Bool[Tensor, "rows keys"], scale: float | None) -> dict[str, Tensor]:
    """Attend eagerly, softmax in at least float32, as the reference backend does."""
    q, k, v = (t[0, 0] for t in qkv)
    scores = (q @ k.T).to(torch.promote_types(q.dtype, torch.float32))
    scores = scores * (q.shape[1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0)[:, None])
    return {"out": weights.to(q.dtype) @ v, "lse": lse}


def _excess(got: Tensor, eager: Tensor, oracle: Tensor, eps: float) -> str | None:
    """Say how a result breaks the error budget; None if it keeps it."""
    finite = oracle.isfinite()
    if not torch.equal(got.isfinite(), finite):
        return "with entries that should be finite and are not, or the reverse"
    if not finite.any():
        return None
    exact = oracle[finite]
    allowed = 2 * (_error(eager[finite], exact) + eps * float(exact.abs().max()))
    error = _error(got[finite], exact)
    return None if error <= allowed else f"off by {error:.3g} where {allowed:.3g} is allowed"


def _moved(got: Tensor, oracle: Tensor) -> float:
    """Return how far outputs are from the oracle's, relative to their size; NaN counts as 0."""
    difference = (got.double() - oracle).nan_to_num()  # the other rule names what is not finite
    return float(difference.norm() / oracle.norm().clamp(min=1e-30))


def _half_a_tile(seen: Bool[Tensor, "rows keys"]) -> float:
    """Return half of what leaving out one of `t` tiles of random keys changes, 1 / sqrt(t).

    That is far above rounding: 0.4 % for a million keys, where bfloat16 rounds to 0.2 %.
    """
    return 0.5 * max(1.0, seen.shape[1] / TILE) ** -0.5


def _error(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).abs().max())
