"""What an evaluation learns of a model is what the model itself says."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.integrations.transformers import sparse_prefill
from sparsefill.integrations.transformers.answering import (
    ROWS,
    STATIC,
    TransformersReader,
    end_tokens,
)
from sparsefill.patterns import AShape, Dense, VerticalSlash
from sparsefill.reader import Method, Reader
from tests.support.models import LATE_ROPE, SIZES, generate, logits_in_chunks, prompt, tiny_model

N = 300
FULL = Method(name="full", cells=Dense())
SPARSE = Method(name="a-shape", cells=AShape(sink=4, window=64))
LINES = Method(name="lines", cells=VerticalSlash(verticals=20, slashes=70, sink=4, window=64))
CHUNKED = Method(name="lines@128", cells=LINES.cells, chunk=128)
FAMILIES = ("llama-3", "qwen2", "gemma3")


def reader_of(family: str = "llama-3", **options) -> TransformersReader:
    return TransformersReader(model=tiny_model(family), backend="torch", **options)


def ids_of(n: int = N) -> list[int]:
    return prompt(n)[0].tolist()


def test_it_is_a_reader():
    assert isinstance(reader_of(), Reader)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_attention_answers_as_the_model_generates(family: str):
    reader = reader_of(family)
    expected, _ = generate(reader.model, prompt(N))
    answered = reader.answer(FULL, ids_of(), new_tokens=8)
    assert answered.tokens == expected[0, N:].tolist()
    assert answered.prefill.density == 1
    assert answered.prefill.ttft_s > 0


def test_an_answer_ends_before_the_token_that_ends_texts():
    reader = reader_of()
    first, second, *_ = reader.answer(FULL, ids_of(), new_tokens=6).tokens
    assert first != second
    generation: Any = reader.model.generation_config
    generation.eos_token_id = [second, 5]
    assert end_tokens(reader.model) == {second, 5}
    assert reader.answer(FULL, ids_of(), new_tokens=6).tokens == [first]
    generation.eos_token_id = first
    assert reader.answer(FULL, ids_of(), new_tokens=6).tokens == []


def test_an_answer_that_is_settled_is_decoded_no_further():
    reader = reader_of()
    whole = reader.answer(FULL, ids_of(), new_tokens=6).tokens
    told: list[list[int]] = []

    def settled(tokens: list[int]) -> bool:
        told.append(list(tokens))
        return len(tokens) == 2

    assert reader.answer(FULL, ids_of(), new_tokens=6, settled=settled).tokens == whole[:2]
    assert told == [whole[:1], whole[:2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_share_a_prefill_and_do_not_see_each_other(family: str):
    reader, ids = reader_of(family), ids_of()
    more = prompt(40, seed=1)[0].tolist()
    continuations = [(more[:20], 12), (more[20:], 19), (more[:20], 12)]
    followed, prefill = reader.follow(FULL, ids, continuations)
    assert prefill.density == 1
    for (tokens, judged), (losses, right) in zip(continuations, followed, strict=True):
        with torch.inference_mode():
            logits = reader.model(torch.tensor([ids + tokens])).logits[0, -judged - 1 : -1]
        expected = torch.tensor(tokens[-judged:])
        own = cross_entropy(logits.double(), expected, reduction="none")
        torch.testing.assert_close(losses, own, rtol=1e-4, atol=1e-4)
        assert torch.equal(right, logits.argmax(-1) == expected)


@pytest.mark.parametrize("n", [2, 65, N, ROWS + 1, ROWS + 2])
def test_losses_are_those_of_all_logits_together(n: int):
    reader, ids = reader_of(), ids_of(n)
    losses, _ = reader.losses(FULL, ids)
    with torch.inference_mode():
        logits = reader.model(torch.tensor([ids])).logits[0]
    expected = cross_entropy(logits[:-1].double(), torch.tensor(ids[1:]), reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    assert losses.dtype == torch.float64


def test_losses_of_a_model_in_bfloat16_come_from_logits_in_float32():
    reader, ids = reader_of(), ids_of()
    reader.model.to(torch.bfloat16)
    head: Any = reader.model.get_submodule("lm_head")
    losses, _ = reader.losses(FULL, ids)
    with torch.inference_mode():
        hidden = reader.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        logits = hidden[0, :-1].double() @ head.weight.double().T
    expected = cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    assert head.weight.dtype == torch.bfloat16


def test_a_model_that_changes_its_logits_afterwards_is_refused():
    model = tiny_model("gemma2", attention="eager", final_logit_softcapping=0.5)
    reader = TransformersReader(model=model, backend="torch")
    with pytest.raises(UnsupportedError, match="after the output projection"):
        reader.losses(FULL, ids_of())
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary():
    reader = reader_of()
    head: Any = reader.model.get_submodule("lm_head")
    head.weight.data.zero_()
    losses, _ = reader.losses(FULL, ids_of(ROWS + 70))
    assert len(losses) == ROWS + 69
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(128)))


def test_a_sparse_method_keeps_less_and_predicts_otherwise():
    reader = reader_of(measure_recall=True)
    compared = reader.compare(SPARSE, ids_of(), positions=8, new_tokens=3)
    assert compared.prefill.density < 0.8
    assert compared.prefill.recall is not None
    assert 0 < compared.prefill.recall < 1
    assert compared.full.logits.shape == compared.own.logits.shape == (8, 128)
    assert not torch.equal(compared.full.logits, compared.own.logits)
    assert len(compared.own.answer) == len(compared.full.answer) == 3
    same = reader.compare(FULL, ids_of(), positions=8, new_tokens=3)
    assert torch.equal(same.full.logits, same.own.logits)
    torch.testing.assert_close(same.own.logits, compared.full.logits, rtol=0, atol=0)


def by_hand_in_chunks(
    reader: TransformersReader, ids: list[int], ends: list[int]
) -> tuple[Tensor, float]:
    """Read a prompt chunk by chunk: all logits, and the density of the first layer's cells."""
    sizes = [end - start for start, end in pairwise([0, *ends[:-1]])]
    with sparse_prefill(reader.model, CHUNKED.cells, backend="torch", min_length=1) as run:
        logits = logits_in_chunks(reader.model, torch.tensor([ids]), sizes)[0]
    kept = sum(
        float(call.density.mean()) * (call.n * (call.m - call.n) + call.n * (call.n + 1) / 2)
        for call in run.calls
        if call.density is not None
    )
    assert len(run.calls) == 2 * len(ends)  # of both layers, and all sparse
    return logits, kept / 2 / (len(ids) * (len(ids) + 1) / 2)


@pytest.mark.parametrize(
    ("n", "ends"),
    [(128, [128]), (191, [191]), (192, [128, 192]), (300, [128, 300]), (454, [128, 256, 384, 454])],
    ids=["one", "too-few-left", "enough-left", "some-too-few-left", "many"],
)
def test_a_method_in_chunks_finds_cells_for_each(n: int, ends: list[int]):
    reader, ids = reader_of(), ids_of(n)
    logits, density = by_hand_in_chunks(reader, ids, ends)
    losses, prefill = reader.losses(CHUNKED, ids)
    expected = cross_entropy(logits[:-1].double(), torch.tensor(ids[1:]), reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert prefill.density == pytest.approx(density, rel=1e-6)
    answered = reader.answer(CHUNKED, ids, new_tokens=4)
    assert answered.tokens[0] == int(logits[-1].argmax())
    assert answered.prefill.density == pytest.approx(density, rel=1e-6)
    positions = 100  # more than some last chunks hold
    compared = reader.compare(CHUNKED, ids, positions=positions, new_tokens=4)
    torch.testing.assert_close(compared.own.logits, logits[-positions:], rtol=1e-4, atol=1e-4)
    assert float(compared.heads.density.mean()) == pytest.approx(density, rel=1e-6)
    assert compared.own.answer == answered.tokens
    continuation = (prompt(20, seed=1)[0].tolist(), 12)
    assert reader.follow(CHUNKED, ids, [continuation])[1].density == pytest.approx(density)
    if len(ends) > 2:  # other cells than in one piece: queries of all chunks probe
        assert not torch.allclose(losses, reader.losses(LINES, ids)[0], atol=1e-3)


@pytest.mark.parametrize("family", [*FAMILIES, *LATE_ROPE])
def test_full_attention_in_chunks_is_full_attention(family: str):
    chunked = Method(name="full@128", cells=Dense(), chunk=128)
    losses, prefill = reader_of(family).losses(chunked, ids_of())  # some embeddings remember
    whole, _ = reader_of(family).losses(FULL, ids_of())
    torch.testing.assert_close(losses, whole, rtol=1e-4, atol=1e-5)
    assert prefill.density == 1
    first, second = (
        reader_of(family).answer(one, ids_of(), new_tokens=6).tokens for one in (FULL, chunked)
    )
    assert first == second
    compared = reader_of(family).compare(chunked, ids_of(), positions=8, new_tokens=2)
    assert compared.full is not compared.own  # the reference is read in one piece


def test_density_counts_windows_as_in_one_piece():
    reader, ids = reader_of("gemma3"), ids_of(512)
    own, whole = (
        reader.answer(Method(name="", cells=SPARSE.cells, chunk=chunk), ids, new_tokens=1).prefill
        for chunk in (128, None)
    )
    assert own.density == pytest.approx(whole.density, abs=0.02)  # an A-shape is rounded to tiles
    assert whole.density < 0.9


def test_a_model_that_may_forget_the_chunk_before_is_refused():
    hybrid = {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
    config = transformers.JambaConfig(**SIZES, **hybrid, num_experts=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    reader = TransformersReader(model=model, backend="torch")
    with pytest.raises(UnsupportedError, match="needs causal attention in every layer, got 1 of 2"):
        reader.losses(Method(name="full@128", cells=Dense(), chunk=128), ids_of())


def test_static_cells_come_from_another_text():
    static = Method(name="static", cells=VerticalSlash(verticals=9, slashes=70), static=True)
    with pytest.raises(InputError, match="another text, got none"):
        reader_of().answer(static, ids_of(), new_tokens=1)
    reader = reader_of(other=lambda n: prompt(n, seed=3))
    first = reader.answer(static, ids_of(), new_tokens=2)
    assert first.prefill.density < 1
    assert reader.answer(static, ids_of(), new_tokens=2).tokens == first.tokens
    assert len(reader._frozen) == 1


def test_static_cells_depend_on_no_other_prompt():
    static = Method(name="static", cells=VerticalSlash(verticals=9, slashes=70), static=True)
    asked: list[int] = []

    def other(tokens: int):
        asked.append(tokens)
        return prompt(tokens, seed=3)

    alone, both = reader_of(other=other), reader_of(other=other)
    both.answer(static, ids_of(STATIC + 1), new_tokens=1)
    told = [own.losses(static, ids_of())[0] for own in (alone, both)]
    assert torch.equal(*told)
    assert sorted(set(asked)) == [STATIC, 2 * STATIC]


@pytest.mark.parametrize("ask", ["answer", "losses", "follow", "compare"])
def test_logits_that_are_no_numbers_are_refused(ask: str):
    reader, ids = reader_of(), ids_of()
    norm: Any = reader.model.get_submodule("model.norm")
    norm.weight.data.fill_(torch.nan)
    settings: dict[str, dict[str, Any]] = {
        "answer": {"new_tokens": 1},
        "losses": {},
        "follow": {"continuations": [([1, 2], 1)]},
        "compare": {"positions": 2, "new_tokens": 1},
    }
    with pytest.raises(InputError, match="must be finite, got NaN"):
        getattr(reader, ask)(FULL, ids, **settings[ask])


def test_losses_by_static_cells_are_those_of_the_prompt():
    everything = VerticalSlash(verticals=N, slashes=N)
    static = Method(name="static", cells=everything, static=True)
    losses, _ = reader_of(other=lambda n: prompt(n, seed=3)).losses(static, ids_of())
    torch.testing.assert_close(losses, reader_of().losses(FULL, ids_of())[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ask", ["answer", "losses", "follow"])
def test_what_cannot_be_asked(ask: str):
    reader = reader_of()
    calls = {
        "answer": lambda: reader.answer(FULL, [], new_tokens=1),
        "losses": lambda: reader.losses(FULL, [3]),
        "follow": lambda: reader.follow(FULL, ids_of(), [([3, 4], 2)]),
    }
    with pytest.raises(InputError, match="at least"):
        calls[ask]()
