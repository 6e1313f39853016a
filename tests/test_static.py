"""Static indices: what one prompt kept, cut to other prompts."""

from __future__ import annotations

import pytest
import torch

from sparsefill import InputError, SparseIndex, UnsupportedError, attend, estimate
from sparsefill.static import StaticIndices
from tests.support.inputs import PATTERNS, causal_mask, patterns_of, random_qkv

N = 500
NAMES = [name for name in PATTERNS if name != "tri-shape"]


def kept(name: str, h: int = 6) -> StaticIndices:
    q, k, _ = random_qkv(h=h, g=2, n=N)
    patterns = [p for p in patterns_of(name, h + 1) if p.name != "tri-shape"][:h]
    return StaticIndices(layers={3: estimate(patterns, q, k)})


def index_of(static: StaticIndices, *lengths: int, queries: list[int] | None = None) -> SparseIndex:
    keys = torch.tensor(lengths, dtype=torch.int32)
    own = keys if queries is None else torch.tensor(queries, dtype=torch.int32)
    return static.index(3, n=int(own.max()), m=int(keys.max()), query_lengths=own, key_lengths=keys)


@pytest.mark.parametrize("n", [500, 499, 448, 65, 1])
@pytest.mark.parametrize("name", [*NAMES, "mixed"])
def test_a_shorter_prompt_keeps_the_same_cells(name: str, n: int):
    static = kept(name)
    index = index_of(static, n)
    index.check_lists()
    whole = static.layers[3].to_mask()[:, :, :n, :n]
    mask = index.to_mask()
    last = -(-n // 64) * 64 > n and n < N  # a row block that ends elsewhere reads other tiles
    rows = n // 64 * 64 if last else n
    assert torch.equal(mask[:, :, :rows], whole[:, :, :rows])
    assert not bool((mask & ~causal_mask(n, n)).any())


@pytest.mark.parametrize("name", [*NAMES, "mixed"])
def test_each_sequence_of_a_batch_is_cut_for_itself(name: str):
    static = kept(name)
    together = index_of(static, 480, 130, 64).to_mask()
    for s, n in enumerate((480, 130, 64)):
        alone = torch.zeros_like(together[:1])
        alone[:, :, :n, :n] = index_of(static, n).to_mask()
        assert torch.equal(together[s : s + 1], alone)


@pytest.mark.parametrize("name", [*NAMES, "mixed"])
def test_every_backend_accepts_what_was_cut(name: str):
    static, (q, k, v) = kept(name), random_qkv(h=6, g=2, n=130)
    index = index_of(static, 130)
    expected = attend(q, k, v, index, backend="reference")
    torch.testing.assert_close(attend(q, k, v, index), expected, rtol=1e-4, atol=1e-4)


def test_lines_serve_queries_after_cached_keys():
    static = kept("vertical-slash")
    mask = index_of(static, 448, queries=[128]).to_mask()
    assert torch.equal(mask, static.layers[3].to_mask()[:, :, 320:448, :448])


def test_what_cannot_be_served_is_refused():
    with pytest.raises(InputError, match="kept from 500 tokens, got 501"):
        index_of(kept("vertical-slash"), 501)
    with pytest.raises(UnsupportedError, match="need whole prompts"):
        index_of(kept("block-topk"), 448, queries=[128])
    one = torch.ones(1, dtype=torch.int32)
    with pytest.raises(InputError, match="hold no layer 4"):
        kept("dense").index(4, n=1, m=1, query_lengths=one, key_lengths=one)
