"""A step is read as vLLM would read it, whoever reads which part: dense patterns change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace as Some
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefill.integrations.vllm.backend import PLAN, AttendsSparsely, PlansSparsely
from sparsefill.integrations.vllm.pages import from_cuda_pages
from sparsefill.integrations.vllm.requests import Request, Requests
from sparsefill.integrations.vllm.steps import Steps
from sparsefill.patterns import AShape, Dense, Pattern
from tests.integrations.vllm.fakes import PAGE, Common, Row, dense, rank_heads, row, step_of

H, G, D = 4, 2, 32
SCALE = D**-0.5


@dataclass
class Metadata:
    """What the stand-in of vLLM's backend makes of a step."""

    common: Common

    @property
    def block_table(self) -> Tensor:
        return self.common.block_table_tensor


class StockBuilder:
    supports_update_block_table = True

    def __init__(self, *_: Any) -> None:
        self.built = 0

    def build(
        self, common_prefix_len: int, common_attn_metadata: Common, fast_build: bool = False
    ) -> Metadata:
        self.built += 1
        return Metadata(common_attn_metadata)

    def build_for_cudagraph_capture(self, common_attn_metadata: Common) -> Metadata:
        return self.build(0, common_attn_metadata)

    def build_for_drafting(self, common_attn_metadata: Common, draft_index: int) -> Metadata:
        return self.build(0, common_attn_metadata)


class StockAttention:
    scale = SCALE
    logits_soft_cap = 0
    attn_type = "decoder"
    sliding_window = -1
    alibi_slopes = None

    def __init__(self) -> None:
        self.read: list[int] = []  # queries of each call

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Metadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        if attn_metadata is None:  # vLLM measures memory
            return output.fill_(7)
        common = attn_metadata.common
        self.read.append(common.num_actual_tokens)
        starts = common.query_start_loc.tolist()
        for i in range(common.num_reqs):
            rows = slice(starts[i], starts[i + 1])
            m = int(common.seq_lens[i])
            k, v = from_cuda_pages(kv_cache, common.block_table_tensor[i], m)
            own = dense(query[rows], k.transpose(0, 1), v.transpose(0, 1), SCALE)
            output[rows] = own.reshape(output[rows].shape)
        return output


class Attention(AttendsSparsely, StockAttention):
    gather = staticmethod(from_cuda_pages)


class Builder(PlansSparsely, StockBuilder):
    pass


def builder(pattern: Pattern, monkeypatch: pytest.MonkeyPatch, *, recall_every: int = 0) -> Any:
    """Make a builder as vLLM does, for a model of two layers."""
    told: list[Request] = []
    steps = Steps(
        heads=rank_heads(pattern, min_length=128),
        layers=[0, 1],
        page=PAGE,
        requests=Requests(recall_every, told.append),
    )
    monkeypatch.setattr("sparsefill.integrations.vllm.backend._steps_of", lambda *_: steps)
    made: Any = Builder(None, [], None, None)
    made.told = told
    return made


@dataclass
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    kv_cache: Tensor


def inputs_of(rows: list[Row], *, padding: int = 0) -> Inputs:
    """Draw a step's tensors: a cache that holds this step's keys already, as vLLM's does."""
    tokens = sum(r.queries for r in rows) + padding
    drawn = torch.randn(tokens, H, D), torch.randn(tokens, G, D), torch.randn(tokens, G, D)
    inputs = Inputs(*drawn, kv_cache=torch.randn(200, G, PAGE, 2 * D))
    at = 0
    for r in rows:
        for position in range(r.context, r.keys):
            page, slot = divmod(r.slot(position), PAGE)
            inputs.kv_cache[page, :, slot, :D] = inputs.key[at]
            inputs.kv_cache[page, :, slot, D:] = inputs.value[at]
            at += 1
    return inputs


def attend(own: Any, inputs: Inputs, metadata: Any, shape: tuple[int, ...] = (H, D)) -> Tensor:
    output = torch.zeros(len(inputs.query), *shape)
    got = own.forward(Some(), *vars(inputs).values(), metadata, output)
    assert got is output or got.data_ptr() == output.data_ptr()  # in place, as vLLM asks
    return output


MIXED = [
    row(70, 1, 2, prompt=60),
    row(0, 150, 10),
    row(0, 30, 30),
    row(133, 77, 40),
    row(99, 3, 60, prompt=90),
]
SAME: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("shape", [(H, D), (H * D,)], ids=["heads apart", "heads in one"])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize(
    "rows", [MIXED, MIXED[::-1], MIXED[1:2], MIXED[3:4]], ids=["mixed", "turned", "whole", "chunk"]
)
def test_a_dense_pattern_reads_as_vllm_does(rows, padding, shape, monkeypatch):
    made, own = builder(Dense(), monkeypatch), Attention()
    own.number = 1
    inputs = inputs_of(rows, padding=padding)
    common = step_of(rows, padding=padding)
    metadata = made.build(0, common)
    plan = getattr(metadata, PLAN)
    taken = sum(c.queries for c in plan.chunks)
    long = [r.queries for r in rows if r.queries >= 64]
    assert [c.queries for c in plan.chunks] == long
    stock = attend(StockAttention(), inputs, Metadata(common), shape)
    torch.testing.assert_close(attend(own, inputs, metadata, shape), stock, **SAME)
    left = common.num_actual_tokens - taken
    assert own.read == ([left] if left else [])  # vLLM read the others, and no more


def test_a_sparse_pattern_changes_its_own_rows_alone(monkeypatch):
    made, own = builder(AShape(sink=1, window=1), monkeypatch), Attention()
    own.number = 0
    inputs = inputs_of(MIXED)
    metadata = made.build(0, step_of(MIXED))
    got = attend(own, inputs, metadata)
    stock = attend(StockAttention(), inputs, Metadata(step_of(MIXED)))
    differs = (got - stock).abs().amax((1, 2)) > 1e-3
    mine = torch.zeros(len(got), dtype=torch.bool)
    for chunk in getattr(metadata, PLAN).chunks:
        mine[chunk.start : chunk.stop] = True
    assert not (differs & ~mine).any()
    assert (differs & mine).sum() > 0.5 * mine.sum()


def test_layers_that_we_do_not_read_are_vllms_in_the_same_step(monkeypatch):
    made, own = builder(AShape(sink=1, window=1), monkeypatch), Attention()
    inputs, common = inputs_of(MIXED), step_of(MIXED)
    metadata = made.build(0, common)
    assert own.number is None
    stock = attend(StockAttention(), inputs, Metadata(common))
    assert torch.equal(attend(own, inputs, metadata), stock)
    own.number = 0
    output = torch.zeros_like(inputs.query)
    scale = torch.ones(1)  # vLLM wants it quantised, which we do not
    forward: Any = own.forward
    got = forward(Some(), *vars(inputs).values(), metadata, output, scale)
    assert torch.equal(got, stock)


def test_nothing_is_planned_for_a_step_without_long_prompts(monkeypatch):
    made, own = builder(Dense(), monkeypatch), Attention()
    rows = [MIXED[0], MIXED[2]]
    metadata = made.build(0, step_of(rows))
    assert not hasattr(metadata, PLAN)
    assert made.built == 1
    inputs = inputs_of(rows)
    own.number = 0
    assert torch.equal(attend(own, inputs, metadata), attend(StockAttention(), inputs, metadata))
    assert attend(own, inputs, None).unique().tolist() == [7]


def test_graphs_and_drafts_are_built_without_a_plan(monkeypatch):
    made = builder(Dense(), monkeypatch)
    common = step_of(MIXED)
    assert not hasattr(made.build_for_cudagraph_capture(common), PLAN)
    assert not hasattr(made.build_for_drafting(common, 0), PLAN)
    assert not made.steps.requests.is_reading
    assert hasattr(made.build(0, common), PLAN)
    assert not made.supports_update_block_table  # a copy of metadata would keep the plan


@pytest.mark.parametrize("every", [0, 1])
def test_density_and_recall_are_told(every: int, monkeypatch):
    made = builder(AShape(sink=64, window=64), monkeypatch, recall_every=every)
    layers = [Attention(), Attention()]
    rows = [row(0, 512, prompt=512)]
    inputs = inputs_of(rows)
    metadata = made.build(0, step_of(rows))
    for number, own in enumerate(layers):
        own.number = number
        attend(own, inputs, metadata)
    made.build(0, step_of([row(512, 1, prompt=512)]))
    [request] = made.told
    assert 0.2 < request.density < 0.7
    if every:
        assert 0.2 < request.mean_recall < 0.95
    else:
        assert request.mean_recall is None


def test_a_dense_chunk_keeps_all(monkeypatch):
    made, own = builder(Dense(), monkeypatch, recall_every=1), Attention()
    own.number = 0
    rows = [row(133, 200, prompt=333)]
    attend(own, inputs_of(rows), made.build(0, step_of(rows)))
    made.build(0, step_of([row(333, 1, prompt=333)]))
    assert made.told[0].density == pytest.approx(1)
    assert made.told[0].mean_recall == pytest.approx(1, abs=1e-5)
