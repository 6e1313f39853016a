"""Reading prompts of any length: within a memory budget, resumable, with the cache one wants.

lockstep.py  chunks of a prompt that the model reads side by side
whole.py     the attention of a layer to the whole prompt
store.py     keys and values: kept, quantised, on the host, on disk, or dropped
cache.py     what transformers sees of them
rope.py      rotary embeddings that depend on the length of the prompt
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsefill.engine.cache import chunk_cache, decode_cache
from sparsefill.engine.lockstep import (
    AtAttention,
    AtLayer,
    Chunk,
    Finished,
    decoder_layers,
    stops_before,
)
from sparsefill.engine.rope import positions_of_the_whole
from sparsefill.engine.store import KVStore
from sparsefill.engine.whole import LayerAttention, SideBySide, least_chunk
from sparsefill.errors import InputError
from sparsefill.integrations.transformers import attention_layers, sparse_prefill
from sparsefill.integrations.transformers.run import Run
from sparsefill.kernels import BackendName
from sparsefill.patterns import BlockTopK, Pattern
from sparsefill.profile import Profile
from sparsefill.tile import TILE

ORDERS = ("layers", "chunks")
CHUNK = 8192  # tokens of a chunk, unless memory asks for fewer

OnProgress = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefilled:
    """A prompt that was read.

    Args:
        logits: of its last positions.
        cache: to decode from, with transformers' `past_key_values`; None if it was dropped.
        run: what the layers did.
    """

    logits: Float[Tensor, "b positions vocabulary"]
    cache: Any
    run: Run


def prefill(
    model: nn.Module,
    input_ids: Int[Tensor, "b n"],
    pattern: Profile | Pattern | None = None,
    *,
    kv: str = "keep",
    order: str = "layers",
    chunk: int = CHUNK,
    logits_to_keep: int = 1,
    backend: BackendName = "auto",
    min_length: int | None = None,
    record: bool = True,
    on_progress: OnProgress | None = None,
    folder: Path | None = None,
) -> Prefilled:
    """Read a prompt in chunks, so that only attention ever sees all of it.

    Args:
        input_ids: prompts of one length, without padding.
        pattern: a profile, or one pattern for all heads; the default profile of the
            model's architecture when None.
        kv: what becomes of keys and values: "keep" on the device, "int8", "host", "disk", or
            "drop" (time to first token only).
        order: "layers": all chunks pass a layer before the next one, and every estimate is
            that of the whole prompt; "chunks": a chunk passes all layers before the next one,
            and estimates are each chunk's own, over all keys so far. Takes less memory.
        chunk: tokens that pass the rest of the model at once.
        logits_to_keep: how many last positions to return logits of.
        on_progress: called after each step with the steps done and in all.

    Raises:
        InputError: an argument is out of range.
        UnsupportedError: the model has layers of other kinds.
    """
    if order not in ORDERS:
        raise InputError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if order == "chunks" and kv == "drop":
        raise InputError("order='chunks' reads keys again, got kv='drop'; pass another kv")
    if input_ids.shape[1] == 0:
        raise InputError("the prompt must have at least one token, got an empty prompt")
    if chunk < TILE:
        raise InputError(f"chunk must be at least {TILE} tokens, got {chunk}")
    tokens = input_ids.shape[1]
    store = KVStore(kv, tokens, folder=folder)
    layers = decoder_layers(model, attention_layers(model))
    opened = sparse_prefill(model, pattern, backend=backend, min_length=min_length, record=record)
    with torch.inference_mode(), opened as run, positions_of_the_whole(model, tokens):
        every = [own for layer in run.profile.layers for own in layer]
        bounds = chunks_of(
            tokens,
            chunk,
            least=max(least_chunk(every), logits_to_keep),
            step=math.lcm(*(p.block for p in every if isinstance(p, BlockTopK)), TILE),
        )
        reader = _Reader(model, input_ids, store, layers, logits_to_keep)
        if order == "layers":
            logits = reader.side_by_side(bounds, run, on_progress or _silent)
        else:
            logits = reader.one_by_one(bounds, on_progress or _silent)
    cache = None if kv == "drop" else decode_cache(store, len(layers))
    return Prefilled(logits=logits, cache=cache, run=run)


def _silent(done: int, total: int) -> None:
    """Show no progress."""


def chunks_of(tokens: int, chunk: int, *, least: int, step: int) -> list[tuple[int, int]]:
    """Cut a prompt into chunks.

    Args:
        least: tokens that the last chunk needs; it takes those of the one before if it must.
        step: all chunks but the last are multiples of it.

    Example:
        >>> chunks_of(1000, 256, least=64, step=64)
        [(0, 256), (256, 512), (512, 768), (768, 1000)]
        >>> chunks_of(1000, 320, least=64, step=64)
        [(0, 320), (320, 640), (640, 1000)]
    """
    size = max(step, chunk // step * step)
    firsts = list(range(0, tokens, size))
    while len(firsts) > 1 and tokens - firsts[-1] < least:
        firsts.pop()
    return list(zip(firsts, [*firsts[1:], tokens], strict=True))


class _Reader:
    """Reads one prompt with one model."""

    def __init__(self, model, input_ids, store, layers, logits_to_keep) -> None:
        self.model, self.ids, self.store = model, input_ids, store
        self.layers, self.logits_to_keep = layers, logits_to_keep

    def read(self, first: int, last: int, *, keep: bool) -> Tensor:
        """Run the model on a chunk, those before it cached, and return its logits."""
        device = next(self.model.parameters()).device
        call: Any = self.model
        positions = torch.arange(first, last, device=device)
        return call(
            self.ids[:, first:last].to(device),
            position_ids=positions.expand(len(self.ids), -1),
            past_key_values=chunk_cache(self.store, len(self.layers), first, keep=keep),
            use_cache=True,
            logits_to_keep=min(self.logits_to_keep, last - first),
        ).logits

    def one_by_one(self, bounds: Sequence[tuple[int, int]], on_progress: OnProgress) -> Tensor:
        """Read each chunk to its end before the next."""
        logits = None
        for done, (first, last) in enumerate(bounds, start=1):
            logits = self.read(first, last, keep=True)
            on_progress(done, len(bounds))
        assert logits is not None
        return logits

    def side_by_side(
        self, bounds: Sequence[tuple[int, int]], run: Run, on_progress: OnProgress
    ) -> Tensor:
        """Read all chunks layer by layer."""
        run.whole = SideBySide(bounds[-1][1])
        total, done = 2 * len(self.layers) * len(bounds), 0
        with ExitStack() as stack:
            stack.enter_context(stops_before(self.layers))
            chunks = [Chunk(a, b, lambda a=a, b=b: self.read(a, b, keep=False)) for a, b in bounds]
            for chunk in chunks:
                stack.callback(chunk.close)
                at = chunk.go_on()
                assert isinstance(at, AtLayer), at
            last: Any = None
            for number in range(len(self.layers)):
                calls = []
                for chunk in chunks:
                    at = chunk.go_on()
                    assert isinstance(at, AtAttention), at
                    calls.append(at.call)
                    done += 1
                    on_progress(done, total)
                attention = LayerAttention(calls[-1])
                for place, chunk in enumerate(chunks):
                    call, calls[place] = calls[place], None
                    last = chunk.go_on(attention.of(call))
                    del call
                    done += 1
                    on_progress(done, total)
                attention.note()
                self.store.keep(number, 0, bounds[-1][1])
        assert isinstance(last, Finished), last
        return last.logits
