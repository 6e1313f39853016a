"""Reading prompts of any length: within a memory budget, resumable, with the cache one wants.

reading.py   one prompt, read by layers or by chunks
chunks.py    how a prompt is cut
lockstep.py  chunks of a prompt that the model reads side by side
whole.py     the attention of a layer to the whole prompt
store.py     keys and values: kept, quantised, on the host, on disk, or dropped
files.py     tensors in files, token by token
cache.py     what transformers sees of keys and values
rope.py      rotary embeddings that depend on the length of the prompt
plan.py      the memory that all of it takes, before any work
saved.py     the folder that an interrupted prefill goes on from
inside.py    the engine inside a model, for whoever calls it

Importing this needs torch alone; reading needs transformers and greenlet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from sparsefill.errors import ShapeError, UnsupportedError
from sparsefill.kernels import BackendName
from sparsefill.patterns import Pattern
from sparsefill.profile import Profile

if TYPE_CHECKING:
    from sparsefill.engine.plan import Plan
    from sparsefill.integrations.transformers.run import Run

RECALL_SAMPLES = 16  # row blocks of each layer that tell the recall of a long prompt
OnProgress = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefilled:
    """A prompt that was read.

    Args:
        logits: of its last positions.
        cache: to decode from, with transformers' `past_key_values`; None if it was dropped.
        run: what the layers did in this call; what it resumed from is not counted.
        plan: the memory that was expected.
    """

    logits: Float[Tensor, "b positions vocabulary"]
    cache: Any
    run: Run
    plan: Plan


def prefill(
    model: nn.Module,
    input_ids: Int[Tensor, "b n"],
    pattern: Profile | Pattern | None = None,
    *,
    attention_mask: Shaped[Tensor, "b n"] | None = None,
    kv: str = "keep",
    order: str = "layers",
    chunk: int | None = None,
    max_memory: int | None = None,
    logits_to_keep: int = 1,
    backend: BackendName = "auto",
    min_length: int | None = None,
    record: bool = True,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: OnProgress | None = None,
    save_kv: str | Path | None = None,
    resume: bool = False,
    recall_samples: int = 0,
) -> Prefilled:
    """Read a prompt in chunks, so that only attention ever sees all of it.

    Args:
        input_ids: prompts of one length, without padding.
        pattern: a profile, or one pattern for all heads; the default profile of the
            model's architecture when None.
        attention_mask: as tokenizers return it beside the ids; it must be all ones.
        kv: what becomes of keys and values: "keep" on the device, "int8", "host", "disk", or
            "drop" (time to first token only).
        order: "layers": all chunks pass a layer before the next one, and every estimate is
            that of the whole prompt; "chunks": a chunk passes all layers before the next one,
            and estimates are each chunk's own, over all keys so far. Takes less memory.
        chunk: tokens that pass the rest of the model at once; when None, as many as are
            fastest and fit into `max_memory`.
        max_memory: bytes that the process (of an accelerator: the device) may take; more is
            refused before any work.
        logits_to_keep: how many last positions to return logits of.
        on_plan: called with the expected memory before any work.
        on_progress: called after each step with the steps done and in all.
        save_kv: folder of the files of "disk", and of what `resume` goes on from.
        resume: go on with what `save_kv` holds of this prompt. The run then records only
            what was read now, not what the folder held.

        recall_samples: row blocks of each layer, spread evenly over the prompt, whose recall is
            measured against dense attention, for `run.recall()`; with "layers" alone.

    Raises:
        InputError: an argument is out of range, nothing fits `max_memory`, or the folder
            holds another prefill.
        ShapeError: the attention mask has another shape than the ids.
        UnsupportedError: a prompt is padded, the model has layers of other kinds, or
            transformers is too old.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
        >>> heads = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=128)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
        >>> import torch
        >>> read = prefill(model, torch.ones(1, 300, dtype=torch.long), chunk=128, kv="int8")
        >>> read.logits.shape, read.cache.get_seq_length()
        (torch.Size([1, 1, 128]), 300)
    """
    if attention_mask is not None:
        _require_unpadded(input_ids, attention_mask)
    with needing_transformers():
        from sparsefill.engine import reading
    request = reading.Request(
        kv=kv,
        order=order,
        chunk=chunk,
        max_memory=max_memory,
        logits_to_keep=logits_to_keep,
        backend=backend,
        min_length=min_length,
        record=record,
        save_kv=None if save_kv is None else Path(save_kv).absolute(),
        resume=resume,
        recall_samples=recall_samples,
    )
    return reading.read(
        model, input_ids, pattern, request, on_plan=on_plan, on_progress=on_progress
    )


def _require_unpadded(ids: Int[Tensor, "b n"], mask: Shaped[Tensor, "b n"]) -> None:
    """Raise if a mask says that some of the tokens are padding."""
    if mask.shape != ids.shape:
        raise ShapeError(
            f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}, got"
            f" {tuple(mask.shape)}; pass the mask that came with the ids, or none"
        )
    real = mask.bool().sum(1)
    if bool((real < ids.shape[1]).any()):
        raise UnsupportedError(
            f"prefill needs prompts of one length without padding, got an attention_mask of"
            f" {real.tolist()} real tokens in rows of {ids.shape[1]}; read prompts of different"
            " lengths one by one, or as a padded batch in one piece with sparse_prefill"
        )


@contextmanager
def engine_prefill(
    model: nn.Module,
    pattern: Profile | Pattern | None = None,
    *,
    at_least: int = 8192,
    **options: Any,
) -> Iterator[list[Prefilled]]:
    """Read long prompts with the engine inside the `with` block, `model.generate()` too.

    Shorter prompts and second turns are read as inside `sparse_prefill`. On exit the model is
    as it was. What it returns for a prompt is logits and the cache to decode from.

    Args:
        pattern: as of `prefill`.
        at_least: tokens of the prompts that the engine reads.
        options: of `prefill`: kv, order, chunk, max_memory, and so on.

    Returns:
        What was read, prompt by prompt.

    Raises:
        InputError, UnsupportedError: as `prefill`; padded batches when they are read.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
        >>> heads = dict(num_attention_heads=4, num_key_value_heads=2, vocab_size=128)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
        >>> import torch
        >>> with engine_prefill(model, at_least=256, kv="int8") as reads:
        ...     answer = model.generate(torch.ones(1, 300, dtype=torch.long), max_new_tokens=4)
        >>> len(reads), reads[0].plan.kv, answer.shape[0]
        (1, 'int8', 1)
    """
    with needing_transformers():
        from sparsefill.engine import inside
    with inside.opened(model, pattern, at_least=at_least, **options) as reads:
        yield reads


@contextmanager
def needing_transformers() -> Iterator[None]:
    """Say what to install when an import of what reads fails.

    Raises:
        UnsupportedError: transformers or greenlet is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "greenlet"):
            raise
        raise UnsupportedError(
            f"prefill needs transformers and greenlet, but {error.name} is not installed;"
            " pip install 'sparsefill[transformers]'"
        ) from error
