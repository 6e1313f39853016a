"""Decoding with some of the keys: those that are dropped are gone, the others stay in place."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.integrations.transformers import snapkv
from sparsefill.integrations.transformers.answering import TransformersReader
from sparsefill.patterns import AShape, Dense
from sparsefill.reader import Method
from tests.support.models import prompt, tiny_model

N, KEPT = 300, 100
FULL = Method(name="full", cells=Dense())
SOME = Method(name="full+snapkv=100", cells=Dense(), keys=KEPT)
ids = prompt(N)[0].tolist()


@dataclass
class LastKeys:
    """Stands in for kvpress: keeps the last keys."""

    compression_ratio: float
    window_size: int
    kernel_size: int

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        def drop(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            layer = kwargs["past_key_values"].layers[module.layer_idx]
            kept = int(layer.keys.shape[2] * (1 - self.compression_ratio))
            layer.keys, layer.values = layer.keys[:, :, -kept:], layer.values[:, :, -kept:]

        layers = [layer.self_attn for layer in model.model.layers]
        handles = [own.register_forward_hook(drop, with_kwargs=True) for own in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@pytest.fixture
def last_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapkv, "requires", lambda name: ["transformers>=4"])
    monkeypatch.setitem(sys.modules, "kvpress", SimpleNamespace(SnapKVPress=LastKeys))


def reader_of(family: str = "llama-3") -> TransformersReader:
    return TransformersReader(model=tiny_model(family), backend="torch")


def logits_after(model: Any, more: list[int]) -> torch.Tensor:
    """Read prompt and more, whose rows see the last keys of the prompt, and each other."""
    n = N + len(more)
    seen = torch.ones(n, n).tril().bool()
    seen[N:, : N - KEPT] = False
    with torch.no_grad():
        return model(torch.tensor([ids + more]), attention_mask=seen[None, None]).logits[0, N:]


@pytest.mark.usefixtures("last_keys")
@pytest.mark.parametrize("family", ["llama-3", "llama-3.1", "qwen2", "phi3"])
def test_keys_keep_their_distance_to_what_is_decoded(family: str):
    reader = reader_of(family)
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


@pytest.mark.usefixtures("last_keys")
def test_a_prompt_with_no_more_keys_than_are_kept_is_read_as_without():
    reader, whole = reader_of(), Method(name="", cells=Dense(), keys=N)
    assert (
        reader.answer(whole, ids, new_tokens=6).tokens
        == reader.answer(FULL, ids, new_tokens=6).tokens
    )


@pytest.mark.usefixtures("last_keys")
def test_fidelity_is_judged_against_decoding_with_all_keys():
    reader = reader_of()
    compared = reader.compare(SOME, ids, positions=4, new_tokens=6)
    assert torch.equal(compared.full.logits, compared.own.logits)
    assert compared.full.answer == reader.answer(FULL, ids, new_tokens=6).tokens
    assert compared.own.answer == reader.answer(SOME, ids, new_tokens=6).tokens
    assert compared.own.answer != compared.full.answer


def test_losses_of_a_prompt_are_not_told_by_decoding():
    with pytest.raises(InputError, match=r"know nothing of decoding, got full\+snapkv=100"):
        reader_of().losses(SOME, ids)


@pytest.mark.usefixtures("last_keys")
def test_keys_that_were_not_dropped_are_found_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LastKeys, "__call__", lambda self, model: contextmanager(iter)([None]))
    with pytest.raises(UnsupportedError, match=r"should leave 100 keys in each layer, got \[300\]"):
        reader_of().answer(SOME, ids, new_tokens=1)


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        (None, r"needs kvpress; run: pip install 'sparsefill\[snapkv\]'"),
        (["numpy", "transformers<4,>=3"], r"kvpress 9 needs transformers<4,>=3, got \d"),
    ],
)
def test_what_is_missing_is_told(
    needed: list[str] | None, said: str, monkeypatch: pytest.MonkeyPatch
):
    def requires(name: str) -> list[str]:
        if needed is None:
            raise PackageNotFoundError(name)
        return needed

    monkeypatch.setattr(snapkv, "requires", requires)
    monkeypatch.setattr(snapkv, "version", lambda name: "9")
    with pytest.raises(UnsupportedError, match=said):
        reader_of().answer(SOME, ids, new_tokens=1)


@pytest.mark.skipif(not importlib.util.find_spec("kvpress"), reason="kvpress is not installed")
@pytest.mark.filterwarnings("ignore:'pipes' is deprecated:DeprecationWarning")  # of its imports
@pytest.mark.parametrize("family", ["llama-3", "qwen2", "phi3"])
def test_kvpress_keeps_what_the_last_queries_attend_to(family: str):
    reader = reader_of(family)
    for cells in (Dense(), AShape(sink=4, window=64)):
        method = Method(name="some", cells=cells, keys=KEPT)
        read = reader._read(method, ids)
        whole = reader._read(Method(name="all", cells=cells), ids)
        for own, every in zip(read.cache.layers, whole.cache.layers, strict=True):
            assert own.keys.shape[2] == own.values.shape[2] == KEPT
            for head in range(2):  # each a key of the prompt, the last ones among them
                places = [
                    int((every.keys[0, head] - key).norm(dim=-1).argmin())
                    for key in own.keys[0, head]
                ]
                torch.testing.assert_close(own.keys[0, head], every.keys[0, head, places])
                torch.testing.assert_close(own.values[0, head], every.values[0, head, places])
                assert {*range(N - snapkv.WINDOW, N)} <= {*places}
        torch.testing.assert_close(read.logits, whole.logits)
        assert len(reader.answer(method, ids, new_tokens=6).tokens) == 6
    model: Any = reader.model
    assert not model.model.layers[0].self_attn._forward_hooks
