"""The model of prefill on several devices: limits that it must keep, and what it is fitted to."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import scaling
from benchmarks.rows import Row
from benchmarks.scaling import (
    A100,
    CPU,
    LLAMA_3_8B,
    SMOLLM2_135M,
    calibrate,
    prefill_seconds,
    shape_of,
)
from sparsefill.cost import COSTS, dense_cost, sparse_cost
from sparsefill.errors import InputError
from sparsefill.patterns import AShape, Dense, VerticalSlash
from sparsefill.profile import Profile

N = 2**17
DENSE = Profile.uniform(Dense(), shape_of(LLAMA_3_8B))
SPARSE = Profile.uniform(VerticalSlash(verticals=1000, slashes=6096), shape_of(LLAMA_3_8B))


def test_one_device_does_all_the_work():
    said = prefill_seconds(LLAMA_3_8B, DENSE, N, A100)
    parameters = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
    assert said.linear == pytest.approx(2 * parameters * N / A100.linear)
    assert said.attention == pytest.approx(4 * 128 * 32 * 32 * N * N / 2 / A100.attention, rel=1e-3)
    assert said.network == 0
    assert said.total == said.linear + said.between + said.attention


@pytest.mark.parametrize("profile", [DENSE, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize(("tensor", "context"), [(2, 1), (8, 1), (1, 2), (1, 8), (2, 4), (4, 4)])
def test_more_devices_are_faster_but_never_more_than_their_number(
    profile: Profile, tensor: int, context: int
):
    one = prefill_seconds(LLAMA_3_8B, profile, N, A100)
    many = prefill_seconds(LLAMA_3_8B, profile, N, A100, tensor=tensor, context=context)
    assert one.total / (tensor * context) < many.total < one.total
    assert many.linear == pytest.approx(one.linear / (tensor * context))
    assert many.network > 0
    if profile is DENSE:  # two pieces, front and back, share the causal half evenly
        assert many.attention == pytest.approx(one.attention / (tensor * context), rel=0.02)


def test_pieces_cover_the_prompt_once():
    for tokens, context in ((1000, 3), (N, 8), (N + 17, 5), (512, 4)):
        pieces = sorted(own for device in scaling._pieces(tokens, context) for own in device)
        assert pieces[0][0] == 0
        assert pieces[-1][1] == tokens
        assert all(a[1] == b[0] for a, b in pairwise(pieces))
        assert all(first < last for first, last in pieces)


def test_the_slowest_device_counts():
    far = Profile(
        architecture=shape_of(LLAMA_3_8B),
        layers=((*(Dense(),) * 16, *(AShape(),) * 16),) * 32,
    )
    said = prefill_seconds(LLAMA_3_8B, far, N, A100, tensor=2)
    alone = prefill_seconds(LLAMA_3_8B, DENSE, N, A100, tensor=2)
    assert said.attention == alone.attention


def test_bytes_over_the_network():
    said = prefill_seconds(LLAMA_3_8B, DENSE, N, A100, context=4)
    assert said.network == pytest.approx(32 * 2 * 8 * 128 * 2 * N * 3 / 4 / A100.link)
    said = prefill_seconds(LLAMA_3_8B, DENSE, N, A100, tensor=4)
    assert said.network == pytest.approx(32 * 2 * 2 * (3 / 4) * N * 4096 * 2 / A100.link)


@pytest.mark.parametrize(("tensor", "context", "tokens"), [(3, 1, N), (16, 1, N), (1, 8, 1000)])
def test_what_cannot_be_shared(tensor: int, context: int, tokens: int):
    with pytest.raises(InputError, match="KV heads"):
        prefill_seconds(LLAMA_3_8B, DENSE, tokens, A100, tensor=tensor, context=context)


def measured(n: int, *, between: float = 1.0, attend: float = 1.0) -> Row:
    """Make the row of a machine of exactly known rates."""
    profile = Profile.load(scaling.DEFAULT_MODEL)
    units = sum(sparse_cost(p, n, n, COSTS["cpu"]) for layer in profile.layers for p in layer)
    attending = attend * units * SMOLLM2_135M.unit_flops / 1e12
    linear = SMOLLM2_135M.linear_flops * n / CPU.linear
    linear += between * SMOLLM2_135M.moved_bytes * n / 1e10
    return Row(
        case="prefill",
        backend="cpu",
        pattern="minference",
        dtype="bf16",
        n=n,
        h=9,
        g=3,
        d=64,
        threads=2,
        environment={},
        model=scaling.DEFAULT_MODEL,
        median_s=attending + linear,
        linear_s=linear,
        attend_s=0.9 * attending,
        estimate_s=0.1 * attending,
    )


def test_rates_are_found_again():
    device = calibrate(SMOLLM2_135M, Profile.load(scaling.DEFAULT_MODEL), measured(8192), CPU)
    assert device.memory == pytest.approx(1e10)
    assert device.attention == pytest.approx(1e12)
    with pytest.raises(InputError, match="less than the linear layers take"):
        calibrate(
            SMOLLM2_135M,
            Profile.load(scaling.DEFAULT_MODEL),
            replace(measured(8192), linear_s=1e-3),
            CPU,
        )
    with pytest.raises(InputError, match="with its stages"):
        calibrate(SMOLLM2_135M, SPARSE, replace(measured(8192), linear_s=None), CPU)


def seconds(n: int, **changed: float) -> float:
    """Return the seconds of a row."""
    return measured(n, **changed).median_s or 0.0


def test_the_command(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    rows = [measured(8192), measured(32768), measured(131072, between=2, attend=2)]
    others = ({"model": "another"}, {"pattern": "a-shape"}, {"pattern": "dense"}, {"model": None})
    rows += [replace(measured(8192, attend=3), **other) for other in others]
    file.write_text("\n".join(json.dumps(asdict(row)) for row in rows), "utf-8")
    app = typer.Typer()
    app.command()(scaling.main)
    result = CliRunner().invoke(app, [str(file)])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if "in one piece" in line]
    off = [int(line.split()[-2].rstrip("%")) for line in lines]
    assert len(off) == 3
    assert off[:2] == [0, 0]
    assert off[2] == pytest.approx(
        100 * (seconds(131072) / seconds(131072, between=2, attend=2) - 1), abs=1
    )
    assert "H100, 1,048,576 tokens" in result.output
    assert CliRunner().invoke(app, [str(file), "--at", "77"]).exit_code == 2


def test_a_dense_unit_is_the_cost_models():
    assert sparse_cost(Dense(), N, N, COSTS["triton"]) == dense_cost(N, N)
