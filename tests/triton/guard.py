"""Make Triton's interpreter trustworthy: right in bfloat16, and strict about memory.

The interpreter (`TRITON_INTERPRET=1`) keeps bfloat16 as 16-bit integers and computes with
those, silently; it reads and writes anywhere. With the guard installed

* bfloat16 operands are decoded to float32, and results rounded to the nearest even;
* every pointer that is not masked must lie inside of a tensor that the kernel was given,
  as that tensor sees its memory: gaps between the rows of a view are outside;
* `written_once` checks that a launch stores each element of its results exactly once.

It replaces private functions of Triton, so `test_guard.py` fails where it does not take effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

builder: Any = interpreter.InterpreterBuilder
handle: Any = interpreter.TensorHandle

EXECUTOR: Any = interpreter.GridExecutor


@dataclass
class Region:
    """The memory of one tensor.

    Args:
        first: its first address.
        owned: for each byte, whether the tensor sees it.
        stored: how often each element was stored in this launch.
    """

    first: int
    owned: np.ndarray
    stored: np.ndarray
    size: int


class Memory:
    """What the tensors of a launch own, and what was stored there."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.strict = False  # whether each tensor that is stored to must be stored once, all of it

    def begin(self, tensors: list[Tensor]) -> None:
        """Let a launch touch what some tensors see."""
        self.end()
        self.regions = [_region(tensor) for tensor in tensors if tensor.numel()]

    def end(self) -> None:
        """Look at what the last launch stored."""
        regions, self.regions = self.regions, []
        for region in regions if self.strict else ():
            counts = region.stored[region.owned[:: region.size]]
            missing, twice = int((counts == 0).sum()), int((counts > 1).sum())
            if missing == len(counts):
                continue  # an input
            assert not missing, f"{missing} of {len(counts)} elements were never stored"
            assert not twice, f"{twice} of {len(counts)} elements were stored more than once"

    def check(self, action: str, pointers: Any, mask: Any, size: int) -> None:
        """Raise for a pointer that is not masked and lies outside of every tensor."""
        pointers, mask = np.broadcast_arrays(pointers, mask)
        used = pointers[mask.astype(bool)].astype(np.int64)
        outside = np.ones(used.shape, dtype=bool)
        for region in self.regions:
            place = used - region.first
            near = (place >= 0) & (place + size <= len(region.owned))
            inside = near.copy()
            inside[near] = region.owned[place[near]]
            outside &= ~inside
            if action == "store":
                np.add.at(region.stored, place[inside] // size, 1)
        if outside.any():
            raise IndexError(
                f"{action}: {int(outside.sum())} of {used.size} pointers outside of every tensor"
            )


def _region(tensor: Tensor) -> Region:
    size = tensor.element_size()
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    flags = torch.zeros(extent, dtype=torch.bool)
    flags.as_strided(tensor.shape, tensor.stride()).fill_(True)
    owned = flags.numpy()
    return Region(tensor.data_ptr(), owned.repeat(size), np.zeros(extent, np.int32), size)


memory = Memory()


def install() -> None:
    """Guard every kernel that is launched from now on."""
    replace(builder, "binary_op", _binary)
    replace(builder, "unary_op", _unary)
    replace(builder, "create_dot", _dot)
    replace(builder, "cast_impl", _cast)
    replace(builder, "create_masked_load", _load)
    replace(builder, "create_masked_store", _store)
    replace(EXECUTOR, "_init_args_hst", _arguments)


@contextmanager
def written_once() -> Iterator[None]:
    """Raise unless each launch stores every element of its results exactly once."""
    memory.end()
    memory.strict = True
    try:
        yield
        memory.end()
    finally:
        memory.strict = False
        memory.regions = []


def replace(owner: Any, name: str, guard: Any) -> None:
    """Put a guard around a function, once."""
    original = getattr(owner, name)
    if getattr(original, "guarded", False):
        return

    def guarded(self: Any, *arguments: Any, **options: Any) -> Any:
        return guard(original, self, *arguments, **options)

    guarded.guarded = True  # pyright: ignore[reportFunctionMemberAccess]
    setattr(owner, name, guarded)


def decode(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16, held as integers, to float32."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def encode(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, to the nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    rounded = ((bits + half) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def is_bfloat16(x: Any) -> bool:
    return x.dtype.scalar == tl.bfloat16


def floats(x: Any) -> np.ndarray:
    return decode(x.data) if is_bfloat16(x) else x.data


def _binary(original: Any, self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    if not (is_bfloat16(lhs) or is_bfloat16(rhs)):
        return original(self, lhs, rhs, op)
    result = op(floats(lhs), floats(rhs))
    return handle(result if result.dtype == np.bool_ else encode(result), lhs.dtype.scalar)


def _unary(original: Any, self: Any, argument: Any, op: Any) -> Any:
    if not is_bfloat16(argument):
        return original(self, argument, op)
    return handle(encode(op(floats(argument))), argument.dtype.scalar)


def _dot(original: Any, self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
    left, right = (floats(x).astype(d.data.dtype) for x in (a, b))
    return handle(np.matmul(left, right) + d.data, d.dtype.scalar)


def _cast(original: Any, self: Any, src: Any, dst_type: Any) -> Any:
    source, target = src.dtype.scalar, dst_type.scalar
    if source == target or tl.bfloat16 not in (source, target):
        return original(self, src, dst_type)
    if source == tl.bfloat16:
        wide = handle(floats(src), tl.float32)
        return wide if target == tl.float32 else original(self, wide, dst_type)
    return handle(encode(src.data.astype(np.float32)), tl.bfloat16)


def _size(pointers: Any) -> int:
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def _load(original: Any, self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
    memory.check("load", pointers.data, mask.data, _size(pointers))
    return original(self, pointers, mask, *rest, **options)


def _store(original: Any, self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    memory.check("store", pointers.data, mask.data, _size(pointers))
    return original(self, pointers, value, mask, *rest)


def _arguments(original: Any, self: Any, arguments: Any, options: Any) -> Any:
    found = original(self, arguments, options)
    values = (*found[0], *found[1].values())
    bases = (getattr(value, "base", value) for value in values)
    memory.begin([base for base in bases if isinstance(base, Tensor)])
    return found
