"""Keys and values of a prompt: kept, quantised, in host memory, on disk, or dropped.

One work buffer on the model's device holds the layer at hand; what is kept of the others has
the form that the policy names. Layouts are (b, g, tokens, d) throughout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsefill.errors import InputError

POLICIES = ("keep", "int8", "host", "disk", "drop")
ROOM = 256  # places after the prompt that decoding may fill before a buffer grows


@dataclass(kw_only=True, eq=False)
class Buffer:
    """Keys and values side by side, with room for more."""

    k: Float[Tensor, "b g room d"]
    v: Float[Tensor, "b g room dv"]

    @classmethod
    def like(cls, k: Tensor, v: Tensor, room: int) -> Buffer:
        """Make a buffer for tensors of these heads."""
        shapes = [(*t.shape[:2], room, t.shape[3]) for t in (k, v)]
        return cls(k=_empty(shapes[0], like=k), v=_empty(shapes[1], like=v))

    def write(self, first: int, k: Tensor, v: Tensor) -> None:
        """Put tokens in their places."""
        self.k[:, :, first : first + k.shape[2]] = k
        self.v[:, :, first : first + v.shape[2]] = v

    def upto(self, last: int) -> tuple[Tensor, Tensor]:
        """Return views of the first tokens."""
        return self.k[:, :, :last], self.v[:, :, :last]


def _empty(shape: tuple[int, ...], *, like: Tensor, **changed: Any) -> Tensor:
    """Allocate what may later be written outside of inference mode too: by a decoder."""
    with torch.inference_mode(False):
        return torch.empty(shape, **{"dtype": like.dtype, "device": like.device, **changed})


class Kept(ABC):
    """What is kept of one layer."""

    @abstractmethod
    def put(self, first: int, k: Tensor, v: Tensor) -> None:
        """Keep some tokens."""

    @abstractmethod
    def get(self, last: int, into: Buffer) -> None:
        """Bring the first tokens back."""


class InMemory(Kept):
    """Keep them as they are, on the host or on the model's device."""

    def __init__(self, like: Buffer, tokens: int, device: torch.device) -> None:
        pin = device.type == "cpu" and like.k.device.type == "cuda"

        def make(tensor: Tensor) -> Tensor:
            shape = (*tensor.shape[:2], tokens, tensor.shape[3])
            return _empty(shape, like=tensor, device=device, pin_memory=pin)

        self._buffer = Buffer(k=make(like.k), v=make(like.v))

    def put(self, first: int, k: Tensor, v: Tensor) -> None:
        self._buffer.write(first, k, v)

    def get(self, last: int, into: Buffer) -> None:
        into.write(0, *self._buffer.upto(last))


class Quantised(Kept):
    """Keep 8 bits of each value, and one scale for each token and head."""

    def __init__(self, like: Buffer, tokens: int) -> None:
        self._parts = [
            (
                _empty((*t.shape[:2], tokens, t.shape[3]), like=t, dtype=torch.int8),
                _empty((*t.shape[:2], tokens, 1), like=t, dtype=torch.float32),
            )
            for t in (like.k, like.v)
        ]

    def put(self, first: int, k: Tensor, v: Tensor) -> None:
        for (values, scales), tensor in zip(self._parts, (k, v), strict=True):
            place = slice(first, first + tensor.shape[2])
            scale = tensor.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / 127
            scales[:, :, place] = scale
            values[:, :, place] = (tensor / scale).round_()

    def get(self, last: int, into: Buffer) -> None:
        for (values, scales), out in zip(self._parts, (into.k, into.v), strict=True):
            for first in range(0, last, STEP):
                place = slice(first, min(first + STEP, last))
                out[:, :, place] = values[:, :, place] * scales[:, :, place]


STEP = 8192  # tokens that are converted at once


class OnDisk(Kept):
    """Keep them in two files, token by token of each sequence and head."""

    def __init__(self, like: Buffer, tokens: int, folder: Path, layer: int) -> None:
        self._files = []
        for name, tensor in (("k", like.k), ("v", like.v)):
            shape = (*tensor.shape[:2], tokens, tensor.shape[3])
            path = folder / f"layer-{layer}.{name}"
            bytes_ = int(np.prod(shape)) * tensor.element_size()
            if not path.is_file() or path.stat().st_size != bytes_:
                with path.open("wb") as file:
                    file.truncate(bytes_)
            self._files.append((path, shape, tensor.dtype))

    def _maps(self) -> list[Tensor]:
        return [
            torch.from_file(str(path), shared=True, size=int(np.prod(shape)), dtype=dtype).view(
                shape
            )
            for path, shape, dtype in self._files
        ]

    def put(self, first: int, k: Tensor, v: Tensor) -> None:
        for mapped, tensor in zip(self._maps(), (k, v), strict=True):
            mapped[:, :, first : first + tensor.shape[2]] = tensor

    def get(self, last: int, into: Buffer) -> None:
        for mapped, out in zip(self._maps(), (into.k, into.v), strict=True):
            out[:, :, :last] = mapped[:, :, :last]


class Dropped(Kept):
    """Keep nothing."""

    def put(self, first: int, k: Tensor, v: Tensor) -> None:
        pass

    def get(self, last: int, into: Buffer) -> None:
        raise InputError("keys and values were dropped; pass kv='keep' to decode")


class KVStore:
    """Keys and values of all layers of a model.

    Args:
        policy: one of `POLICIES`.
        tokens: of the prompt.
        folder: of the files of "disk".
    """

    def __init__(self, policy: str, tokens: int, *, folder: Path | None = None) -> None:
        if policy not in POLICIES:
            raise InputError(f"kv must be one of {', '.join(POLICIES)}, got {policy!r}")
        if policy == "disk":
            if folder is None:
                raise InputError("kv='disk' needs a folder for its files; pass save_kv")
            folder.mkdir(parents=True, exist_ok=True)
        self.policy, self.tokens, self.folder = policy, tokens, folder
        self._own: dict[int, Buffer] = {}  # of each layer, where everything stays on the device
        self._kept: dict[int, Kept] = {}
        self._work: Buffer | None = None
        self._held: tuple[int, int] = (-1, 0)  # which layer the work buffer holds, tokens of it

    def _buffer(self, layer: int, k: Tensor, v: Tensor) -> Buffer:
        if self.policy == "keep":
            if layer not in self._own:
                self._own[layer] = Buffer.like(k, v, self.tokens + ROOM)
            return self._own[layer]
        fits = self._work is not None and all(
            a.shape[:2] == b.shape[:2] and a.shape[3] == b.shape[3]
            for a, b in ((self._work.k, k), (self._work.v, v))
        )
        if not fits:
            self._work = Buffer.like(k, v, self.tokens + ROOM)
        assert self._work is not None
        return self._work

    def put(self, layer: int, first: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add tokens of a layer, and return all that are there, views of a work buffer."""
        buffer, last = self._buffer(layer, k, v), first + k.shape[2]
        if self.policy != "keep" and self._held != (layer, first):
            if first:
                self._kept[layer].get(first, buffer)
        buffer.write(first, k, v)
        self._held = (layer, last)
        return buffer.upto(last)

    def keep(self, layer: int, first: int, last: int) -> None:
        """Keep tokens of the layer at hand, as the policy says."""
        if self.policy == "keep":
            return
        assert self._work is not None
        if layer not in self._kept:
            self._kept[layer] = self._new(layer, self._work)
        k, v = self._work.upto(last)
        self._kept[layer].put(first, k[:, :, first:], v[:, :, first:])

    def _new(self, layer: int, like: Buffer) -> Kept:
        if self.policy == "int8":
            return Quantised(like, self.tokens)
        if self.policy == "host":
            return InMemory(like, self.tokens, torch.device("cpu"))
        if self.policy == "disk":
            assert self.folder is not None
            return OnDisk(like, self.tokens, self.folder, layer)
        return Dropped()

    def buffer(self, layer: int) -> Buffer:
        """Bring all tokens of a layer back into a buffer with room for more."""
        if self.policy == "keep":
            return self._own[layer]
        assert self._work is not None
        self._kept[layer].get(self.tokens, self._work)
        self._held = (-1, 0)
        return self._work

    def grow(self, layer: int, room: int) -> Buffer:
        """Make the buffer of a layer longer, and bring its tokens back into it."""
        before = self.buffer(layer)
        longer = Buffer.like(before.k, before.v, room)
        longer.write(0, *before.upto(self.tokens))
        if self.policy == "keep":
            self._own[layer] = longer
        else:
            self._work = longer
        return longer
