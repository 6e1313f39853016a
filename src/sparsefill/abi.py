"""The C interface of the compiled kernels, as ctypes: structures and calls.

Mirrors `csrc/sparsefill.h`. Everything that is compiled is called through here; whoever
passes a tensor keeps it alive until the call returns.
"""

from __future__ import annotations

import ctypes
import functools
import re
from ctypes import c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from sparsefill.errors import InputError, ShapeError, UnsupportedError
from sparsefill.native import library, missing_reason

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ISAS = ("amx", "avx512bf16", "avx512", "avx2", "baseline")  # that csrc/ can be compiled for
HEAD_DIMS = range(8, 257, 8)
MESSAGE_BYTES = 256


class TensorView(ctypes.Structure):
    """A tensor (b, heads, length, d); strides in elements, the last one 1."""

    _fields_ = [
        ("data", c_void_p),
        ("sequence", c_int64),
        ("head", c_int64),
        ("row", c_int64),
    ]


class Layer(ctypes.Structure):
    """Sizes, types and maths that a layer's stages share."""

    _fields_ = [
        ("isa", c_char_p),
        ("type", c_int32),
        ("threads", c_int32),
        ("b", c_int32),
        ("h", c_int32),
        ("g", c_int32),
        ("d", c_int32),
        ("n", c_int64),
        ("m", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("query_lengths", c_void_p),
        ("key_lengths", c_void_p),
    ]


class Index(ctypes.Structure):
    """A `SparseIndex`."""

    _fields_ = [
        ("x", c_int32),
        ("slash_capacity", c_int64),
        ("column_capacity", c_int64),
        ("tile_count", c_int64),
        ("slash_counts", c_void_p),
        ("slash_tiles", c_void_p),
        ("column_counts", c_void_p),
        ("column_indices", c_void_p),
        ("row_ptr", c_void_p),
        ("tile_starts", c_void_p),
    ]


class Lines(ctypes.Structure):
    """What a vertical-slash estimate keeps of one query head."""

    _fields_ = [
        ("head", c_int32),
        ("probe", c_int32),
        ("verticals", c_int32),
        ("slashes", c_int32),
        ("sink", c_int32),
        ("window", c_int32),
    ]


class Blocks(ctypes.Structure):
    """What a block top-k estimate keeps of one query head."""

    _fields_ = [
        ("head", c_int32),
        ("blocks", c_int32),
        ("sink", c_int32),
        ("window", c_int32),
    ]


def refusal(q: Float[Tensor, "b h n d"], isa: str | None = None) -> str | None:
    """Say why the compiled kernels cannot serve `q`, or None if they can."""
    if q.device.type != "cpu":
        return f"needs tensors on the CPU, got {q.device}"
    if q.dtype not in TYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in TYPES)
        return f"needs one of {allowed}, got {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"needs a head_dim that is a multiple of 8 up to 256, got {q.shape[-1]}"
    if (reason := missing_reason()) is not None:
        return f"cannot run: {reason}"
    if isa is not None and not instruction_sets().get(isa, False):
        return f"needs a CPU with {isa}, and a compiler that knows it when installing"
    return None


@functools.cache
def instruction_sets() -> dict[str, bool]:
    """List the compiled instruction sets, fastest first, and whether this CPU has them."""
    lib = library()
    if lib is None:
        return {}
    lib.sparsefill_isa.restype = c_char_p
    found: dict[str, bool] = {}
    available = ctypes.c_int()
    while (name := lib.sparsefill_isa(len(found), ctypes.byref(available))) is not None:
        found[name.decode()] = bool(available.value)
    return found


def view(tensor: Float[Tensor, "b heads length d"]) -> TensorView:
    """Describe a tensor whose last axis is contiguous."""
    assert tensor.stride(-1) == 1
    sequence, head, row, _ = tensor.stride()
    return TensorView(tensor.data_ptr(), sequence, head, row)


def readable(tensor: Float[Tensor, "b heads length d"]) -> Float[Tensor, "b heads length d"]:
    """Return the tensor itself, or a copy if memory does not hold it as it reads."""
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def layer(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float,
    softcap: float | None,
    query_lengths: Int32[Tensor, " b"],
    key_lengths: Int32[Tensor, " b"],
    isa: str | None = None,
) -> Layer:
    """Describe a layer; the lengths must be contiguous and outlive it.

    Raises:
        ShapeError: the tensors do not fit each other.
    """
    _check_layer(q, k, query_lengths, key_lengths)
    b, h, n, d = q.shape
    return Layer(
        isa=None if isa is None else isa.encode(),
        type=TYPES[q.dtype],
        threads=torch.get_num_threads(),
        b=b,
        h=h,
        g=k.shape[1],
        d=d,
        n=n,
        m=k.shape[2],
        scale=scale,
        softcap=softcap or 0.0,
        query_lengths=pointer(query_lengths),
        key_lengths=pointer(key_lengths),
    )


def _check_layer(q: Tensor, k: Tensor, query_lengths: Tensor, key_lengths: Tensor) -> None:
    """Raise unless memory can be read as the description of a layer says."""
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ShapeError(
            f"q and k must have shapes (b, h, n, d) and (b, g, m, d), got {tuple(q.shape)} and"
            f" {tuple(k.shape)}; pass queries and keys of the same sequences"
        )
    if q.dtype != k.dtype or q.device != k.device:
        raise ShapeError(
            f"q and k must share dtype and device, got {q.dtype} on {q.device} and {k.dtype} on"
            f" {k.device}; cast or move one"
        )
    for name, lengths in (("query_lengths", query_lengths), ("key_lengths", key_lengths)):
        if lengths.shape != q.shape[:1] or lengths.dtype != torch.int32:
            raise ShapeError(
                f"{name} must be {q.shape[0]} integers, one per sequence, got shape"
                f" {tuple(lengths.shape)} of {lengths.dtype}; pass one length per sequence"
            )


def index(
    *,
    slash_counts: Int32[Tensor, "b x"],
    slash_tiles: Int32[Tensor, "b x s"],
    column_counts: Int32[Tensor, "b x"],
    column_indices: Int32[Tensor, "b x c"],
    row_ptr: Int32[Tensor, "b x i_plus_1"] | None,
    tile_starts: Int32[Tensor, " t"] | None,
) -> Index:
    """Describe the lists of a `SparseIndex`, which must be contiguous and outlive it."""
    return Index(
        x=slash_counts.shape[1],
        slash_capacity=slash_tiles.shape[-1],
        column_capacity=column_indices.shape[-1],
        tile_count=0 if tile_starts is None else len(tile_starts),
        slash_counts=pointer(slash_counts),
        slash_tiles=pointer(slash_tiles),
        column_counts=pointer(column_counts),
        column_indices=pointer(column_indices),
        row_ptr=pointer(row_ptr),
        tile_starts=pointer(tile_starts),
    )


def find_not_finite(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    query_lengths: Int32[Tensor, " b"],
    key_lengths: Int32[Tensor, " b"],
) -> list[str]:
    """Name the inputs that hold NaN or infinity inside the sequences' lengths."""
    q, k, v = (readable(t) for t in (q, k, v))
    queries, keys = query_lengths.contiguous(), key_lengths.contiguous()
    of = layer(q, k, scale=1.0, softcap=None, query_lengths=queries, key_lengths=keys)
    broken = (c_int32 * 1)()
    call("sparsefill_find_not_finite", of, view(q), view(k), view(v), broken)
    return [name for bit, name in enumerate("qkv") if broken[0] >> bit & 1]


def pointer(tensor: Tensor | None) -> int | None:
    """Return the address of a contiguous tensor in the CPU's memory."""
    if tensor is None:
        return None
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ShapeError(f"expected a contiguous tensor on the CPU, got one on {tensor.device}")
    return tensor.data_ptr()


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library, and raise what it refuses.

    Raises:
        InputError: the library refused the call; the message says why.
        MemoryError: it ran out of memory.
    """
    lib = library()
    if lib is None:
        raise UnsupportedError(f"the compiled kernels cannot run: {missing_reason()}")
    shared_threads()
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    passed = [_passed(argument) for argument in arguments]
    status = getattr(lib, name)(*passed, message)
    if status == 2:
        raise MemoryError(f"{name}: {message.value.decode()}")
    if status:
        raise InputError(message.value.decode())


@functools.cache
def shared_threads() -> str | None:
    """Let the kernels run on the threads that torch's own operations run on.

    Torch's OpenMP threads spin for milliseconds after each operation; threads of our own
    would compete with them for the cores.

    Returns:
        The OpenMP runtime whose threads are shared, or None: the kernels start their own.
    """
    lib, maps = library(), Path("/proc/self/maps")
    if lib is None or not maps.is_file():
        return None
    loaded = {line.split(maxsplit=5)[-1] for line in maps.read_text("utf-8").splitlines()}
    runtimes = [p for p in sorted(loaded) if re.match(r"lib(g|i)omp\d*\b", Path(p).name)]
    home = str(Path(torch.__file__).parent)
    runtimes.sort(key=lambda path: not path.startswith(home))  # torch's own before others
    for path in runtimes:
        runtime = ctypes.CDLL(path)  # loaded already
        if hasattr(runtime, "GOMP_parallel"):
            lib.sparsefill_share_threads(ctypes.cast(runtime.GOMP_parallel, c_void_p))
            return path
    return None


def _passed(argument: Any) -> Any:
    """Convert an argument: tensors and structures by address, numbers as 64-bit integers."""
    if isinstance(argument, Tensor):
        return c_void_p(pointer(argument))
    if isinstance(argument, (ctypes.Structure, ctypes.Array)):
        return ctypes.byref(argument)
    return c_void_p(None) if argument is None else c_int64(argument)
