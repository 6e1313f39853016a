"""Numbers and memory as a kernel sees them: typed like on a GPU, strict where it is silent.

Integers are 32-bit and raise where they overflow, division truncates, bfloat16 is rounded,
and every pointer that is used must lie on an element that a tensor sees.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class FaultError(AssertionError):
    """Something that a GPU would do wrong silently, or hang on."""


class DType:
    """A type of elements; float types of 16 bits are kept as float32, rounded."""

    def __init__(self, name: str, kept: Any, torch_dtype: torch.dtype) -> None:
        self.name, self.kept, self.torch_dtype = name, kept, torch_dtype
        self.primitive_bitwidth = torch_dtype.itemsize * 8

    def round(self, values: np.ndarray) -> np.ndarray:
        if self.kept is np.float32 and self.primitive_bitwidth == 16:
            tensor = torch.from_numpy(np.array(values, np.float32))
            return tensor.to(self.torch_dtype).float().numpy()
        return np.asarray(values).astype(self.kept)


DTYPES = {
    "int1": DType("int1", np.bool_, torch.bool),
    "int32": DType("int32", np.int32, torch.int32),
    "int64": DType("int64", np.int64, torch.int64),
    "float32": DType("float32", np.float32, torch.float32),
    "float16": DType("float16", np.float32, torch.float16),
    "bfloat16": DType("bfloat16", np.float32, torch.bfloat16),
}
OF_TORCH = {dtype.torch_dtype: dtype for dtype in DTYPES.values()}
OF_KEPT = {DTYPES[name].kept: DTYPES[name] for name in ("int1", "int32", "int64", "float32")}


class Value:
    """A scalar or a block of numbers."""

    def __init__(self, data: Any, dtype: DType | None = None) -> None:
        self.data = np.asarray(data)
        if isinstance(data, (int, float)) or self.data.dtype.kind == "f":
            self.data = self.data.astype(narrow(self.data))
        self.dtype = OF_KEPT[self.data.dtype.type] if dtype is None else dtype

    def to(self, dtype: DType) -> Value:
        return Value(dtype.round(self.data), dtype)

    def __getitem__(self, key: Any) -> Value:
        return Value(self.data[key], self.dtype)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __index__(self) -> int:
        return int(self.data)

    def __invert__(self) -> Value:
        return Value(~self.data)


def narrow(data: np.ndarray) -> Any:
    """Choose the type of a number of Python's: 32 bits where they suffice."""
    if data.dtype.kind != "i":
        return np.bool_ if data.dtype.kind == "b" else np.float32
    fits = np.all(np.abs(data) < 2**31)
    return np.int32 if fits else np.int64


def array(x: Any) -> np.ndarray:
    """Return what a kernel may compute with; results that are still in flight are not."""
    if isinstance(x, Value):
        return x.data
    if isinstance(x, (bool, int, float, np.generic, np.ndarray)):
        return Value(x).data
    raise FaultError(f"used as a number: {x}")


def truncating(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.dtype.kind == "f":
        raise FaultError("whole division of floats")
    return np.sign(left) * np.sign(right) * (np.abs(left) // np.abs(right))


def remainder(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left - right * truncating(left, right)


def binary(name: str, compute: Callable[..., Any], *, swapped: bool = False) -> None:
    """Give values an operator that works as on a GPU."""

    def apply(self: Value, other: Any) -> Any:
        if isinstance(other, Pointer):
            return NotImplemented
        left, right = self.data, array(other)
        if not isinstance(other, Value) and left.dtype.kind == "f":
            right = right.astype(np.float32)  # Python numbers take the block's type
        if swapped:
            left, right = right, left
        with np.errstate(all="ignore"):
            result = np.asarray(compute(left, right))
        if result.dtype == np.int32 and result.size:
            exact = compute(left.astype(np.int64), right.astype(np.int64))
            if not np.array_equal(exact, result):
                raise FaultError(f"32-bit overflow in {name}: {np.abs(exact).max()}")
        if result.dtype.type is np.float64:
            result = result.astype(np.float32)
        return Value(result)

    setattr(Value, name, apply)


OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": truncating,
    "mod": remainder,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "rshift": operator.rshift,
    "lshift": operator.lshift,
}
for _name, _compute in OPERATORS.items():
    binary(f"__{_name}__", _compute)
    binary(f"__r{_name}__", _compute, swapped=True)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    binary(f"__{_name}__", getattr(operator, _name))


class Region:
    """The memory of one tensor: which elements it sees, and how often each was stored."""

    def __init__(self, tensor: Tensor) -> None:
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((size - 1) * step for size, step in sizes) if tensor.numel() else 0
        self.memory = torch.as_strided(tensor, (extent,), (1,))
        self.dtype = OF_TORCH[tensor.dtype]
        owned = torch.zeros(extent, dtype=torch.bool)
        if extent:
            owned.as_strided(tensor.shape, tensor.stride()).fill_(True)
        self.owned = owned.numpy()
        self.stored = np.zeros(extent, np.int32)
        wide = self.memory.float() if self.dtype.kept is np.float32 else self.memory
        self.values = wide.numpy()

    def places(self, action: str, offset: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the places in use, or raise if one is outside."""
        used = offset[mask]
        inside = (used >= 0) & (used < len(self.owned))
        if not inside.all() or not self.owned[used].all():
            raise FaultError(f"{action} outside of its tensor")
        return used

    def load(self, offset: np.ndarray, mask: np.ndarray, other: Any) -> np.ndarray:
        result = np.full(offset.shape, other, self.values.dtype)
        result[mask] = self.values[self.places("load", offset, mask)]
        return result

    def store(self, offset: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        places = self.places("store", offset, mask)
        self.memory[torch.from_numpy(places)] = torch.from_numpy(values[mask]).to(self.memory.dtype)
        np.add.at(self.stored, places, 1)

    def check_stored(self) -> None:
        """Raise unless every element was stored once, or none was (an input)."""
        counts = self.stored[self.owned]
        if counts.any() and (counts != 1).any():
            missing, twice = int((counts == 0).sum()), int((counts > 1).sum())
            raise FaultError(
                f"of {len(counts)} elements {missing} never stored, {twice} repeatedly"
            )


class Pointer:
    """Places in a region, in elements."""

    def __init__(self, region: Region, offset: Any = 0) -> None:
        self.region, self.offset = region, np.asarray(offset, np.int64)

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.region, self.offset + array(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Pointer:
        return Pointer(self.region, self.offset - array(other))

    def load(self, mask: Any = True, other: Any = 0) -> Value:
        used = np.broadcast_to(array(mask), self.offset.shape)
        return Value(self.region.load(self.offset, used, other), self.region.dtype)

    def store(self, value: Any, mask: Any = True) -> None:
        used = np.broadcast_to(array(mask), self.offset.shape)
        values = np.broadcast_to(array(value), self.offset.shape)
        if isinstance(value, Value) and value.dtype is not self.region.dtype:
            raise FaultError(f"{value.dtype.name} stored as {self.region.dtype.name}")
        self.region.store(self.offset, values, used)


class Tiles:
    """What a tensor descriptor lets the copy engine read: boxes, zeros outside of the tensor."""

    def __init__(self, descriptor: Any, region: Region) -> None:
        self.shape, self.strides = list(descriptor.shape), list(descriptor.strides)
        self.block, self.layout = list(descriptor.block_shape), descriptor.layout
        self.region, self.dtype = region, region.dtype
        if min(self.strides) <= 0:
            raise FaultError(f"strides that cannot be described: {self.strides}")

    def load(self, place: list[int]) -> np.ndarray:
        """Read the box that begins at a place."""
        offset = np.zeros(self.block, np.int64)
        inside = np.ones(self.block, bool)
        for axis, first in enumerate(place):
            index = first + np.arange(self.block[axis])
            view = [1] * len(self.block)
            view[axis] = -1
            offset = offset + (index * self.strides[axis]).reshape(view)
            inside &= ((index >= 0) & (index < self.shape[axis])).reshape(view)
        return self.region.load(offset, inside, 0)


def elementwise(compute: Callable[..., Any]) -> Callable[..., Value]:
    """Make an operation of a kernel from one on arrays."""

    def apply(*arguments: Any) -> Value:
        with np.errstate(all="ignore"):  # as silent as a GPU about infinities
            result = np.asarray(compute(*(array(x) for x in arguments)))
        return Value(result.astype(np.float32) if result.dtype.kind == "f" else result)

    return apply


OPERATIONS: dict[str, Any] = DTYPES | {
    "arange": lambda first, last, layout: Value(np.arange(first, last, dtype=np.int32)),
    "full": lambda shape, value, dtype, layout: Value(np.full(shape, value, dtype.kept), dtype),
    "zeros": lambda shape, dtype, layout: Value(np.zeros(shape, dtype.kept), dtype),
    "full_like": lambda like, value: Value(np.full_like(like.data, value), like.dtype),
    "convert_layout": lambda value, layout: Value(array(value), value.dtype),
    "load": lambda pointer, mask=True, other=0: pointer.load(mask, other),
    "store": lambda pointer, value, mask=True: pointer.store(value, mask),
    "max": lambda x, axis: elementwise(lambda a: a.max(axis))(x),
    "sum": lambda x, axis: elementwise(lambda a: a.sum(axis))(x),
    "where": elementwise(np.where),
    "maximum": elementwise(np.maximum),
    "minimum": elementwise(np.minimum),
    "exp2": elementwise(np.exp2),
    "log2": elementwise(np.log2),
    "static_range": range,
}
