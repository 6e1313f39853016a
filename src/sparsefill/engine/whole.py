"""The attention of a layer to a whole prompt, one chunk of queries after another.

The cells are those that the whole prompt in one piece would get. There are three kinds of heads:

lines          columns and diagonals: estimated once, from the last queries of the prompt, and
               cut to each chunk
interleaved    split by parity, chunk by chunk: nothing is estimated
by row block   estimated for the chunks at hand, whose row blocks are their own: block top-k; and
               tri-shapes, which are A-shapes but for the last queries
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sparsefill._checks import check_finite, check_qkv
from sparsefill.attention import attend_cells, attend_rows_densely
from sparsefill.engine.lockstep import AtAttention, stop
from sparsefill.estimate import Cells, estimate_parts, merge_cells
from sparsefill.estimate.merge import Part
from sparsefill.integrations.transformers.hook import Call, attend_densely
from sparsefill.integrations.transformers.run import LayerCall, layer_of
from sparsefill.metrics import recall
from sparsefill.patterns import AShape, BlockTopK, Interleaved, Pattern, TriShape
from sparsefill.static import cut_to
from sparsefill.tile import TILE, causal_count, sample_row_blocks


class SideBySide:
    """Tells the hook that each call brings a chunk of a prompt, which waits for the others."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def attend(self, call: Call) -> Float[Tensor, "b n h d"]:
        """Wait until the layer can attend, and return its output."""
        return stop(AtAttention(call=call))


class LayerAttention:
    """One layer's attention.

    Args:
        last: the call of the last chunk, whose keys are those of the whole prompt.
        recall_samples: row blocks, spread evenly over the prompt, whose recall is measured.
    """

    def __init__(self, last: Call, *, recall_samples: int = 0) -> None:
        check_qkv(last.q, last.k, last.v)
        self.last = last
        self.estimate_s = self.attend_s = self.recall_s = 0.0
        self._samples = sample_row_blocks(last.k.shape[2], recall_samples)
        self._recall: list[Float[Tensor, "b h rows"]] = []
        self._causal = 0.0
        self._kept: Float[Tensor, "b h"] | None = None
        self._clock = last.run.clock(last.q.device)
        started = self._clock()
        patterns: dict[int, Pattern] = dict(enumerate(last.path.patterns))
        self._interleaved = {
            head: own for head, own in patterns.items() if isinstance(own, Interleaved)
        }
        self._others = {head: own for head, own in patterns.items() if _by_row_block(own)}
        apart = self._interleaved.keys() | self._others.keys()
        lines = {head: own for head, own in patterns.items() if head not in apart}
        self._lines = self._estimate(lines, last)
        self.estimate_s += self._clock() - started

    def _estimate(self, patterns: Mapping[int, Pattern], call: Call) -> list[Part]:
        if not patterns:
            return []
        return estimate_parts(
            patterns,
            call.q,
            call.k,
            scale=call.scale,
            softcap=call.softcap,
            backend=call.run.backend,
            **call.lengths(),
        )

    def of(self, calls: Sequence[Call]) -> list[Float[Tensor, "b n h d"]]:
        """Attend with the queries of some chunks that follow one another, all at once."""
        call = calls[-1]
        if len(calls) > 1:
            call = replace(call, q=torch.cat([own.q for own in calls], dim=2))
        out = self._of(call, is_last=calls[-1] is self.last)
        return list(out.split([own.q.shape[2] for own in calls], dim=1))

    def _of(self, call: Call, *, is_last: bool) -> Float[Tensor, "b n h d"]:
        lengths = call.lengths()
        n, m = call.q.shape[2], call.k.shape[2]
        own = slice(m - n, m)
        check_finite(
            call.q,
            call.k[:, :, own],
            call.v[:, :, own],
            lengths["query_lengths"],
            lengths["query_lengths"],
        )
        started = self._clock()
        if call.path.name != "sparse":
            out = attend_densely(call)
            self.attend_s += self._clock() - started
            return out
        cells = self._cells_of(call, is_last=is_last)
        estimated = self._clock()
        attended = attend_cells(
            call.q,
            call.k,
            call.v,
            cells,
            scale=call.scale,
            softcap=call.softcap,
            backend=call.run.backend,
        )
        done = self._clock()
        self.estimate_s += estimated - started
        self.attend_s += done - estimated
        if self._samples:
            self._measure_recall(call, attended.lse)
            self.recall_s += self._clock() - done
        if call.run.record:
            causal = causal_count(n, m)
            kept = cells.density() * causal
            self._kept = kept if self._kept is None else self._kept + kept
            self._causal += causal
        return call.back(attended.out)

    def _measure_recall(self, call: Call, lse: Float[Tensor, "b h n"]) -> None:
        """Compare with dense attention in those row blocks of a call that are samples."""
        n, m = call.q.shape[2], call.k.shape[2]
        for first in (TILE * row_block - (m - n) for row_block in self._samples):
            if not 0 <= first < n:
                continue
            rows = slice(first, min(first + TILE, n))
            dense = attend_rows_densely(
                call.q,
                call.k,
                call.v,
                rows,
                scale=call.scale,
                softcap=call.softcap,
                backend=call.run.backend,
            )
            self._recall.append(recall(lse[:, :, rows], dense.lse))

    def _cells_of(self, call: Call, *, is_last: bool) -> Cells:
        sizes = {"n": call.q.shape[2], "m": call.k.shape[2], **call.lengths()}
        parts = [(heads, cut_to(index, **sizes)) for heads, index in self._lines]
        others = self._others
        if not is_last:
            others = {head: _before_the_last(own) for head, own in others.items()}
        parts += self._estimate(others, call)
        return merge_cells(parts, self._interleaved, call.q.shape[1], **sizes)

    def note(self) -> None:
        """Tell the run what the layer did."""
        run = self.last.run
        run.note(
            LayerCall(
                layer=layer_of(self.last.module),
                path="sparse" if self.last.path.name == "sparse" else "dense",
                n=self.last.k.shape[2],
                m=self.last.k.shape[2],
                backend=self.last.path.backend,
                estimate_s=self.estimate_s,
                attention_s=self.attend_s,
                density=None if self._kept is None else self._kept / self._causal,
                recall=torch.cat(self._recall, dim=-1) if self._recall else None,
                recall_s=self.recall_s,
            )
        )


def _by_row_block(pattern: Pattern) -> bool:
    return isinstance(pattern, (BlockTopK, TriShape))


def _before_the_last(pattern: Pattern) -> Pattern:
    """Return what a pattern is in the chunks before the last one."""
    if isinstance(pattern, TriShape):
        return AShape(sink=pattern.sink, window=pattern.window)
    return pattern


def least_chunk(patterns: Sequence[Pattern]) -> int:
    """Count the queries that the last chunk must hold for the cells to be those of one piece."""
    probes = [getattr(pattern, "probe", 1) for pattern in patterns]
    lasts = [pattern.last for pattern in patterns if isinstance(pattern, TriShape)]
    return max([*probes, *lasts, 1])
