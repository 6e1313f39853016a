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
        owned: for each element from there on, whether the tensor sees it.
        size: bytes of an element.
        stored: how often each element was stored in this launch; None: never.
    """

    first: int
    owned: np.ndarray
    size: int
    stored: np.ndarray | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> Region:
        """Describe a tensor; what it does not see takes no memory, however far apart rows are."""
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        owned = np.zeros(extent, dtype=bool)
        np.lib.stride_tricks.as_strided(owned, tensor.shape, tensor.stride())[...] = True
        return cls(tensor.data_ptr(), owned, tensor.element_size())

    def elements(self, addresses: np.ndarray) -> np.ndarray:
        """Return which element each address is, -1 where it is none that the tensor sees."""
        place, within = np.divmod(addresses - self.first, self.size)
        near = (place >= 0) & (place < len(self.owned)) & (within == 0)
        return np.where(near & self.owned[np.where(near, place, 0)], place, -1)

    def store(self, elements: np.ndarray) -> None:
        """Count what is stored."""
        if not len(elements):
            return
        if self.stored is None:
            self.stored = np.zeros(len(self.owned), np.int32)
        np.add.at(self.stored, elements, 1)


class Memory:
    """What the tensors of a launch own, and what was stored there."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.strict = False  # whether each tensor that is stored to must be stored once, all of it

    def begin(self, tensors: list[Tensor]) -> None:
        """Let a launch touch what some tensors see."""
        self.end()
        self.regions = [Region.of(tensor) for tensor in tensors if tensor.numel()]

    def end(self) -> None:
        """Look at what the last launch stored."""
        regions, self.regions = self.regions, []
        for region in regions if self.strict else ():
            if region.stored is None:
                continue  # an input
            counts = region.stored[region.owned]
            missing, twice = int((counts == 0).sum()), int((counts > 1).sum())
            assert not missing, f"{missing} of {len(counts)} elements were never stored"
            assert not twice, f"{twice} of {len(counts)} elements were stored more than once"

    def check(self, action: str, pointers: Any, mask: Any) -> None:
        """Raise for a pointer that is not masked and lies outside of every tensor."""
        pointers, mask = np.broadcast_arrays(pointers, mask)
        used = pointers[mask.astype(bool)].astype(np.int64)
        outside = np.ones(used.shape, dtype=bool)
        for region in self.regions:
            elements = region.elements(used)
            outside &= elements < 0
            if action == "store":
                region.store(elements[elements >= 0])
        if outside.any():
            raise IndexError(
                f"{action}: {int(outside.sum())} of {used.size} pointers outside of every tensor"
            )


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


def _load(original: Any, self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
    memory.check("load", pointers.data, mask.data)
    return original(self, pointers, mask, *rest, **options)


def _store(original: Any, self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    memory.check("store", pointers.data, mask.data)
    return original(self, pointers, value, mask, *rest)


def _arguments(original: Any, self: Any, arguments: Any, options: Any) -> Any:
    found = original(self, arguments, options)
    values = (*found[0], *found[1].values())
    bases = (getattr(value, "base", value) for value in values)
    memory.begin([base for base in bases if isinstance(base, Tensor)])
    return found
