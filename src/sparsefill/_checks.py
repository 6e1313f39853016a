"""Shape, dtype, device and value checks, made once at the public entrance.

Only `attention.sparse_attention` and `kernels.attend` call them; what lies below may
then trust its inputs.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int32
from torch import Tensor

from sparsefill import abi
from sparsefill.errors import InputError, ShapeError, UnsupportedError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless q is (b, h, n, d) and k, v are (b, g, m, d) with h a multiple of g."""
    for name, tensor, axes in (("q", q, "b h n d"), ("k", k, "b g m d"), ("v", v, "b g m d")):
        if tensor.ndim != 4:
            raise ShapeError(
                f"{name} must have 4 axes ({axes}), got shape {tuple(tensor.shape)};"
                " add the missing axis or transpose to heads-first"
            )
        if tensor.dtype not in DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ShapeError(f"{name} must be one of {allowed}, got {tensor.dtype}; cast it")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ShapeError(
                f"q, k and v must share dtype and device, got q {q.dtype} on {q.device}"
                f" and {name} {tensor.dtype} on {tensor.device}; cast or move one"
            )
    b, h, n, d = q.shape
    g, m = k.shape[1], k.shape[2]
    if k.shape != v.shape or k.shape[0] != b or k.shape[3] != d:
        raise ShapeError(
            f"k and v must both have shape (b={b}, g, m, d={d}), got k {tuple(k.shape)}"
            f" and v {tuple(v.shape)}; pass keys and values of the same sequences"
        )
    if min(b, h, n, g, m, d) == 0:
        raise ShapeError(
            f"q and k must not be empty, got q {tuple(q.shape)} and k {tuple(k.shape)};"
            " pass at least one query and one key"
        )
    if h % g:
        raise ShapeError(
            f"k must have shape (b, g, m, d) with h a multiple of g, got h={h}, g={g};"
            " do not split query heads unevenly over KV heads"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        raise UnsupportedError(
            "sparse attention computes the forward pass only, got an input that requires grad;"
            " wrap the call in torch.inference_mode() or torch.no_grad()"
        )


def check_lengths(
    lengths: Tensor | None, *, name: str, b: int, longest: int, device: torch.device
) -> Int32[Tensor, " b"]:
    """Return the length of each sequence as int32, all `longest` when None."""
    if lengths is None:
        return torch.full((b,), longest, dtype=torch.int32, device=device)
    if lengths.shape != (b,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ShapeError(
            f"{name} must be {b} integers, one per sequence,"
            f" got shape {tuple(lengths.shape)} of {lengths.dtype};"
            " pass the number of real entries of each sequence"
        )
    if int(lengths.min()) < 0 or int(lengths.max()) > longest:
        raise ShapeError(
            f"{name} must lie in 0..{longest} (the padded length), got {lengths.tolist()};"
            " pass the number of real entries of each sequence"
        )
    return lengths.to(device=device, dtype=torch.int32)


def check_maths(scale: float, softcap: float | None) -> None:
    """Raise unless scores can be scaled and bounded with these."""
    if not math.isfinite(scale):
        raise InputError(f"scale must be finite, got {scale}; pass None for d ** -0.5")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise InputError(
            f"softcap must be finite and above 0, got {softcap}; pass None for no bound"
        )


def check_finite(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_lengths: Int32[Tensor, " b"],
    key_lengths: Int32[Tensor, " b"],
) -> None:
    """Raise if a tensor holds NaN or infinity inside the sequences' lengths."""
    lengths = {"q": query_lengths, "k": key_lengths, "v": key_lengths}
    tensors = {"q": q, "k": k, "v": v}
    if abi.refusal(q) is None:
        suspects = abi.find_not_finite(q, k, v, query_lengths, key_lengths)
    else:
        finite = torch.stack([_all_finite(t) for t in tensors.values()]).tolist()  # waits once
        suspects = [name for name, known in zip(tensors, finite, strict=True) if not known]
    for name in suspects:
        _refuse_not_finite(name, tensors[name], lengths[name])


def _refuse_not_finite(name: str, tensor: Tensor, lengths: Int32[Tensor, " b"]) -> None:
    """Raise for the first value inside the lengths that is not finite, if there is one."""
    inside = torch.arange(tensor.shape[2], device=tensor.device) < lengths[:, None]
    broken = ~torch.isfinite(tensor) & inside[:, None, :, None]
    if not bool(broken.any()):
        return  # only padding is not finite, and padding is never read
    sequence, head, position, _ = broken.nonzero()[0].tolist()
    raise InputError(
        f"{name} must be finite, got {int(broken.sum())} NaN or infinite values, the first at"
        f" sequence {sequence}, head {head}, position {position};"
        " check the model's weights and dtype (float16 overflows at 65504)"
    )


def _all_finite(tensor: Tensor) -> Bool[Tensor, ""]:
    """Tell whether every value is finite, reading once and allocating nothing."""
    heads_last = tensor.transpose(1, 2)  # contiguous in most models: read in memory order
    low, high = torch.aminmax(heads_last if heads_last.is_contiguous() else tensor)
    return torch.isfinite(low) & torch.isfinite(high)
