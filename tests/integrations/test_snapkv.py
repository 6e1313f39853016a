"""Decoding with some of the keys: which are kept, and where they stand for what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.integrations.transformers import snapkv
from sparsefill.integrations.transformers.answering import TransformersReader
from sparsefill.patterns import AShape, Dense
from sparsefill.reader import Method
from tests.support.models import exact_model, prompt, tiny_model

N, KEPT = 300, 100
FULL = Method(name="full", cells=Dense())
SOME = Method(name="full+snapkv=100", cells=Dense(), keys=KEPT)
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama-3", {}),
    ("llama-3.1", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("phi3", {"sliding_window": 2000}),  # of which nothing is seen here
    ("phi3", {"partial_rotary_factor": 0.5}),
    ("glm4", {}),
    ("gemma2", {"sliding_window": 2000}),  # bounds its scores
    ("longrope", {}),
]
ids = prompt(N)[0].tolist()


def reader_of(family: str = "llama-3", **options: Any) -> TransformersReader:
    attention = "eager" if family.startswith("gemma2") else "sdpa"
    return TransformersReader(model=tiny_model(family, attention, **options), backend="torch")


def shares_of(weights: Tensor, groups: int) -> Tensor:
    """Score keys as the paper does, of all attention weights (1, h, n, n); one row a key head."""
    last = weights[0, :, -32:, :-32].mean(1)
    spread = sum(torch.nn.functional.pad(last, (2, 2))[:, i : i + N - 32] for i in range(5)) / 5
    return torch.as_tensor(spread).unflatten(0, (groups, -1)).mean(1)


@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_the_keys_that_the_last_queries_attend_to_are_kept(family: str, options: dict[str, Any]):
    reader = reader_of(family, **options)
    read, whole = reader._read(SOME, ids), reader._read(FULL, ids)
    assert torch.equal(read.logits, whole.logits)
    with torch.no_grad():
        exact = exact_model(family, **options)(torch.tensor([ids]), output_attentions=True)
    for own, every, weights in zip(
        read.cache.layers, whole.cache.layers, exact.attentions, strict=True
    ):
        assert own.keys.shape == own.values.shape == (1, 2, KEPT, every.keys.shape[3])
        for head, shares in enumerate(shares_of(weights, groups=2)):
            keys, kept = every.keys[0, head], own.keys[0, head]
            places = torch.cdist(kept, keys).argmin(-1)
            assert torch.equal(kept, keys[places])
            assert torch.equal(own.values[0, head], every.values[0, head, places])
            assert places.tolist() == sorted(set(places.tolist()))
            assert places[-32:].tolist() == [*range(N - 32, N)]
            chosen = torch.zeros(N - 32).bool()
            chosen[places[:-32]] = True
            assert shares[chosen].min() >= shares[~chosen].max() - 1e-6


def test_the_keys_of_a_sparse_prefill_are_kept_too():
    reader, cells = reader_of(), AShape(sink=4, window=64)
    read = reader._read(Method(name="some", cells=cells, keys=KEPT), ids)
    whole = reader._read(Method(name="all", cells=cells), ids)
    last = read.cache.layers[1].keys[0, 0, -32:]
    assert torch.equal(last, whole.cache.layers[1].keys[0, 0, -32:])
    assert not torch.equal(last, reader._read(FULL, ids).cache.layers[1].keys[0, 0, -32:])
    assert read.run.density < 0.6


@pytest.fixture
def last_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the last keys, which a mask can say for all heads and layers."""

    def last(q: Tensor, k: Tensor, keys: int, **_: Any) -> Tensor:
        return torch.arange(k.shape[2] - keys, k.shape[2]).expand(k.shape[1], -1)

    monkeypatch.setattr(snapkv, "chosen_keys", last)


def logits_after(model: Any, more: list[int]) -> Tensor:
    """Read prompt and more, whose rows see the last keys of the prompt, and each other."""
    n = N + len(more)
    hidden = torch.ones(n, n).triu(1).bool()
    hidden[N:, : N - KEPT] = True
    mask = torch.zeros(1, 1, n, n).masked_fill(hidden, torch.finfo(torch.float32).min)
    with torch.no_grad():
        return model(torch.tensor([ids + more]), attention_mask=mask).logits[0, N:]


@pytest.mark.usefixtures("last_keys")
@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_keys_keep_their_distance_to_what_is_decoded(family: str, options: dict[str, Any]):
    reader = reader_of(family, **options)
    answer = reader.answer(SOME, ids, new_tokens=6).tokens
    assert answer[:1] == reader.answer(FULL, ids, new_tokens=1).tokens  # told by the prompt
    assert answer[1:] == logits_after(reader.model, answer[:-1]).argmax(-1).tolist()
    more = prompt(20, seed=1)[0].tolist()
    for _ in range(2):  # continuations do not see each other
        (followed,), prefill = reader.follow(SOME, ids, [(more, 12)])
        own = cross_entropy(
            logits_after(reader.model, more)[-13:-1].double(),
            torch.tensor(more[-12:]),
            reduction="none",
        )
        torch.testing.assert_close(followed.losses, own, rtol=1e-4, atol=1e-4)
        assert prefill.density == 1


def test_a_prompt_with_no_more_keys_than_are_kept_is_answered_as_without():
    for family in ("llama-3", "gemma2"):
        reader, whole = reader_of(family), Method(name="", cells=Dense(), keys=N)
        expected = reader.answer(FULL, ids, new_tokens=6).tokens
        assert reader.answer(whole, ids, new_tokens=6).tokens == expected


def test_predictions_within_a_prompt_are_not_told_by_decoding():
    reader = reader_of()
    said = r"know nothing of decoding, got full\+snapkv=100"
    with pytest.raises(InputError, match=said):
        reader.losses(SOME, ids)
    with pytest.raises(InputError, match=said):
        reader.compare(SOME, ids, positions=4, new_tokens=6)


@pytest.mark.parametrize("family", ["mistral-window", "gemma2", "gemma3"])
def test_layers_that_see_a_window_alone_are_refused(family: str):
    with pytest.raises(UnsupportedError, match="layer 0 attends to the last 48 tokens"):
        reader_of(family).answer(SOME, ids, new_tokens=1)
    reader = reader_of("mistral", sliding_window=310)
    assert len(reader.answer(SOME, ids, new_tokens=10).tokens) == 10
    with pytest.raises(UnsupportedError, match="among all keys of prompt and answer, 311"):
        reader.answer(SOME, ids, new_tokens=11)
    with pytest.raises(UnsupportedError, match="among all keys of prompt and answer, 320"):
        reader.follow(SOME, ids, [([5] * 20, 12), ([5] * 9, 2)])


def test_a_cache_without_the_keys_of_each_layer_is_refused():
    keeping = snapkv.Keeping(KEPT, N, {0: torch.zeros(2, KEPT).long()})
    for cache in (None, reader_of()._read(FULL, ids).cache):
        with pytest.raises(UnsupportedError, match="each of the 1 attention layers, got"):
            keeping.keep(cache)
