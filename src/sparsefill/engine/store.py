"""Keys and values of a prompt: kept, quantised, in host memory, on disk, or dropped.

One work buffer on the model's device holds the layer at hand; what is kept of the others has
the form that the policy names. Layouts are (b, g, tokens, d) throughout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsefill.engine.files import TokenFile
from sparsefill.errors import InputError

POLICIES = ("keep", "int8", "host", "disk", "drop")
ROOM = 256  # places after the prompt that decoding may fill before a buffer grows
STEP = 8192  # tokens that are converted at once
LEAST_SCALE = 1e-12  # a token of zeros has no scale of its own


@dataclass(kw_only=True, eq=False)
class Buffer:
    """Keys and values side by side, with room for more."""

    k: Float[Tensor, "b g room d"]
    v: Float[Tensor, "b g room dv"]

    @classmethod
    def like(cls, k: Tensor, v: Tensor, room: int) -> Buffer:
        """Make a buffer for tensors of these heads, of one dtype, as caches do."""
        dtype = torch.promote_types(k.dtype, v.dtype)
        shapes = [(*t.shape[:2], room, t.shape[3]) for t in (k, v)]
        return cls(
            k=_empty(shapes[0], like=k, dtype=dtype), v=_empty(shapes[1], like=v, dtype=dtype)
        )

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
        """Copy tokens to where they are kept."""
        self._buffer.write(first, k, v)

    def get(self, last: int, into: Buffer) -> None:
        """Copy the first tokens back."""
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
        """Round tokens to 8 bits."""
        for (values, scales), tensor in zip(self._parts, (k, v), strict=True):
            for start in range(0, tensor.shape[2], STEP):
                part = tensor[:, :, start : start + STEP]
                place = slice(first + start, first + start + part.shape[2])
                scale = part.abs().amax(-1, keepdim=True).float().clamp(min=LEAST_SCALE) / 127
                scales[:, :, place] = scale
                values[:, :, place] = (part / scale).round_()

    def get(self, last: int, into: Buffer) -> None:
        """Multiply the first tokens by their scales."""
        for (values, scales), out in zip(self._parts, (into.k, into.v), strict=True):
            for first in range(0, last, STEP):
                place = slice(first, min(first + STEP, last))
                out[:, :, place] = values[:, :, place] * scales[:, :, place]


class OnDisk(Kept):
    """Keep them in two files."""

    def __init__(
        self, like: Buffer, tokens: int, folder: Path, layer: int, *, existing: bool = False
    ) -> None:
        self._files = [
            TokenFile(
                folder / f"layer-{layer}.{name}",
                rows=tensor.shape[0] * tensor.shape[1],
                tokens=tokens,
                width=tensor.shape[3],
                dtype=tensor.dtype,
                existing=existing,
            )
            for name, tensor in (("k", like.k), ("v", like.v))
        ]

    def put(self, first: int, k: Tensor, v: Tensor) -> None:
        """Write tokens to the files."""
        for file, tensor in zip(self._files, (k, v), strict=True):
            file.write(first, tensor)

    def get(self, last: int, into: Buffer) -> None:
        """Read the first tokens."""
        for file, out in zip(self._files, (into.k, into.v), strict=True):
            file.read(0, out[:, :, :last])

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        for file in self._files:
            file.sync()


class Dropped(Kept):
    """Keep nothing."""

    def put(self, first: int, k: Tensor, v: Tensor) -> None:
        """Forget tokens."""

    def get(self, last: int, into: Buffer) -> None:
        """Refuse: nothing was kept."""
        raise InputError("keys and values were dropped; pass kv='keep' to decode")


class KVStore:
    """Keys and values of all layers of a model.

    Args:
        policy: one of `POLICIES`.
        tokens: of the prompt.
        folder: of the files of "disk"; other policies save a copy there, to resume from.
    """

    def __init__(self, policy: str, tokens: int, *, folder: Path | None = None) -> None:
        if policy == "disk" and folder is None:
            raise InputError("kv='disk' needs a folder for its files, got none; pass save_kv")
        self.policy, self.tokens, self.folder = policy, tokens, folder
        self._own: dict[int, Buffer] = {}  # of each layer, where everything stays on the device
        self._kept: dict[int, Kept] = {}
        self._saved: dict[int, OnDisk] = {}
        self._work: Buffer | None = None
        self._unsynced: set[int] = set()
        self.heads: list[dict[str, list[int]]] = []  # of each layer: sequences, heads, width
        self._held: tuple[int, int] = (-1, 0)  # which layer the work buffer holds, tokens of it

    def _buffer(self, layer: int, k: Tensor, v: Tensor) -> Buffer:
        """Find the buffer of a layer, or make one for heads like these."""
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
        if self.policy != "keep" and first and self._held != (layer, first):
            self._kept[layer].get(first, buffer)
        buffer.write(first, k, v)
        self._held = (layer, last)
        return buffer.upto(last)

    def keep(self, layer: int, first: int, last: int) -> None:
        """Keep tokens of the layer at hand, as the policy says, and save them."""
        buffer = self._own[layer] if self.policy == "keep" else self._work
        assert buffer is not None
        self._note_heads(layer, buffer)
        self._unsynced.add(layer)
        k, v = (t[:, :, first:] for t in buffer.upto(last))
        if self.policy != "keep":
            if layer not in self._kept:
                self._kept[layer] = self._new(layer, buffer)
            self._kept[layer].put(first, k, v)
        if self.folder is not None and self.policy not in ("disk", "drop"):
            if layer not in self._saved:
                self._saved[layer] = OnDisk(buffer, self.tokens, self.folder, layer)
            self._saved[layer].put(first, k, v)
        if self.policy == "int8":  # what is read again must not depend on what is at hand
            self._held = (-1, 0)

    def restore(self, layer: int, last: int, like: Buffer) -> None:
        """Take up the first tokens of a layer that an earlier run saved.

        Args:
            like: buffers of the layer's heads, of any length.
        """
        self._note_heads(layer, like)
        if self.policy == "drop" or self.folder is None:
            return
        saved = OnDisk(like, self.tokens, self.folder, layer, existing=True)
        if self.policy == "disk":
            self._buffer(layer, like.k, like.v)
            self._kept[layer] = saved
            return
        self._saved[layer] = saved
        buffer = self._buffer(layer, like.k, like.v)
        saved.get(last, buffer)
        if self.policy != "keep":
            self._kept[layer] = self._new(layer, buffer)
            self._kept[layer].put(0, *buffer.upto(last))

    def sync(self) -> None:
        """Wait until what was written since the last time is on the disk."""
        for layer in self._unsynced:
            saved = self._saved.get(layer, self._kept.get(layer))
            if isinstance(saved, OnDisk):
                saved.sync()
        self._unsynced.clear()

    def _note_heads(self, layer: int, buffer: Buffer) -> None:
        """Remember sequences, heads and widths of a layer; layers come in order."""
        if layer == len(self.heads):
            shapes = {"k": buffer.k.shape, "v": buffer.v.shape}
            self.heads.append({name: [*own[:2], own[3]] for name, own in shapes.items()})

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
