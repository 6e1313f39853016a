"""The AMX kernels against the oracle: on a CPU that has AMX, or with its tiles emulated.

CONTRIBUTING.md says how to build the emulation. It shows that the products are right and
that tile registers are configured, used and released as Intel's manual asks; it says
nothing about speed, and the kernels were never run on hardware.
"""

from __future__ import annotations

import pytest
import torch

from sparsefill import Attended, SparseIndex, VerticalSlash, abi, attend, estimate
from tests.support.closeness import assert_attended
from tests.support.inputs import Qkv, patterns_of, random_qkv

pytestmark = pytest.mark.skipif(
    not abi.instruction_sets().get("amx", False),
    reason="no AMX, and none emulated (see CONTRIBUTING.md)",
)

DIMS = (8, 32, 40, 64, 72, 80, 96, 128, 256)
LENGTHS = ((1, 1), (64, 64), (63, 65), (300, 300), (200, 333), (300, 100), (64, 20))
MATHS = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "negative": {"scale": -0.3},
    "both": {"scale": -0.3, "softcap": 2.0},
}


def mixed(n: int, m: int, d: int, *, shared: bool = False) -> tuple[Qkv, SparseIndex]:
    """Make inputs and an index with another pattern for each head."""
    b = 2 if n > 1 else 6  # enough rows for the error budget to mean something
    qkv = random_qkv(b=b, h=6, g=2, n=n, m=m, d=d, dtype=torch.bfloat16)
    step = 3 if shared else 1
    return qkv, estimate(patterns_of("mixed", 6 // step), qkv.q[:, ::step], qkv.k)


def both(qkv: Qkv, index: SparseIndex) -> tuple[Attended, Attended]:
    """Attend with tile registers, and with vectors alone."""
    tiles = attend(*qkv, index, backend="cpu-amx")
    return tiles, attend(*qkv, index, backend="cpu-avx512bf16")


@pytest.mark.parametrize("maths", MATHS.values(), ids=MATHS)
@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize("d", DIMS)
def test_stays_within_the_error_budget(
    d: int, n: int, m: int, shared: bool, maths: dict[str, float]
):
    qkv, index = mixed(n, m, d, shared=shared)
    got = attend(*qkv, index, backend="cpu-amx", **maths)
    assert_attended(got, qkv, index, **maths)


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("pattern", ["dense", "tri-shape", "vertical-slash"])
def test_heads_of_a_group_share_their_tiles(pattern: str, d: int):
    qkv = random_qkv(b=2, h=6, g=2, n=200, m=333, d=d, dtype=torch.bfloat16)
    index = estimate(patterns_of(pattern, 2), qkv.q[:, ::3], qkv.k)
    assert_attended(attend(*qkv, index, backend="cpu-amx"), qkv, index)


@pytest.mark.parametrize("d", DIMS)
def test_gathers_columns(d: int):
    qkv = random_qkv(b=2, h=6, g=2, n=300, d=d, dtype=torch.bfloat16)
    columns = VerticalSlash(verticals=150, slashes=1, probe=20, sink=2, window=3)
    index = estimate(columns, qkv.q, qkv.k)
    assert_attended(attend(*qkv, index, backend="cpu-amx"), qkv, index)


@pytest.mark.parametrize("d", DIMS)
def test_scores_are_those_of_vectors_but_for_float32_rounding(d: int):
    qkv, index = mixed(300, 300, d)
    tiles, vectors = both(qkv, index)
    torch.testing.assert_close(tiles.lse, vectors.lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("d", [40, 64])
def test_reads_heads_last_layouts(d: int):
    qkv, index = mixed(200, 333, d)
    views = qkv.map(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2))
    assert_attended(attend(*views, index, backend="cpu-amx"), qkv, index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_types_keep_their_vectors(dtype: torch.dtype):
    qkv, index = mixed(200, 333, 80)
    qkv = qkv.to(dtype)
    tiles, vectors = both(qkv, index)
    assert torch.equal(tiles.out, vectors.out)
    assert torch.equal(tiles.lse, vectors.lse)
