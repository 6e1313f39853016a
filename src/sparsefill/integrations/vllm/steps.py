"""Which requests of a step we read, and whose they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsefill.integrations.vllm.heads import RankHeads
from sparsefill.integrations.vllm.plan import Chunk, chunks_of, foreign_fields
from sparsefill.integrations.vllm.requests import Known, Requests
from sparsefill.tile import TILE, causal_count

log = logging.getLogger("vllm.sparsefill")  # below vLLM's, which has handlers


@dataclass(kw_only=True, eq=False)
class Steps:
    """Plans the steps of one group of layers that share pages.

    Args:
        layers: numbers of those that can be read sparsely.
        page: keys of a page.
        widest_decode: most queries of a request whose prompt has been read: one, and what is
            guessed ahead.
        requests: prompts that are being read; None on ranks that do not count.
        warned: whether the log tells that some steps are left to vLLM.
    """

    heads: RankHeads
    layers: Sequence[int]
    page: int
    widest_decode: int = 1
    requests: Requests | None = None
    warned: bool = False

    def choose(self, common: Any) -> list[Chunk]:
        """Choose the requests of a step that we read.

        Args:
            common: vLLM's `CommonAttentionMetadata`.
        """
        counts, reading = self.requests is not None, self.requests and self.requests.is_reading
        least = self.widest_decode + 1 if counts else TILE
        if common.max_query_len < least and not reading:
            return []
        if common.causal is not True or self._is_foreign(common):
            return []
        starts = common.query_start_loc_cpu.tolist()
        chunks = chunks_of(starts[: common.num_reqs + 1], _lengths(common))
        chunks = [chunk for chunk in chunks if chunk.queries]  # without rows of padding
        prompts, decodes = self._told_apart(common, chunks)
        chosen = [c for c in prompts if self.heads.pays(self.layers, c.queries, c.keys)]
        if self.requests is None:
            return chosen
        return self._follow(self.requests, common, prompts, decodes, {c.row for c in chosen})

    def _is_foreign(self, common: Any) -> bool:
        """Tell whether a step carries what we do not know, once in the log."""
        found = foreign_fields(common)
        if found and not self.warned:
            log.warning("sparsefill: steps with %s are left to vLLM", ", ".join(found))
            self.warned = True
        return bool(found)

    def _told_apart(self, common: Any, chunks: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
        """Tell chunks of prompts from requests that go on with tokens of their own."""
        prefilling = getattr(common, "is_prefilling", None)
        parts: tuple[list[Chunk], list[Chunk]] = [], []
        for chunk in chunks:
            if prefilling is None:
                prompt = chunk.queries > self.widest_decode
            else:
                prompt = bool(prefilling[chunk.row])
            parts[not prompt].append(chunk)
        return parts

    def _follow(
        self,
        requests: Requests,
        common: Any,
        prompts: Sequence[Chunk],
        decodes: Sequence[Chunk],
        chosen: set[int],
    ) -> list[Chunk]:
        """Find the request of each chunk of a prompt, and tell of those that are read."""
        asked = [(c.row, c.context) for c in (*decodes, *prompts)]
        asked += [(c.row, c.keys) for c in prompts]
        known = self._known(common.block_table_tensor, asked)
        going_on, known = known[: len(decodes)], known[len(decodes) :]
        requests.begin_step(filter(None, going_on))
        found = []
        for chunk, before, after in zip(
            prompts, known[: len(prompts)], known[len(prompts) :], strict=True
        ):
            assert after is not None  # it has a query, so it has a key
            request = requests.read(before, after, sparse=chunk.row in chosen)
            if chunk.row in chosen:
                found.append(replace(chunk, request=request))
            else:
                cells = causal_count(chunk.queries, chunk.keys)
                request.dense_cells += cells * len(self.layers)
        return found

    def _known(self, table: Any, asked: Sequence[tuple[int, int]]) -> list[Known | None]:
        """Tell by what the requests in these (row, keys) are known; None without any key."""
        rows = [row for row, _ in asked]
        places = [max(keys - 1, 0) // self.page for _, keys in asked]
        pages = table[rows, places].tolist()  # at once: the table may lie on a device
        return [
            (page, keys) if keys else None for page, (_, keys) in zip(pages, asked, strict=True)
        ]


def _lengths(common: Any) -> list[int]:
    """Return the keys of each request, without waiting for a device where that is possible."""
    lengths = getattr(common, "seq_lens_cpu_upper_bound", None)
    lengths = common.seq_lens if lengths is None else lengths
    return lengths[: common.num_reqs].tolist()
