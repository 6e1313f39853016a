"""One prompt, read by layers or by chunks, saved on the way if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sparsefill.engine import OnProgress, Prefilled
from sparsefill.engine.cache import chunk_cache, decode_cache
from sparsefill.engine.chunks import chunks_of, groups_of
from sparsefill.engine.lockstep import (
    AtAttention,
    AtLayer,
    Chunk,
    Finished,
    decoder_layers,
    returns_tuple,
    skipping,
    stops_before,
)
from sparsefill.engine.plan import Plan, check_files, check_way, plan_prefill
from sparsefill.engine.saved import Saved, settings_of
from sparsefill.engine.store import KVStore
from sparsefill.engine.whole import LayerAttention, SideBySide, least_chunk
from sparsefill.errors import InputError, UnsupportedError
from sparsefill.integrations.transformers import attention_layers, sparse_prefill
from sparsefill.integrations.transformers.rope import positions_of_the_whole
from sparsefill.integrations.transformers.run import Run
from sparsefill.kernels import BackendName
from sparsefill.patterns import BlockTopK, InfLLM, Interleaved, Pattern
from sparsefill.profile import Profile
from sparsefill.tile import TILE


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to read a prompt; the fields are the options of `prefill`."""

    kv: str
    order: str
    chunk: int | None
    max_memory: int | None
    logits_to_keep: int
    backend: BackendName
    min_length: int | None
    record: bool
    save_kv: Path | None
    resume: bool
    recall_samples: int

    def __post_init__(self) -> None:
        check_way(self.kv, self.order)
        for name in ("chunk", "max_memory", "logits_to_keep", "recall_samples"):
            if type(own := getattr(self, name)) not in (int, NoneType):
                raise InputError(f"{name} must be a whole number, got {own!r}")
        if self.recall_samples < 0 or (self.recall_samples and self.order == "chunks"):
            raise InputError(
                "recall_samples must be a number of row blocks from 0 on, with order='layers',"
                f" got {self.recall_samples} with order={self.order!r}"
            )
        if self.chunk is not None and self.chunk < TILE:
            raise InputError(
                f"chunk must be at least {TILE} tokens, got {self.chunk}; pass more, or leave it"
                " out to have it chosen"
            )
        if self.logits_to_keep < 1:
            raise InputError(
                f"logits_to_keep must be at least 1, got {self.logits_to_keep}; pass 1 or more"
            )
        if self.resume and self.save_kv is None:
            raise InputError("resume goes on from a folder, got none; pass save_kv")


def read(
    model: nn.Module,
    input_ids: Int[Tensor, "b n"],
    pattern: Profile | Pattern | None,
    request: Request,
    *,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: OnProgress | None = None,
) -> Prefilled:
    """Read a prompt; what `prefill` says."""
    layers = decoder_layers(model, attention_layers(model))
    _check(model, input_ids)
    b, tokens = input_ids.shape
    store = KVStore(request.kv, tokens, folder=request.save_kv)
    opened = sparse_prefill(
        model,
        pattern,
        backend=request.backend,
        min_length=request.min_length,
        record=request.record,
    )
    with ExitStack() as stack:
        saved = None
        if request.save_kv is not None:
            saved = Saved(request.save_kv, resume=request.resume)
            stack.callback(saved.close)
        run = stack.enter_context(opened)
        stack.enter_context(torch.inference_mode())
        every = [own for layer in run.profile.layers for own in layer]
        if request.order == "layers" and any(isinstance(own, InfLLM) for own in every):
            raise UnsupportedError(
                "InfLLM scores keys by all queries after them, got order='layers', which brings"
                " them in parts; use sparse_prefill, or order='chunks' for a choice per chunk"
            )
        cut = {
            "least": max(least_chunk(every), request.logits_to_keep),
            "step": math.lcm(*map(_step, every), TILE),
        }
        plan = plan_prefill(
            model,
            b,
            tokens,
            kv=request.kv,
            order=request.order,
            chunk=request.chunk or (saved.chunk if saved is not None else None),
            logits_to_keep=request.logits_to_keep,
            max_memory=request.max_memory,
            patterns=every,
            **cut,
        )
        check_files(model, plan, request.save_kv)
        if on_plan is not None:
            on_plan(plan)
        bounds = chunks_of(tokens, plan.chunk, **cut)
        if saved is not None:
            settings = settings_of(model, input_ids, run, bounds, kv=request.kv)
            saved.begin({**settings, "order": request.order, "chunk": plan.chunk})
        reader = _Reader(model, input_ids, store, layers, request.logits_to_keep, saved)
        with positions_of_the_whole(model, tokens):
            if request.order == "layers":
                logits = reader.side_by_side(
                    bounds, run, on_progress or _silent, recall_samples=request.recall_samples
                )
            else:
                logits = reader.one_by_one(bounds, on_progress or _silent)
    cache = None if request.kv == "drop" else decode_cache(store, len(layers))
    return Prefilled(logits=logits, cache=cache, run=run, plan=plan)


def _check(model: nn.Module, ids: Tensor) -> None:
    """Refuse a prompt, or a model, that could only fail later, or silently be read wrongly."""
    if ids.ndim != 2 or ids.numel() == 0:
        raise InputError(
            "the prompt must be token ids of shape (b, n) with at least one token,"
            f" got shape {tuple(ids.shape)}; pass one row for each prompt"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"token ids must be int64 or int32, got {ids.dtype}; cast them")
    own: Any = model
    known = own.get_input_embeddings().num_embeddings
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= known:
        raise InputError(
            f"token ids must be from 0 to {known - 1}, got {least} to {most}; is this the model's"
            " own tokenizer?"
        )
    if model.training:
        raise InputError(
            "the model must be in evaluation mode, got one in training mode (its caches and"
            " dropout differ); call model.eval()"
        )


def _step(pattern: Pattern) -> int:
    """Return how many queries a chunk holds a multiple of, for the cells of one piece."""
    if isinstance(pattern, Interleaved):
        return 2 * TILE  # row blocks of one parity
    return pattern.block if isinstance(pattern, BlockTopK) else TILE


def _silent(done: int, total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads one prompt with one model."""

    model: nn.Module
    ids: Int[Tensor, "b n"]
    store: KVStore
    layers: Sequence[nn.Module]
    logits_to_keep: int
    saved: Saved | None

    def read(self, first: int, last: int, *, keep: bool) -> Tensor:
        """Run the model on a chunk, those before it cached, and return its last logits."""
        device = next(self.model.parameters()).device
        call: Any = self.model
        positions = torch.arange(first, last, device=device)
        asked = self.logits_to_keep if last == self.ids.shape[1] else 1  # nobody wants the others
        return call(
            self.ids[:, first:last].to(device),
            position_ids=positions.expand(len(self.ids), -1),
            past_key_values=chunk_cache(self.store, len(self.layers), first, keep=keep),
            use_cache=True,
            logits_to_keep=min(asked, last - first),
        ).logits

    def one_by_one(self, bounds: Sequence[tuple[int, int]], on_progress: OnProgress) -> Tensor:
        """Read each chunk to its end before the next."""
        logits = None
        done = 0 if self.saved is None else self.saved.restore(self.store, bounds)
        for number, (first, last) in enumerate(bounds[done:], start=done + 1):
            logits = self.read(first, last, keep=True)
            if self.saved is not None and number < len(bounds):
                self.saved.note(number, self.store)
            on_progress(number, len(bounds))
        assert logits is not None
        return logits

    def side_by_side(
        self,
        bounds: Sequence[tuple[int, int]],
        run: Run,
        on_progress: OnProgress,
        *,
        recall_samples: int,
    ) -> Tensor:
        """Read all chunks layer by layer."""
        tokens, count = bounds[-1][1], len(self.layers)
        skipped = 0 if self.saved is None else self.saved.restore(self.store, bounds)
        total, done = 2 * count * len(bounds), 2 * skipped * len(bounds)
        with ExitStack() as stack:
            if skipped:
                tuples = returns_tuple(self.model, self.layers[0])
                stack.enter_context(skipping(self.layers[:skipped], returns_tuple=tuples))
            stack.enter_context(stops_before(self.layers, skipped=skipped))
            run.whole = SideBySide(tokens)
            chunks = [Chunk(a, b, lambda a=a, b=b: self.read(a, b, keep=False)) for a, b in bounds]
            for chunk in chunks:
                stack.callback(chunk.close)
                at = chunk.go_on()
                assert isinstance(at, AtLayer), at
            together = groups_of(bounds)
            last: Any = None
            for number in range(skipped, count):
                resumed = self.saved if 0 < number == skipped else None
                calls = []
                for chunk in chunks:
                    own = (
                        None
                        if resumed is None
                        else resumed.hidden(number, chunk.first, last=chunk.last)
                    )
                    at = chunk.go_on(own)
                    assert isinstance(at, AtAttention), at
                    calls.append(at.call)
                    done += 1
                    on_progress(done, total)
                attention = LayerAttention(calls[-1], recall_samples=recall_samples)
                for places in together:
                    outs = attention.of(calls[places])
                    calls[places] = [None] * len(outs)  # their queries are not needed any more
                    for chunk in chunks[places]:
                        last = chunk.go_on(outs.pop(0))
                        if self.saved is not None and isinstance(last, AtLayer):
                            hidden = last.hidden
                            self.saved.keep_hidden(last.layer, chunk.first, hidden, tokens=tokens)
                        done += 1
                        on_progress(done, total)
                attention.note()
                self.store.keep(number, 0, tokens)
                if self.saved is not None and number + 1 < count:
                    self.saved.note(number + 1, self.store)
        assert isinstance(last, Finished), last
        return last.logits
