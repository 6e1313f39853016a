"""What both platforms share: plan a step, and attend to the chunks that are read sparsely.

Two classes to put before vLLM's own in a subclass. What they do not read themselves, they leave
to it.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsefill.attention import attend_cells, attend_rows_densely
from sparsefill.errors import UnsupportedError
from sparsefill.estimate import estimate_cells
from sparsefill.integrations.vllm.heads import RankHeads
from sparsefill.integrations.vllm.metrics import counts
from sparsefill.integrations.vllm.options import Options
from sparsefill.integrations.vllm.plan import Plan, split
from sparsefill.integrations.vllm.requests import Request, Requests
from sparsefill.integrations.vllm.start import (
    heads_of,
    is_chosen,
    is_plain,
    number_layers,
    refuse,
)
from sparsefill.integrations.vllm.steps import Steps, log
from sparsefill.metrics import recall
from sparsefill.tile import causal_count, sample_rows

PLAN = "sparsefill_plan"  # attribute of a step's metadata
MEASURED_BLOCKS = 2  # row blocks of each chunk and layer whose recall is measured


class PlansSparsely:
    """A builder of a step's metadata that adds which requests we read."""

    supports_update_block_table = False  # it would copy a plan to other pages

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any, **more: Any
    ) -> None:
        stock: Any = super()
        stock.__init__(kv_cache_spec, layer_names, vllm_config, device, **more)
        self.steps = _steps_of(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        """Build vLLM's metadata of a step, and plan it."""
        stock: Any = super()
        metadata = stock.build(common_prefix_len, common_attn_metadata, fast_build)
        chunks = self.steps.choose(common_attn_metadata) if self.steps else []
        if self.steps and chunks:
            self.keep(metadata)
            build = stock.build
            rest, own = split(common_attn_metadata, chunks, lambda left: build(0, left, fast_build))
            plan = Plan(chunks=chunks, rest=rest, rest_metadata=own, heads=self.steps.heads)
            setattr(metadata, PLAN, plan)
        return metadata

    def keep(self, metadata: Any) -> None:
        """Copy what the next build would write over."""

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        """Build vLLM's metadata of a step that nobody asked for."""
        stock: Any = super()
        return self._without_steps(stock.build_for_cudagraph_capture, common_attn_metadata)

    def build_for_drafting(self, common_attn_metadata: Any, draft_index: int) -> Any:
        """Build vLLM's metadata of a step of a draft model."""
        stock: Any = super()
        return self._without_steps(stock.build_for_drafting, common_attn_metadata, draft_index)

    def _without_steps(self, build: Callable[..., Any], *arguments: Any) -> Any:
        """Call what calls `build` in turn, for a step that we do not plan."""
        steps, self.steps = self.steps, None
        try:
            return build(*arguments)
        finally:
            self.steps = steps


def _steps_of(spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> Steps | None:
    """Set up the steps of a group of layers; None if none of them can be read sparsely.

    A whole model of which nothing can be read is refused, a stage of a pipeline is vLLM's own.
    """
    from vllm.config import get_layers_from_vllm_config
    from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank
    from vllm.model_executor.layers.attention import Attention

    if not is_chosen(vllm_config):  # a draft model's config, for which vLLM asks us all the same
        return None
    heads = heads_of(vllm_config, torch.device(device).type)
    every = get_layers_from_vllm_config(vllm_config, Attention)
    try:
        readable = number_layers(every, heads, vllm_config)
    except UnsupportedError as error:
        if vllm_config.parallel_config.pipeline_parallel_size == 1:
            refuse(error)
        log.warning("sparsefill: this stage of the pipeline is vLLM's own: %s", error)
        return None
    own = {name: number for name, number in readable.items() if name in layer_names}
    if not own:
        return None
    for name, number in own.items():
        every[name].impl.number = number
    numbers = sorted(own.values())
    options = Options.parse(vllm_config.additional_config)
    log.info(
        "sparsefill: layers %d to %d read long prompts by %s, backend %s",
        numbers[0],
        numbers[-1],
        options.pattern or options.profile or "the default profile",
        heads.backend,
    )
    # one group of layers of one rank, or prompts would be counted more than once
    is_counting = (
        numbers[0] == min(readable.values())
        and get_tensor_model_parallel_rank() == 0
        and get_pp_group().is_first_rank
    )
    guessed = getattr(vllm_config.speculative_config, "num_speculative_tokens", None) or 0
    return Steps(
        heads=heads,
        layers=numbers,
        page=spec.block_size,
        widest_decode=1 + guessed,
        requests=Requests(options.recall_every, tell) if is_counting else None,
    )


def tell(request: Request) -> None:
    """Tell of a prompt that has been read: a line in the log, and a count."""
    density, kept = request.density, request.mean_recall
    counts().add(density=density, recall=kept)
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

    gather: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # keys and values from pages
    number: int | None = None  # in the profile; None for a layer that vLLM reads

    def __init__(self, *arguments: Any, **options: Any) -> None:
        stock: Any = super()
        stock.__init__(*arguments, **options)
        self.is_plain = is_plain(self)

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
        stock: Any = super()
        plan: Plan | None = getattr(attn_metadata, PLAN, None)
        scales = (output_scale, output_block_scale)
        if plan is None or self.number is None or scales != (None, None):
            return stock.forward(layer, query, key, value, kv_cache, attn_metadata, output, *scales)
        if plan.rest is not None:
            own = (tensor[plan.rest] for tensor in (query, key, value))
            left = torch.empty_like(output[: len(plan.rest)])
            stock.forward(layer, *own, kv_cache, plan.rest_metadata, left)
            output[plan.rest] = left
        for chunk in plan.chunks:
            rows = slice(chunk.start, chunk.stop)
            if chunk.context:
                pages = attn_metadata.block_table[chunk.row]
                k, v = self.gather(kv_cache, pages, chunk.keys)
            else:
                k, v = (tensor[rows].transpose(0, 1) for tensor in (key, value))
            q = query[rows].transpose(0, 1)
            out = self._attend(plan.heads, q[None], k[None], v[None], chunk.request)
            output[rows] = out[0].transpose(0, 1).reshape(output[rows].shape)
        return output

    def _attend(
        self, heads: RankHeads, q: Tensor, k: Tensor, v: Tensor, request: Request | None
    ) -> Float[Tensor, "1 h n d"]:
        own: Any = self
        n, m = q.shape[2], k.shape[2]
        maths: dict[str, Any] = {
            "scale": own.scale,
            "softcap": own.logits_soft_cap or None,
            "backend": heads.backend,
        }
        cells = estimate_cells(heads.patterns(own.number, n, m), q, k, **maths)
        attended = attend_cells(q, k, v, cells, **maths)
        if request is not None:
            kept = [
                recall(attended.lse[:, :, rows], attend_rows_densely(q, k, v, rows, **maths).lse)
                for rows in (sample_rows(n, MEASURED_BLOCKS) if request.measured else ())
            ]
            found = torch.cat(kept, dim=2) if kept else None
            request.note(cells.density(), causal_count(n, m), found)
        return attended.out
