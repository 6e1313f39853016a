"""What both platforms share: plan a step, and attend to the requests that are read sparsely.

Two classes to put before vLLM's own in a subclass. What they do not read themselves, they leave
to it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsefill.attention import attend_cells
from sparsefill.errors import SparsefillError, UnsupportedError
from sparsefill.estimate import estimate_cells
from sparsefill.integrations.transformers.run import architecture_of
from sparsefill.integrations.vllm.heads import RankHeads, profile_of
from sparsefill.integrations.vllm.metrics import Counts
from sparsefill.integrations.vllm.options import Options
from sparsefill.integrations.vllm.plan import Chunk, Plan, chunks_of, is_plain, split
from sparsefill.integrations.vllm.requests import Request, Requests
from sparsefill.kernels import choose_backend
from sparsefill.metrics import recall
from sparsefill.patterns import Dense
from sparsefill.tile import TILE, sample_row_blocks

log = logging.getLogger("vllm.sparsefill")  # below vLLM's, which has handlers

PLAN = "sparsefill_plan"  # attribute of a step's metadata
MEASURED_BLOCKS = 2  # row blocks of each chunk and layer whose recall is measured
NO_WINDOW = (None, -1, (-1, -1))


def is_chosen(vllm_config: Any) -> bool:
    """Tell whether the user chose this plugin."""
    return getattr(vllm_config.attention_config.backend, "name", None) == "CUSTOM"


def require_served(vllm_config: Any, device: str) -> None:
    """Refuse to start with options that cannot be served, before weights are loaded.

    What is wrong is logged in one line, for vLLM shows errors of its workers in many.
    """
    try:
        heads_of(vllm_config, device)
    except SparsefillError as error:
        log.error("sparsefill cannot start: %s", error)
        raise


def heads_of(vllm_config: Any, device: str) -> RankHeads:
    """Settle which pattern each head of this rank uses.

    Raises:
        InputError, ProfileError, UnsupportedError: the options cannot be served.
    """
    from vllm.distributed import get_tensor_model_parallel_rank

    options = Options.parse(vllm_config.additional_config)
    model = vllm_config.model_config
    architecture = architecture_of(model.hf_text_config)
    count = model.get_num_attention_heads(vllm_config.parallel_config)
    backend = "cpu" if options.backend == "auto" and device == "cpu" else options.backend
    like = torch.empty(1, 1, 1, architecture.head_dim, dtype=model.dtype, device=device)
    return RankHeads(
        profile=profile_of(options, architecture),
        first=get_tensor_model_parallel_rank() * count,
        count=count,
        min_length=options.min_length,
        backend=choose_backend(backend, like),
    )


@dataclass(kw_only=True, eq=False)
class Steps:
    """Plans the steps of one group of layers that share pages.

    Args:
        layers: numbers of those that can be read sparsely.
        page: keys of a page.
        requests: prompts that are being read; None on ranks that do not count.
    """

    heads: RankHeads
    layers: Sequence[int]
    page: int
    requests: Requests | None

    def choose(self, common: Any) -> list[Chunk]:
        """Choose the requests of a step that we read."""
        if common.max_query_len < TILE and (self.requests is None or not self.requests.open):
            return []
        if not is_plain(common):
            return []
        starts = common.query_start_loc_cpu.tolist()
        chunks = chunks_of(starts[: common.num_reqs + 1], _lengths(common))
        chosen = [c for c in chunks if self.heads.pays(self.layers, c.queries, c.keys)]
        if self.requests is None:
            return chosen
        return self._follow(common, chunks, {chunk.row for chunk in chosen})

    def _follow(self, common: Any, chunks: Sequence[Chunk], chosen: set[int]) -> list[Chunk]:
        """Find the request of each chunk of a prompt, and tell of those that are read."""
        assert self.requests is not None
        prefilling = getattr(common, "is_prefilling", None)
        reading = [chunk.queries > 1 for chunk in chunks]
        if prefilling is not None:
            reading = prefilling[: len(chunks)].tolist()
        table = common.block_table_tensor

        def known(chunk: Chunk, keys: int) -> tuple[int, int]:
            return int(table[chunk.row, (keys - 1) // self.page]), keys

        self.requests.begin_step(
            known(chunk, chunk.context)
            for chunk, prompt in zip(chunks, reading, strict=True)
            if not prompt and chunk.queries and chunk.context
        )
        found = []
        for chunk, prompt in zip(chunks, reading, strict=True):
            if not prompt or not chunk.queries:
                continue
            before = known(chunk, chunk.context) if chunk.context else None
            request = self.requests.read(
                before, known(chunk, chunk.keys), sparse=chunk.row in chosen
            )
            if chunk.row in chosen:
                found.append(replace(chunk, request=request))
        return found


def _lengths(common: Any) -> list[int]:
    """Return the keys of each request, without waiting for a device where that is possible."""
    lengths = getattr(common, "seq_lens_cpu_upper_bound", None)
    lengths = common.seq_lens if lengths is None else lengths
    return lengths[: common.num_reqs].tolist()


class PlansSparsely:
    """A builder of a step's metadata that adds which requests we read."""

    supports_update_block_table = False  # it would copy a plan to other pages

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)  # type: ignore[call-arg]
        self.steps = _steps_of(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False):
        """Build vLLM's metadata of a step, and plan it."""
        build: Any = super().build  # type: ignore[misc]
        metadata = build(common_prefix_len, common_attn_metadata, fast_build)
        if self.steps is None:
            return metadata
        chunks = self.steps.choose(common_attn_metadata)
        if chunks:
            rest, own = split(common_attn_metadata, chunks, lambda left: build(0, left, fast_build))
            plan = Plan(chunks=chunks, rest=rest, rest_metadata=own)
            setattr(metadata, PLAN, (plan, self.steps.heads))
        return metadata


def _steps_of(spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> Steps | None:
    """Set up the steps of a group of layers; None if none of them can be read sparsely."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.models.utils import extract_layer_index

    parallel = vllm_config.parallel_config
    if getattr(parallel, "decode_context_parallel_size", 1) > 1:
        raise UnsupportedError(
            "sparsefill does not read prompts under decode context parallelism; leave out"
            " --decode-context-parallel-size, or --attention-backend CUSTOM"
        )
    layers = get_layers_from_vllm_config(vllm_config, Attention, layer_names)
    usable = sorted(
        extract_layer_index(name)
        for name, layer in layers.items()
        if getattr(layer.impl, "is_usable", False)
    )
    if not usable:
        return None
    heads = heads_of(vllm_config, torch.device(device).type)
    options = Options.parse(vllm_config.additional_config)
    counts = get_tensor_model_parallel_rank() == 0 and get_pp_group().is_first_rank
    log.info(
        "sparsefill: layers %d to %d read long prompts by %s, backend %s",
        usable[0],
        usable[-1],
        options.pattern or options.profile or "the default profile",
        heads.backend,
    )
    requests = Requests(options.recall_every, Told()) if counts else None
    return Steps(heads=heads, layers=usable, page=spec.block_size, requests=requests)


class Told:
    """Tells of a prompt that has been read: a line in the log, and a count."""

    def __init__(self) -> None:
        self.counts = Counts()

    def __call__(self, request: Request) -> None:
        """Tell of a prompt."""
        density, kept = request.density, request.mean_recall
        self.counts.add(density=density, recall=kept)
        if density is None:
            return
        log.info(
            "sparsefill: prompt of %d tokens, %d of them read sparsely in %d chunks:"
            " density %.1f %%%s, %.2f s",
            request.keys,
            request.sparse_keys,
            request.chunks,
            100 * density,
            "" if kept is None else f", recall {100 * kept:.2f} %",
            request.seconds,
        )


class AttendsSparsely:
    """An attention implementation that reads the planned requests sparsely."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own: Any = self
        self.is_usable = (
            own.sliding_window in NO_WINDOW
            and own.alibi_slopes is None
            and getattr(own, "sinks", None) is None
            and not str(own.kv_cache_dtype).startswith("fp8")
            and own.attn_type == "decoder"
            and getattr(own, "kv_sharing_target_layer_name", None) is None
        )

    def pages(
        self, kv_cache: Tensor, blocks: Tensor, keys: int
    ) -> tuple[Float[Tensor, "g m d"], Float[Tensor, "g m d"]]:
        """Gather a request's keys and values from its pages."""
        raise NotImplementedError  # each platform lays them out in its own way

    def forward(
        self,
        layer: Any,
        query: Float[Tensor, "tokens h d"],
        key: Float[Tensor, "tokens g d"],
        value: Float[Tensor, "tokens g d"],
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend, as vLLM asks: in place, for all tokens of a step."""
        stock: Any = super().forward  # type: ignore[misc]
        scales = (output_scale, output_block_scale)
        planned = getattr(attn_metadata, PLAN, None)
        if planned is None or not self.is_usable:
            return stock(layer, query, key, value, kv_cache, attn_metadata, output, *scales)
        plan, heads = planned
        if plan.rest is not None:
            rest = plan.rest
            own = (t[rest] for t in (query, key, value))
            left = torch.empty_like(output[: len(rest)])
            output[rest] = stock(layer, *own, kv_cache, plan.rest_metadata, left, *scales)
        for chunk in plan.chunks:
            rows = slice(chunk.start, chunk.stop)
            if chunk.context:
                blocks = attn_metadata.block_table[chunk.row]
                k, v = self.pages(kv_cache, blocks, chunk.keys)
            else:
                k, v = (t[rows].transpose(0, 1) for t in (key, value))
            q = query[rows].transpose(0, 1)
            out = self._attend(heads, _number_of(layer), q[None], k[None], v[None], chunk)
            output[rows] = out[0].transpose(0, 1).reshape(output[rows].shape)
        return output

    def _attend(
        self, heads: RankHeads, layer: int, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk
    ) -> Float[Tensor, "1 h n d"]:
        own: Any = self
        n, m = q.shape[2], k.shape[2]
        lengths = {
            "query_lengths": torch.tensor([n], dtype=torch.int32, device=q.device),
            "key_lengths": torch.tensor([m], dtype=torch.int32, device=q.device),
        }
        maths: dict[str, Any] = {
            "scale": own.scale,
            "softcap": own.logits_soft_cap or None,
            "backend": heads.backend,
        }
        cells = estimate_cells(heads.patterns(layer, n, m), q, k, **lengths, **maths)
        attended = attend_cells(q, k, v, cells, **maths)
        request = chunk.request
        if request is not None:
            causal = n * (m - n) + n * (n + 1) / 2
            kept = _recall(q, k, v, attended.lse, maths) if request.measured else None
            request.note(cells.density(), causal, kept)
        return attended.out


def _recall(
    q: Tensor, k: Tensor, v: Tensor, lse: Tensor, maths: dict[str, Any]
) -> Float[Tensor, "1 h rows"]:
    """Measure the attention mass kept, in a few row blocks of a chunk."""
    n, m = q.shape[2], k.shape[2]
    found = []
    for block in sample_row_blocks(n, MEASURED_BLOCKS):
        rows = slice(TILE * block, min(TILE * (block + 1), n))
        keys = slice(m - n + rows.stop)
        lengths = {
            "query_lengths": torch.tensor([rows.stop - rows.start], dtype=torch.int32),
            "key_lengths": torch.tensor([keys.stop], dtype=torch.int32),
        }
        lengths = {name: own.to(q.device) for name, own in lengths.items()}
        own_q, own_k, own_v = q[:, :, rows], k[:, :, keys], v[:, :, keys]
        cells = estimate_cells((Dense(),) * q.shape[1], own_q, own_k, **lengths, **maths)
        dense = attend_cells(own_q, own_k, own_v, cells, **maths)
        found.append(recall(lse[:, :, rows], dense.lse))
    return torch.cat(found, dim=2)


def _number_of(layer: Any) -> int:
    """Return the number of an attention layer."""
    from vllm.model_executor.models.utils import extract_layer_index

    return extract_layer_index(layer.layer_name)
