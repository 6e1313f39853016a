"""Padded batches: every row gets the answer that it gets alone, and generates the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    InfLLM,
    Interleaved,
    TriShape,
    VerticalSlash,
)
from sparsefill.integrations.transformers import architecture_of, sparse_prefill
from sparsefill.patterns import Pattern
from sparsefill.profile import Profile
from tests.support.models import (
    assert_logits_close,
    exact_model,
    logits_in_chunks,
    logits_of,
    pad,
    positions,
    prompt,
    tiny_model,
)

LENGTHS = (330, 200, 261)
PATTERNS: dict[str, Pattern | tuple[Pattern, ...]] = {
    "dense": Dense(),
    "a-shape": AShape(sink=4, window=40),
    "tri-shape": TriShape(sink=4, window=40, last=20),
    "vertical-slash": VerticalSlash(verticals=12, slashes=12, probe=32, sink=4, window=8),
    "block-topk": BlockTopK(blocks=2),
}
PATTERNS["interleaved"] = Interleaved(sink=5, even=41, odd=20)
PATTERNS["infllm"] = InfLLM(sink=4, window=40, blocks=1, block=64, queries=64, every=3)
PATTERNS["mixed"] = tuple(PATTERNS[name] for name in list(PATTERNS)[-4:])  # type: ignore[misc]

each_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
each_side = pytest.mark.parametrize("side", ["left", "right"])


def prompts(lengths: tuple[int, ...]) -> list[Tensor]:
    return [prompt(n, seed=seed) for seed, n in enumerate(lengths)]


def read(model: Any, ids: Tensor, pattern: Any, sizes: list[int], **options: Any) -> Tensor:
    """Read in chunks with a pattern, one for all heads or one for each of the four."""
    mask, backend = options.get("mask"), options.get("backend", "auto")
    if isinstance(pattern, tuple):
        shape = architecture_of(model.config)
        pattern = Profile(architecture=shape, layers=(pattern,) * shape.layers)
    with sparse_prefill(model, pattern, min_length=64, backend=backend) as run:
        logits = logits_in_chunks(model, ids, sizes, mask=mask)
    assert all(call.density is None or bool((call.density <= 1).all()) for call in run.calls)
    return logits


def assert_rows_as_alone(
    family: str,
    pattern: Any,
    side: str,
    lengths: tuple[int, ...],
    sizes: list[int],
    sizes_alone: tuple[list[int], ...],
) -> None:
    """Compare each row of a padded batch with the same prompt alone, by the oracle backend."""
    rows = prompts(lengths)
    ids, mask = pad(rows, side)
    batch = read(tiny_model(family, "eager"), ids, pattern, sizes, mask=mask)
    assert bool(batch.isfinite().all())
    for own, row, real, alone in zip(batch, rows, mask.bool(), sizes_alone, strict=True):
        stock, exact = (
            read(model, row, pattern, alone, backend="reference")
            for model in (tiny_model(family, "eager"), exact_model(family))
        )
        assert_logits_close(own[real][None], stock, exact)


@each_side
@each_pattern
@pytest.mark.parametrize("family", ["llama-3", "gemma3"])
def test_at_once(family: str, pattern: Any, side: str):
    assert_rows_as_alone(family, pattern, side, LENGTHS, [], ([], [], []))


@pytest.mark.parametrize(
    ("side", "lengths", "alone"),
    [
        ("left", (330, 180, 250), ([150, 100], [100], [70, 100])),  # row 1 starts in chunk 2
        ("right", (330, 250, 150), ([150, 100], [150], [])),  # rows 1 and 2 end before chunk 3
    ],
    ids=["left", "right"],
)
@each_pattern
@pytest.mark.parametrize("family", ["llama-3", "gemma2"])
def test_in_chunks(
    family: str, pattern: Any, side: str, lengths: tuple[int, ...], alone: tuple[list[int], ...]
):
    assert_rows_as_alone(family, pattern, side, lengths, [150, 100], alone)


@each_pattern
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_decode_after_a_padded_prefill(family: str, pattern: Any):
    lengths = tuple(n + 3 for n in LENGTHS)
    alone = tuple([n, 1, 1] for n in LENGTHS)
    assert_rows_as_alone(family, pattern, "left", lengths, [LENGTHS[0], 1, 1], alone)


@each_pattern
def test_row_without_any_token(pattern: Any):
    rows = prompts((330, 200))
    ids, mask = pad([*rows, rows[0]], "left")
    mask[2] = 0
    model = tiny_model("llama-3")
    batch = read(model, ids, pattern, [], mask=mask)
    assert bool(batch.isfinite().all())
    assert torch.equal(batch[:2], read(model, ids[:2], pattern, [], mask=mask[:2]))


@each_side
@each_pattern
def test_what_stands_in_the_padding_does_not_matter(pattern: Any, side: str):
    ids, mask = pad(prompts(LENGTHS), side)
    model = tiny_model("gemma3")
    changed = torch.where(mask.bool(), ids, prompt(ids.shape[1], rows=3, seed=9))
    first, second = (read(model, x, pattern, [], mask=mask) for x in (ids, changed))
    assert torch.equal(first[mask.bool()], second[mask.bool()])


@each_pattern
def test_order_of_the_rows_does_not_matter(pattern: Any):
    ids, mask = pad(prompts(LENGTHS), "left")
    model, order = tiny_model("llama-3"), torch.tensor([2, 0, 1])
    batch = read(model, ids, pattern, [], mask=mask)
    moved = read(model, ids[order], pattern, [], mask=mask[order])
    torch.testing.assert_close(moved[mask[order].bool()], batch[order][mask[order].bool()])


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 2},
    "sampling": {"do_sample": True, "temperature": 0.8},
    "chunks": {"do_sample": False, "prefill_chunk_size": 100},
    "static": {"do_sample": False, "cache_implementation": "static"},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("lengths", [LENGTHS, (200, 200)], ids=["padded", "full"])
@pytest.mark.parametrize("family", ["llama-3.1", "mistral-window", "gemma2", "gemma3"])
def test_generate_gives_the_stock_tokens(
    family: str, lengths: tuple[int, ...], way: dict[str, Any]
):
    model = tiny_model(family, "eager")
    ids, mask = pad(prompts(lengths), "left")

    def tokens(**options: Any) -> Tensor:
        torch.manual_seed(1)
        return model.generate(ids, attention_mask=mask, max_new_tokens=8, **options)

    stock = tokens(**way)
    with sparse_prefill(model, Dense(), min_length=1):
        assert torch.equal(tokens(**way), stock)


def test_stock_positions_are_those_of_generate():
    """The helper's positions are what `generate` passes, so batches above are realistic."""
    ids, mask = pad(prompts(LENGTHS), "left")
    model = tiny_model("llama-3")
    assert torch.equal(positions(mask)[0], torch.arange(LENGTHS[0]))
    bare = logits_of(model, ids, attention_mask=mask, position_ids=positions(mask))
    options: Any = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 1}
    result = model.generate(ids, attention_mask=mask, do_sample=False, **options)
    torch.testing.assert_close(result.logits[0], bare[:, -1])
