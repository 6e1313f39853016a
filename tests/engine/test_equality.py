"""What the engine reads is what the plain hook reads, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    FixedSlash,
    InfLLM,
    Interleaved,
    Pattern,
    TriShape,
    UnsupportedError,
    VerticalSlash,
    native,
    prefill,
)
from sparsefill.integrations.transformers import architecture_of, sparse_prefill
from sparsefill.profile import Profile
from tests.support.models import (
    FAMILIES,
    LATE_ROPE,
    assert_logits_close,
    exact_model,
    prompt,
    tiny_model,
)

PATTERNS: dict[str, Pattern] = {
    "vertical-slash": VerticalSlash(verticals=20, slashes=10, probe=20, sink=2, window=4),
    "block-topk": BlockTopK(blocks=3, block=64),
    "a-shape": AShape(sink=3, window=70),
    "tri-shape": TriShape(sink=3, window=70, last=90),
    "fixed-slash": FixedSlash(offsets=(0, 64, 200), verticals=20),
    "dense": Dense(),
    "interleaved": Interleaved(sink=5, even=150, odd=41),
}
BACKENDS = ["torch"] if native.library() is None else ["cpu", "torch"]
POSITIONS = 5
CHUNK = 192


def mixed_profile(model) -> Profile:
    """Give each head of each layer another pattern."""
    shape = architecture_of(model.config.get_text_config())
    every = list(PATTERNS.values())
    layers = tuple(
        tuple(every[(shape.heads * layer + head) % len(every)] for head in range(shape.heads))
        for layer in range(shape.layers)
    )
    return Profile(architecture=shape, layers=layers)


def by_hook(model, ids: Tensor, pattern, **options) -> tuple[Tensor, float]:
    with torch.inference_mode(), sparse_prefill(model, pattern, min_length=1, **options) as run:
        return model(ids, logits_to_keep=POSITIONS).logits, run.density


def by_engine(model, ids: Tensor, pattern, **options):
    return prefill(
        model,
        ids,
        pattern,
        **{"min_length": 1, "chunk": CHUNK, "logits_to_keep": POSITIONS, **options},
    )


def assert_same(logits: Tensor, expected: Tensor, family: str, ids: Tensor, pattern) -> None:
    """Compare bit for bit, or within the budget where torch rounds by the shape of products."""
    if native.library() is not None:
        assert torch.equal(logits, expected)
        return
    exact, _ = by_hook(exact_model(family), ids, pattern, backend="reference")
    assert_logits_close(logits, expected, exact)


@pytest.mark.parametrize("family", [*FAMILIES, *LATE_ROPE])
def test_every_family(family: str):
    stock = "eager" if family == "gemma2" else "sdpa"  # soft caps have no other
    model, ids = tiny_model(family, stock), prompt(500, rows=2)
    for pattern in (PATTERNS["vertical-slash"], mixed_profile(model)):
        expected, density = by_hook(model, ids, pattern)
        read = by_engine(model, ids, pattern)
        assert_same(read.logits, expected, family, ids, pattern)
        assert read.run.density == pytest.approx(density)
        assert [call.layer for call in read.run.calls] == [0, 1]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_pattern(pattern: Pattern, backend: str):
    model, ids = tiny_model("llama-3"), prompt(700)
    expected, density = by_hook(model, ids, pattern, backend=backend)
    read = by_engine(model, ids, pattern, backend=backend)
    if backend == "torch":  # products of other shapes may be rounded in another order
        exact = by_hook(exact_model("llama-3"), ids, pattern, backend="reference")[0]
        assert_logits_close(read.logits, expected, exact)
    else:
        assert torch.equal(read.logits, expected)
    assert read.run.density == pytest.approx(density)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 191, 192, 193, 385, 500])
def test_every_length(tokens: int):
    model, ids = tiny_model("llama-3"), prompt(tokens)
    expected, _ = by_hook(model, ids, PATTERNS["a-shape"])
    read = by_engine(model, ids, PATTERNS["a-shape"])
    assert torch.allclose(read.logits, expected, rtol=0, atol=2e-5)
    assert read.logits.shape == expected.shape


@pytest.mark.parametrize("attending", [64, 256, 8192], indirect=True)
@pytest.mark.parametrize("chunk", [64, 100, 128, 448, 8192])
def test_every_chunk(chunk: int, attending: int):
    model, ids = tiny_model("qwen2"), prompt(500)
    profile = mixed_profile(model)
    read, (expected, _) = by_engine(model, ids, profile, chunk=chunk), by_hook(model, ids, profile)
    assert_same(read.logits, expected, "qwen2", ids, profile)


@pytest.mark.parametrize("kv", ["keep", "int8", "host", "disk", "drop"])
def test_by_layers_no_policy_changes_the_logits(kv: str, tmp_path):
    model, ids = tiny_model("qwen3"), prompt(500, rows=2)
    profile = mixed_profile(model)
    read = by_engine(model, ids, profile, kv=kv, save_kv=tmp_path if kv == "disk" else None)
    assert torch.equal(read.logits, by_hook(model, ids, profile)[0])


def in_chunks(model, ids: Tensor, pattern, sizes: list[int]) -> Tensor:
    """Read chunk after chunk with the plain hook and transformers' own cache."""
    cache, first, logits = None, 0, ids
    with torch.inference_mode(), sparse_prefill(model, pattern, min_length=1):
        for size in sizes:
            positions = torch.arange(first, first + size)[None]
            result = model(
                ids[:, first : first + size],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=POSITIONS,
            )
            cache, first, logits = result.past_key_values, first + size, result.logits
    return logits


@pytest.mark.parametrize("kv", ["keep", "host", "disk"])
@pytest.mark.parametrize("family", ["llama-3", "phi3", "glm4", "qwen3"])
def test_by_chunks_it_is_chunked_prefill(family: str, kv: str, tmp_path):
    model, ids = tiny_model(family), prompt(500)
    profile = mixed_profile(model)
    save = tmp_path if kv == "disk" else None
    read = by_engine(model, ids, profile, order="chunks", kv=kv, save_kv=save)
    # interleaved heads take chunks of whole row blocks of either parity
    assert torch.equal(read.logits, in_chunks(model, ids, profile, [128, 128, 128, 116]))


def test_by_chunks_int8_is_near():
    model, ids = tiny_model("llama-3"), prompt(500)
    expected = in_chunks(model, ids, Dense(), [192, 192, 116])
    read = by_engine(model, ids, Dense(), order="chunks", kv="int8")
    spread = float(expected.std())
    assert 0 < float((read.logits - expected).abs().max()) < 0.1 * spread


def test_progress_counts_to_its_end():
    model, ids = tiny_model("llama-3"), prompt(500)
    for order, total in (("layers", 2 * 2 * 3), ("chunks", 3)):
        seen: list[tuple[int, int]] = []
        by_engine(
            model, ids, Dense(), order=order, on_progress=lambda *step, to=seen: to.append(step)
        )
        assert seen == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("order", ["layers", "chunks"])
def test_only_the_last_chunk_has_more_than_one_row_of_logits(order: str):
    model, ids = tiny_model("llama-3"), prompt(4 * CHUNK)
    rows: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    by_engine(model, ids, AShape(sink=3, window=70), order=order)
    assert rows == [1] * (len(rows) - 1) + [POSITIONS]
    assert len(rows) > 1


def test_a_choice_that_needs_all_queries_is_refused_by_layers():
    model, ids = tiny_model("llama-3"), prompt(400)
    pattern = InfLLM(sink=4, window=64, blocks=1, block=64, queries=64)
    with pytest.raises(UnsupportedError, match="InfLLM scores keys by all queries"):
        by_engine(model, ids, pattern)
    read = by_engine(model, ids, pattern, order="chunks")
    assert 0 < read.run.density < 1
