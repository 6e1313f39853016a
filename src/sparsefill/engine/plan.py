"""The memory that a prefill takes, part by part, before any work.

What is counted stands at the peak of a layer: by layers, when all chunks wait for attention;
by chunks, when one chunk is in the middle of a layer.
"""

from __future__ import annotations

import platform
import resource
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsefill.engine.chunks import ATTENDING, chunks_of
from sparsefill.engine.store import POLICIES, ROOM
from sparsefill.errors import InputError
from sparsefill.integrations.transformers.run import architecture_of
from sparsefill.patterns import BlockTopK, Interleaved, Pattern
from sparsefill.tile import TILE

ORDERS = ("layers", "chunks")
CHUNKS = tuple(2**power for power in range(13, 8, -1))  # tokens that a plan chooses from
MEMORY, LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
PROCESS = 400 << 20  # bytes of Python, torch and transformers, where no more is known
MAPPED = 32 << 20  # bytes from which glibc gives freed memory back at once
SLACK = MAPPED  # bytes freed that it keeps at the end of its heap (up to twice as many)
HOLES = 0.5  # of what waits: holes between it, measured at 65,536 and 262,144 tokens
ESTIMATE = 128 << 20  # bytes of weights that an estimate keeps at most
SCRATCH = 32 << 20  # bytes of scores and gathered tiles of a backend

NAMES = {  # of the parts, for people
    "weights": "weights",
    "embeddings": "token embeddings",
    "residual": "residual stream",
    "waiting": "inputs and queries of chunks that wait",
    "rotary": "rotary tables and positions",
    "work": "work buffer of keys and values",
    "kept": "kept keys and values",
    "transient": "one chunk in MLP or attention",
    "logits": "logits",
    "index": "estimate and index",
    "freed": "freed, but held by the allocator",
    "process": "the process itself",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The bytes that a prefill is expected to take on the model's device, at its peak.

    Args:
        b, tokens: size of the prompt.
        kv, order, chunk: how it is read.
        every: keys and values of all layers, in the model's dtype, wherever they go.
        weights: parameters and buffers of the model.
        embeddings: of tokens, which each chunk holds to its end.
        residual: what goes into the next layer.
        waiting: normed inputs and queries of chunks that wait for attention.
        rotary: sines and cosines of all positions.
        work: keys and values of the layer at hand.
        kept: keys and values of all layers, as the policy keeps them.
        transient: what one chunk needs on its way through a layer, beyond `index`.
        logits: of the last positions.
        index: what an estimate needs, and the cells that it found.
        freed: what the allocator of the host keeps of smaller tensors that are gone.
        process: everything else of the process; nothing on an accelerator.
    """

    b: int
    tokens: int
    kv: str
    order: str
    chunk: int
    every: int
    weights: int
    embeddings: int
    residual: int
    waiting: int
    rotary: int
    work: int
    kept: int
    transient: int
    logits: int
    index: int
    freed: int
    process: int

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part, by the name of its field."""
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name in NAMES
        }

    @property
    def peak(self) -> int:
        """Bytes of all parts together."""
        return sum(self.parts.values())

    def rows(self) -> list[tuple[str, int]]:
        """List the parts in words, with their bytes, and the peak last."""
        return [*((NAMES[name], size) for name, size in self.parts.items()), ("peak", self.peak)]


def plan_prefill(
    model: nn.Module,
    b: int,
    tokens: int,
    *,
    kv: str = "keep",
    order: str = "layers",
    chunk: int | None = None,
    logits_to_keep: int = 1,
    max_memory: int | None = None,
    patterns: Sequence[Pattern] = (),
    least: int = 1,
    step: int = TILE,
) -> Plan:
    """Expect the memory of a prefill, and choose its chunk.

    Args:
        b: prompts.
        tokens: of each prompt.
        kv, order: as `prefill` has them.
        chunk: tokens that pass the model at once; when None, the largest power of two from
            512 to 8192 that fits; on a CPU none whose tensors in the MLP pass 32 MiB, which
            the allocator would not use again.
        logits_to_keep: how many last positions have logits.
        max_memory: bytes that the peak may not exceed; what is free now when None.
        patterns: of the heads, whose indices count.
        least, step: as of `chunks_of`.

    Raises:
        InputError: an argument is out of range, or nothing fits `max_memory`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(hidden_size=64, num_hidden_layers=2))
        >>> plan_prefill(model, 1, 100_000, chunk=512).rows()[-1][0]
        'peak'
    """
    check_way(kv, order)
    if max_memory is not None and max_memory < 1:
        raise InputError(
            f"max_memory must be a number of bytes above 0, got {max_memory}; pass None for no"
            " limit"
        )
    sizes = _Sizes.of(model, b, tokens, logits_to_keep, patterns, least=least, step=step)
    fast = [own for own in CHUNKS if own <= sizes.fastest]
    plans = [sizes.plan(kv, order, own) for own in (fast if chunk is None else [chunk])]
    limit = max_memory or memory_at_hand(next(model.parameters()).device)
    fitting = [plan for plan in plans if limit is None or plan.peak <= limit]
    if fitting:
        return fitting[0]
    assert limit is not None
    got = f"max_memory={_gib(limit)}" if max_memory else f"{_gib(limit)} of free memory"
    raise InputError(_nothing_fits(sizes, plans[-1], limit, got))


def check_way(kv: str, order: str) -> None:
    """Refuse a way of reading that there is not.

    Raises:
        InputError: an unknown policy or order, or two that contradict each other.
    """
    if kv not in POLICIES:
        raise InputError(f"kv must be one of {', '.join(POLICIES)}, got {kv!r}")
    if order not in ORDERS:
        raise InputError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if order == "chunks" and kv == "drop":
        raise InputError(
            "order='chunks' needs the keys and values of earlier chunks, got kv='drop';"
            " pass another kv, or order='layers'"
        )


def _nothing_fits(sizes: _Sizes, least: Plan, limit: int, got: str) -> str:
    """Say how much is missing, and which other way of reading would fit."""
    others = [
        sizes.plan(kv, order, CHUNKS[-1])
        for order in ORDERS
        for kv in POLICIES
        if not (order == "chunks" and kv == "drop")
    ]
    fitting = [f"kv={p.kv!r} with order={p.order!r}" for p in others if p.peak <= limit]
    smallest = min(others, key=lambda plan: plan.peak)
    remedy = (
        f"these fit in chunks of {CHUNKS[-1]}: {', '.join(fitting)}"
        if fitting
        else f"the least is {_gib(smallest.peak)} with kv={smallest.kv!r} and"
        f" order={smallest.order!r}; pass fewer tokens or more memory"
    )
    return (
        f"{least.tokens} tokens need {_gib(least.peak)} with kv={least.kv!r},"
        f" order={least.order!r} and chunks of {least.chunk}, got {got};"
        f" {remedy}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """What the parts follow from: bytes of one token, and of what no token changes."""

    b: int
    tokens: int
    least: int
    step: int
    layers: int
    on_host: bool  # the model's device is the host
    hidden: int  # bytes of a token in the residual stream
    queries: int
    kv: int  # keys and values of a layer
    kv_int8: int
    rotary: int
    fused: int  # queries, keys and values where the model projects them together and holds on
    mlp: int
    norm: int
    logits: int
    weights: int
    index: int
    merging: int  # outputs of parts and their sums, where heads are interleaved
    process: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        b: int,
        tokens: int,
        logits_to_keep: int,
        patterns: Sequence[Pattern],
        *,
        least: int,
        step: int,
    ) -> _Sizes:
        """Measure a model."""
        config: Any = model.config
        config = config.get_text_config()
        shape, parameter = architecture_of(config), next(model.parameters())
        item, d = parameter.dtype.itemsize, shape.head_dim
        # a parameter that two modules share is listed once
        own = [*model.parameters(), *model.buffers()]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in own)
        on_host = parameter.device.type == "cpu"
        together = (shape.heads + 2 * shape.kv_heads) * d  # the width of a fused projection
        any_model: Any = model
        head = any_model.get_output_embeddings()
        fused = any(
            own is not head and isinstance(own, nn.Linear) and own.out_features == together
            for own in model.modules()
        )
        kinds = len(set(getattr(config, "layer_types", None) or [0]))
        wide = 4  # bytes: norms are computed in float32
        return cls(
            b=b,
            tokens=tokens,
            least=least,
            step=step,
            layers=shape.layers,
            on_host=on_host,
            hidden=config.hidden_size * item,
            queries=shape.heads * d * item,
            kv=2 * shape.kv_heads * d * item,
            kv_int8=2 * shape.kv_heads * (d + 4),  # 4: a float32 scale
            rotary=2 * d * item * (kinds if kinds > 1 else 1) + 8,  # 8: the position
            fused=together * item if fused else 0,
            mlp=3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size) * item,
            norm=config.hidden_size * (item + 2 * wide),
            logits=b * logits_to_keep * config.vocab_size * item,
            weights=weights,
            index=_index_bytes(b, tokens, shape.heads, patterns, shape.layers, item),
            # of half of the queries: three outputs, and three products of them in float32
            merging=shape.heads * d * 3 * (item + wide) // 2
            if any(isinstance(own, Interleaved) for own in patterns)
            else 0,
            process=_process_bytes(weights) if on_host else 0,
        )

    @property
    def fastest(self) -> int:
        """Count the tokens of the largest chunk whose memory an allocator uses again.

        A CPU's does so where tensors in the MLP are small: in chunks of 32,768 it spends half
        of its time on new pages, in chunks of 2,048 a tenth (SmolLM2-135M, 32,768 tokens).
        """
        if not self.on_host:
            return CHUNKS[0]
        return max(CHUNKS[-1], MAPPED // (self.b * self.mlp))

    def plan(self, kv: str, order: str, chunk: int) -> Plan:
        """Add up what a way of reading takes."""
        bounds = chunks_of(self.tokens, chunk, least=self.least, step=self.step)
        longest = max(last - first for first, last in bounds)
        widest = self.b * longest
        every = self.b * self.tokens
        held = every if order == "layers" else widest  # tokens in chunks that have begun
        room = self.b * (self.tokens + ROOM)
        kept = {
            "keep": room * self.kv,
            "int8": every * self.kv_int8,
            "host": every * self.kv if self.on_host else 0,
            "disk": 0,
            "drop": 0,
        }[kv]
        projection = self.hidden + self.queries + self.kv + 2 * self.queries + self.fused
        elsewhere = widest * max(self.mlp + 2 * self.hidden, self.norm, projection)
        # the output stands there twice, as it is made and as it goes on; queries of chunks that
        # attend together are copied
        together = (
            self.b * min(max(longest, ATTENDING), self.tokens) if order == "layers" else widest
        )
        attending = self.index + together * 2 * self.queries + (SCRATCH if self.on_host else 0)
        attending += together * self.queries if together > widest else 0
        attending += together * self.merging
        waiting = held * (self.hidden + self.queries + self.fused)
        freed = 0
        if self.on_host and widest * self.hidden < MAPPED:
            freed = SLACK + int(HOLES * waiting)
        return Plan(
            b=self.b,
            tokens=self.tokens,
            kv=kv,
            order=order,
            chunk=chunk,
            every=every * self.kv * self.layers,
            weights=self.weights,
            embeddings=held * self.hidden,
            residual=held * self.hidden,
            waiting=waiting,
            rotary=held * self.rotary,
            work=0 if kv == "keep" else room * self.kv,
            kept=kept * self.layers,
            transient=max(attending, elsewhere) - self.index,
            logits=self.logits,
            index=self.index,
            freed=freed,
            process=self.process,
        )


def _index_bytes(
    b: int, tokens: int, h: int, patterns: Sequence[Pattern], layers: int, item: int
) -> int:
    """Count what estimates need for one layer, and the lists of cells that they make."""
    lines = [p for p in patterns if hasattr(p, "verticals")]
    blocks = [p for p in patterns if isinstance(p, BlockTopK)]
    found = 0
    if lines:
        sums = 2 * b * h * tokens * 4  # float32, of each column and each diagonal
        found += sums + min(ESTIMATE, b * h * TILE * tokens * item)
    if blocks:
        tiles = sum(min(p.blocks * p.block, tokens) // TILE for p in blocks) // layers
        found += 3 * b * tiles * (tokens // TILE) * 4  # int32: as estimated, merged, checked
    return found


def check_files(model: nn.Module, plan: Plan, folder: Path | None) -> None:
    """Refuse what the disk or the host has no room for, before any work.

    Raises:
        InputError: there is too little.
    """
    if plan.kv == "host" and next(model.parameters()).device.type != "cpu":
        free = memory_at_hand(torch.device("cpu"))
        if free is not None and plan.every > free:
            raise InputError(
                f"kv='host' needs {_gib(plan.every)} of host memory, got {_gib(free)} free; pass"
                " kv='int8', or kv='disk' with save_kv"
            )
    if folder is not None:
        free = shutil.disk_usage(folder).free
        needed = 2 * plan.residual + (0 if plan.kv == "drop" else plan.every)
        if needed > free:
            raise InputError(
                f"save_kv needs {_gib(needed)} in {folder}, got {_gib(free)} free; pass a folder"
                " on another disk, fewer tokens, or kv='drop'"
            )


def memory_at_hand(device: torch.device) -> int | None:
    """Return the bytes that this process may hold on a device; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "cpu" and MEMORY.is_file():
        kibibytes = (line.split() for line in MEMORY.read_text("ascii").splitlines())
        free = next((int(own[1]) for own in kibibytes if own[0] == "MemAvailable:"), None)
        whole = free and free * 1024 + _resident_bytes()
        allowed = LIMIT.read_text("ascii").strip() if LIMIT.is_file() else "max"
        return whole if whole is None or allowed == "max" else min(whole, int(allowed))
    return None


def _process_bytes(weights: int) -> int:
    """Measure what the process holds beside the weights."""
    return max(PROCESS, _resident_bytes() - weights)


def _resident_bytes() -> int:
    """Return the memory that the process holds now."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text("ascii").split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # bytes there, KiB elsewhere
