"""The attention of a layer to a whole prompt, one chunk of queries after another.

The cells are those that the whole prompt in one piece would get. There are two kinds of heads:

lines          columns and diagonals: estimated once, from the last queries of the prompt, and
               cut to each chunk
by row block   estimated for each chunk, whose row blocks are its own: block top-k; and
               tri-shapes, which are A-shapes in all chunks but the last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from sparsefill._checks import check_finite
from sparsefill.density import density
from sparsefill.engine.lockstep import AtAttention, stop
from sparsefill.estimate import estimate_parts, merge_heads
from sparsefill.estimate.merge import Part
from sparsefill.index import SparseIndex
from sparsefill.integrations.transformers.hook import Call, attend_densely
from sparsefill.integrations.transformers.run import LayerCall, layer_of
from sparsefill.kernels import attend_unchecked
from sparsefill.patterns import AShape, BlockTopK, Pattern, TriShape
from sparsefill.static import cut_to


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
    """

    def __init__(self, last: Call) -> None:
        self.last = last
        self.estimate_s = self.attend_s = 0.0
        self._cells = 0.0
        self._kept: Float[Tensor, "b h"] | None = None
        self._clock = last.run.clock(last.q.device)
        started = self._clock()
        patterns: dict[int, Pattern] = dict(enumerate(last.path.patterns))
        lines = {head: own for head, own in patterns.items() if not _by_row_block(own)}
        self._lines = self._estimate(lines, last)
        self._others = {head: own for head, own in patterns.items() if _by_row_block(own)}
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

    def of(self, call: Call) -> Float[Tensor, "b n h d"]:
        """Attend with the queries of a chunk."""
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
        index = self._index(call)
        estimated = self._clock()
        out = attend_unchecked(
            call.q,
            call.k,
            call.v,
            index,
            scale=call.scale,
            softcap=call.softcap,
            backend=call.run.backend,
        ).out
        self.estimate_s += estimated - started
        self.attend_s += self._clock() - estimated
        if call.run.record:
            cells = n * (m - n) + n * (n + 1) / 2
            kept = density(index) * cells
            self._kept = kept if self._kept is None else self._kept + kept
            self._cells += cells
        return call.back(out)

    def _index(self, call: Call) -> SparseIndex:
        sizes = {"n": call.q.shape[2], "m": call.k.shape[2], **call.lengths()}
        parts = [(heads, cut_to(index, **sizes)) for heads, index in self._lines]
        others = self._others
        if call is not self.last:
            others = {head: _before_the_last(own) for head, own in others.items()}
        parts += self._estimate(others, call)
        return merge_heads(parts, call.q.shape[1])

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
                density=None if self._kept is None else self._kept / self._cells,
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
