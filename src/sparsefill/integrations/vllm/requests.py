"""What is known of a request over its chunks, told when its prompt has been read.

A backend is told neither who a request is nor how long its prompt is. So requests are known
again by the page that holds their latest key, and a prompt has been read once a later step
brings a token that is none of its own. What is told may thus be wrong where prompts share pages
while both are read, or where one is read again after it was interrupted; what they attend to
cannot, for nothing here decides it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Known = tuple[int, int]  # (page, keys) of a request's latest key

FORGOTTEN = 64  # steps without a request after which it ended with its prompt, or was given up


@dataclass(kw_only=True, eq=False)
class Request:
    """One prompt, as far as it has been read.

    Args:
        keys: how many have been read.
        chunks: in how many steps.
        sparse_keys: how many of them were read sparsely.
        measured: whether its recall is measured.
        kept: share of the causal cells kept, of each layer and chunk, weighed with `weights`.
        dense_cells: causal cells of all layers in the chunks that vLLM read.
        recall: attention mass kept, of each measured layer and chunk.
        started, until: when its first step began, and when it was last worked on, in seconds.
        seen: step in which it was seen last.
    """

    keys: int = 0
    chunks: int = 0
    sparse_keys: int = 0
    measured: bool = False
    kept: list[Tensor] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    dense_cells: int = 0
    recall: list[Tensor] = field(default_factory=list)
    started: float = field(default_factory=lambda: time.perf_counter())
    until: float = field(default_factory=lambda: time.perf_counter())
    seen: int = 0

    def note(self, density: Tensor, cells: int, recall: Tensor | None) -> None:
        """Keep what a layer found for a chunk.

        Args:
            density: of each head.
            cells: causal cells of the chunk.
            recall: of some queries of each head, if it was measured.
        """
        self.until = time.perf_counter()
        self.kept.append(density.double().mean())
        self.weights.append(cells)
        if recall is not None:
            self.recall.append(recall.double().mean())

    @property
    def seconds(self) -> float:
        """Return how long it took, other requests of its steps included."""
        return self.until - self.started

    @property
    def density(self) -> float | None:
        """Return the kept share of the causal cells; None if no chunk was read sparsely."""
        if not self.kept:
            return None
        weights = torch.tensor(self.weights, dtype=torch.float64)
        kept = float((torch.stack(self.kept).cpu() * weights).sum())
        return (kept + self.dense_cells) / (sum(self.weights) + self.dense_cells)

    @property
    def mean_recall(self) -> float | None:
        """Return the attention mass kept."""
        return float(torch.stack(self.recall).mean()) if self.recall else None


class Requests:
    """The prompts that are being read.

    Args:
        recall_every: of so many prompts that are read sparsely one is measured; 0 for none.
        on_read: told of each prompt that has been read.
    """

    def __init__(self, recall_every: int, on_read: Callable[[Request], None]) -> None:
        self.recall_every = recall_every
        self.on_read = on_read
        self._open: dict[Known, Request] = {}
        self._ahead: dict[Known, Request] = {}  # open from the next step on
        self._sparse = self._step = 0

    @property
    def is_reading(self) -> bool:
        """Tell whether any prompt may be half read."""
        return bool(self._open or self._ahead)

    def begin_step(self, continued: Iterable[Known]) -> None:
        """Tell of the prompts that have been read when this step begins.

        Args:
            continued: as what those requests were known that bring generated tokens.
        """
        self._step += 1
        for known, request in self._ahead.items():
            if known in self._open:  # one before it ended there, and its pages are read again
                self.on_read(self._open[known])
            self._open[known] = request
        self._ahead = {}
        for known in continued:
            if known in self._open:
                request = self._open.pop(known)
                request.until = time.perf_counter()
                self.on_read(request)
        gone = [k for k, own in self._open.items() if self._step - own.seen > FORGOTTEN]
        for known in gone:
            self.on_read(self._open.pop(known))

    def read(self, before: Known | None, after: Known, *, sparse: bool) -> Request:
        """Return the request of a chunk of a prompt.

        Args:
            before: as what it was known before the chunk; None at the start of a prompt.
            after: as what it will be known.
            sparse: whether we read the chunk.
        """
        request = self._open.pop(before, None) if before is not None else None
        request = request or Request(keys=before[1] if before is not None else 0)
        if sparse:
            if not request.sparse_keys and self.recall_every:
                self._sparse += 1
                request.measured = self._sparse % self.recall_every == 0
            request.sparse_keys += after[1] - request.keys
        request.keys, request.seen = after[1], self._step
        request.chunks += 1
        if after in self._ahead:  # the same prompt twice in a step, in the same pages
            self.on_read(self._ahead[after])
        self._ahead[after] = request
        return request
