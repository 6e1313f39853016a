"""Every family of models: a pattern that keeps everything gives the stock model's logits."""

from __future__ import annotations

import pytest
import torch

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    InfLLM,
    Interleaved,
    TriShape,
    VerticalSlash,
    native,
)
from sparsefill.integrations.transformers import register, sparse_prefill
from sparsefill.integrations.transformers.hook import COMPILED_FROM
from tests.support.models import (
    FAMILIES,
    FULL,
    LATE_ROPE,
    WINDOW,
    WINDOWED,
    assert_logits_close,
    error,
    exact_model,
    logits_of,
    prompt,
    tiny_model,
)

N = 200
compiled_kernels = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernels in this installation"
)
EVERYTHING = {
    "a-shape": AShape(sink=0, window=N),
    "tri-shape": TriShape(sink=1, window=1, last=N),
    "vertical-slash": VerticalSlash(verticals=N, slashes=1),
    "block-topk": BlockTopK(blocks=N, block=128),
    "interleaved": Interleaved(sink=0, even=N, odd=N),
    "infllm": InfLLM(sink=0, window=64, blocks=N, block=64, queries=64),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("family", [*FULL, *LATE_ROPE])
def test_dense_runs_the_stock_kernel(family: str):
    model, ids = tiny_model(family), prompt(N, rows=2)
    stock = logits_of(model, ids)
    with sparse_prefill(model, Dense(), min_length=1, backend="torch") as run:
        assert torch.equal(logits_of(model, ids), stock)
    assert [call.path for call in run.calls] == ["stock", "stock"]


@compiled_kernels
@pytest.mark.parametrize("family", [*FULL, *LATE_ROPE])
def test_dense_by_compiled_kernels_within_the_budget(family: str):
    model, ids = tiny_model(family, "eager"), prompt(COMPILED_FROM, rows=2)
    stock, exact = logits_of(model, ids), logits_of(exact_model(family), ids)
    with sparse_prefill(model, Dense()) as run:
        assert_logits_close(logits_of(model, ids), stock, exact)
    assert [(call.path, call.backend) for call in run.calls] == [("dense", "cpu")] * 2


@pytest.mark.parametrize("family", FULL)
def test_short_prompt_runs_the_stock_kernel(family: str):
    model, ids = tiny_model(family), prompt(COMPILED_FROM - 1)
    stock = logits_of(model, ids)
    with sparse_prefill(model) as run:
        assert torch.equal(logits_of(model, ids), stock)
    assert [call.path for call in run.calls] == ["stock", "stock"]


@pytest.mark.parametrize("family", WINDOWED)
def test_dense_within_the_budget_where_layers_have_windows(family: str):
    model, ids = tiny_model(family, "eager"), prompt(N, rows=2)
    stock, exact = logits_of(model, ids), logits_of(exact_model(family), ids)
    with sparse_prefill(model, Dense(), min_length=1):
        assert_logits_close(logits_of(model, ids), stock, exact)


@pytest.mark.parametrize("family", ["mistral-window", "gemma3"])
def test_prompt_that_fits_the_window_runs_the_stock_kernel(family: str):
    model, ids = tiny_model(family), prompt(WINDOW)
    stock = logits_of(model, ids)
    with sparse_prefill(model, Dense(), min_length=1):
        assert torch.equal(logits_of(model, ids), stock)


def test_loaded_as_sparsefill(family: str):
    register()
    short, ids = prompt(COMPILED_FROM - 1), prompt(N)
    if family in FULL:
        ours = logits_of(tiny_model(family, "sparsefill"), short)
        assert torch.equal(ours, logits_of(tiny_model(family), short))
    ours = logits_of(tiny_model(family, "sparsefill"), ids)
    stock, exact = (logits_of(m, ids) for m in (tiny_model(family, "eager"), exact_model(family)))
    assert_logits_close(ours, stock, exact)


def test_loaded_as_sparsefill_reads_long_prompts_with_the_default_profile():
    register()
    ids = prompt(1100)  # fewer keys than the default budget
    stock, exact = (logits_of(m, ids) for m in (tiny_model("glm", "eager"), exact_model("glm")))
    ours = logits_of(tiny_model("glm", "sparsefill"), ids)
    assert not torch.equal(ours, logits_of(tiny_model("glm"), ids))
    assert_logits_close(ours, stock, exact)


@pytest.mark.parametrize("pattern", EVERYTHING.values(), ids=EVERYTHING)
def test_sparse_pattern_that_keeps_everything(family: str, pattern: AShape):
    model, ids = tiny_model(family, "eager"), prompt(N, rows=2)
    stock, exact = logits_of(model, ids), logits_of(exact_model(family), ids)
    with sparse_prefill(model, pattern, min_length=1) as run:
        assert_logits_close(logits_of(model, ids), stock, exact)
    sparse = [call for call in run.calls if call.path == "sparse"]
    assert len(sparse) == {"mistral-window": 0, "gemma2": 1, "gemma3": 1}.get(family, 2)
    assert all(call.density is not None and bool((call.density == 1).all()) for call in sparse)


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (8, 2)], ids="h{0[0]}g{0[1]}".format)
@pytest.mark.parametrize("pattern", [Dense(), AShape(window=N)], ids=["dense", "a-shape"])
@pytest.mark.parametrize("family", ["llama-3", "gemma2"])
def test_group_ratios(family: str, pattern: Dense, heads: tuple[int, int]):
    sizes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    model, ids = tiny_model(family, "eager", **sizes), prompt(N)
    stock, exact = logits_of(model, ids), logits_of(exact_model(family, **sizes), ids)
    with sparse_prefill(model, pattern, min_length=1):
        assert_logits_close(logits_of(model, ids), stock, exact)


def test_pattern_that_drops_cells_changes_later_logits_only(family: str):
    model, ids = tiny_model(family, "eager"), prompt(4 * N)
    stock, exact = logits_of(model, ids), logits_of(exact_model(family), ids)
    with sparse_prefill(model, AShape(sink=1, window=1), min_length=1) as run:
        ours = logits_of(model, ids)
    assert_logits_close(ours[:, :64], stock[:, :64], exact[:, :64])  # one row block: all kept
    if family == "mistral-window":  # every layer has a window, so nothing is sparse
        assert run.density == 1
        assert_logits_close(ours, stock, exact)
    else:
        assert run.density < 1
        assert error(ours[:, -1:], exact[:, -1:]) > 0.01
