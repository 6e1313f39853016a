"""Each rank takes its slice of a profile's heads."""

from __future__ import annotations

import pytest

from sparsefill.errors import InputError, ProfileError
from sparsefill.integrations.vllm.heads import RankHeads, profile_of
from sparsefill.integrations.vllm.options import Options
from sparsefill.patterns import AShape, Dense
from sparsefill.profile import Architecture, Profile, default_profile
from tests.integrations.vllm.fakes import SHAPE, rank_heads

SPARSE = AShape(sink=64, window=64)


def distinct(architecture: Architecture) -> Profile:
    """Make a profile that gives every head of every layer a window of its own."""
    layers = tuple(
        tuple(
            AShape(sink=64, window=64 * (1 + layer * architecture.heads + head))
            for head in range(architecture.heads)
        )
        for layer in range(architecture.layers)
    )
    return Profile(architecture=architecture, layers=layers)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_share_out_the_query_heads(ranks: int):
    # 8 ranks of 2 KV heads: vLLM repeats those, and each rank has one query head all the same
    profile = distinct(Architecture(layers=2, heads=8, kv_heads=2, head_dim=32))
    count = 8 // ranks
    for layer in (0, 1):
        own = [
            RankHeads(
                profile=profile, first=rank * count, count=count, min_length=1, backend="torch"
            ).patterns(layer, 64, 64)
            for rank in range(ranks)
        ]
        assert sum(own, ()) == profile[layer]


def test_short_prompts_stay_dense():
    heads = rank_heads(SPARSE, min_length=1000)
    assert heads.patterns(0, 64, 999) == (Dense(),) * 4
    assert heads.patterns(0, 64, 1000) == (SPARSE,) * 4
    assert not heads.pays([0, 1], 999, 999)
    assert heads.pays([0, 1], 1000, 1000)
    assert heads.pays([0], 64, 1000)
    assert not heads.pays([0], 63, 1000)  # less than a row block


def test_where_it_pays_is_predicted():
    heads = rank_heads(AShape(sink=64, window=256), min_length=None)
    assert not heads.pays([0, 1], 256, 256)
    assert heads.pays([0, 1], 16384, 16384)
    assert not rank_heads(Dense(), min_length=None).pays([0, 1], 16384, 16384)


def test_only_layers_of_the_rank_count():
    layers = ((Dense(),) * 4, (AShape(sink=64, window=256),) * 4)
    heads = RankHeads(
        profile=Profile(architecture=SHAPE, layers=layers),
        first=0,
        count=4,
        min_length=None,
        backend="torch",
    )
    assert not heads.pays([0], 16384, 16384)
    assert heads.pays([1], 16384, 16384)


def test_options_name_a_profile(tmp_path):
    assert profile_of(Options(), SHAPE) == default_profile(SHAPE)
    assert profile_of(Options(pattern="a-shape:sink=64,window=64"), SHAPE)[1] == (SPARSE,) * 4
    distinct(SHAPE).save(tmp_path / "own.json")
    assert profile_of(Options(profile=str(tmp_path / "own.json")), SHAPE) == distinct(SHAPE)


def test_a_profile_that_does_not_fit_is_refused(tmp_path):
    other = Architecture(layers=2, heads=8, kv_heads=2, head_dim=32)
    distinct(other).save(tmp_path / "other.json")
    with pytest.raises(ProfileError, match="heads=8, got heads=4"):
        profile_of(Options(profile=str(tmp_path / "other.json")), SHAPE)
    with pytest.raises(ProfileError, match="no profile"):
        profile_of(Options(profile="nowhere.json"), SHAPE)
    with pytest.raises(InputError):
        profile_of(Options(pattern="a-shpe"), SHAPE)
