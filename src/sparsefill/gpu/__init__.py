"""What the Triton kernels of both stages share: what they ask of a GPU and of tensors.

Importing this imports no Triton. Kernels are chosen by what a device can do, never by its name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Variant = Literal["pointers", "descriptors", "hopper"]  # loads of whole tiles; own kernel

DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (*range(16, 129, 16), 256)  # rows of others are loaded two bytes at a time
OLDEST_TRITON = (3, 6)
OLDEST = (8, 0)  # compute capability
FIRST_WITH_DESCRIPTORS = (9, 0)  # tensor memory accelerator (TMA)
HOPPER = (9, 0)  # the only one with its matrix instructions
WIDEST_WITH_DESCRIPTORS = 128  # head dimension; beyond it they spill registers
HEAD_DIMS_ON_HOPPER = (64, 128)
SHARED_FOR_256 = 167936  # bytes of shared memory that a block needs at head_dim 256
FARTHEST = 1 << 25  # elements between rows: places in a tile are 32-bit
LOG2_E = 1.4426950408889634


def refusal(q: Float[Tensor, "b h n d"], variant: Variant | None = None) -> str | None:
    """Say why the kernels cannot serve `q`, or None if they can.

    Args:
        variant: of the attend kernel; None if that does not matter.
    """
    if q.device.type != "cuda":
        return f"needs tensors on a GPU, got {q.device}"
    version = triton_version()
    if version is None:
        return "needs Triton, which is not installed; run: pip install triton"
    if version < OLDEST_TRITON:
        needed, got = (".".join(map(str, pair)) for pair in (OLDEST_TRITON, version))
        return f"needs Triton {needed} or newer (torch 2.11 brings 3.6), got {got}"
    d = q.shape[-1]
    if q.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"needs one of {allowed}, got {q.dtype}"
    if d not in HEAD_DIMS:
        return f"needs a head_dim that is a multiple of 16 up to 128, or 256, got {d}"
    if variant == "descriptors" and d > WIDEST_WITH_DESCRIPTORS:
        return f"needs a head_dim up to {WIDEST_WITH_DESCRIPTORS}, got {d}"
    if variant == "hopper" and d not in HEAD_DIMS_ON_HOPPER:
        return f"needs a head_dim of {HEAD_DIMS_ON_HOPPER}, got {d}"
    if torch.version.hip is not None:
        return None if variant in (None, "pointers") else "needs an NVIDIA GPU"
    return _refused_device(q.device, d, variant)


@functools.cache
def triton_version() -> tuple[int, int] | None:
    """Return major and minor version of the Triton that is installed, without importing it."""
    try:
        major, minor, *_ = importlib.metadata.version("triton").split(".")
    except importlib.metadata.PackageNotFoundError:
        return None
    return int(major), int(minor)


def _refused_device(device: torch.device, d: int, variant: Variant | None) -> str | None:
    """Say what an NVIDIA GPU lacks."""
    capability = torch.cuda.get_device_capability(device)
    oldest = FIRST_WITH_DESCRIPTORS if variant == "descriptors" else OLDEST
    if capability < oldest:
        return f"needs a GPU of compute capability {oldest} or newer, got {capability}"
    if variant == "hopper" and capability != HOPPER:
        return f"needs a GPU of compute capability {HOPPER}, got {capability}"
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    if d > 128 and shared < SHARED_FOR_256 and capability != OLDEST:
        return f"needs {SHARED_FOR_256} bytes of shared memory at head_dim 256, got {shared}"
    return None


def launched_on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Launch kernels on the tensors' device, which need not be the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def readable(
    tensor: Float[Tensor, "b heads length d"], *, descriptors: bool = False
) -> Float[Tensor, "b heads length d"]:
    """Return the tensor itself, or a copy if its rows cannot be loaded 16 bytes at a time.

    Args:
        descriptors: whether tiles are loaded by descriptors, which cannot say that heads or
            rows are the same memory.
    """
    *others, row, last = tensor.stride()
    aligned = all(stride % 16 == 0 for stride in (*others, row)) and tensor.data_ptr() % 16 == 0
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    shared = descriptors and any(size > 1 and stride == 0 for size, stride in sizes)
    simple = aligned and not shared and last == 1 and row < FARTHEST
    return tensor if simple else tensor.clone(memory_format=torch.contiguous_format)


def strides_of(tensor: Float[Tensor, "b heads length d"]) -> tuple[int, int, int]:
    """Return the strides; 0 for a single sequence, whose stride would only pick a kernel."""
    sequence, head, row, _ = tensor.stride()
    return (0 if len(tensor) == 1 else sequence), head, row


def describable_strides(tensor: Float[Tensor, "b heads length d"]) -> list[int]:
    """Return strides for a tensor descriptor, which refuses 0 even where there is one element."""
    *others, d = tensor.shape
    sizes = zip(others, tensor.stride(), strict=False)
    return [*(stride if size > 1 else d for size, stride in sizes), 1]


def cut(d: int) -> tuple[int, int]:
    """Cut a head dimension into two parts that are powers of two; the second may be 0.

    Example:
        >>> [cut(d) for d in (64, 80, 96, 128, 256)]
        [(64, 0), (64, 16), (64, 32), (64, 64), (128, 128)]
    """
    first = 1 << (d.bit_length() - 1)
    if first == d and d > 64:
        first //= 2
    rest = d - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def maths_of(scale: float, softcap: float | None) -> tuple[float, float, float]:
    """Return what kernels turn products into powers of two with.

    Returns:
        What a product is multiplied by; inside and outside of tanh, where there is a soft cap.
    """
    if softcap is None:
        return scale * LOG2_E, 0.0, 0.0
    return scale * LOG2_E, 2 * LOG2_E * scale / softcap, softcap * LOG2_E
