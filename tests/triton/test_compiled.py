"""The Triton kernels as compilers for four GPUs make them, without any GPU."""

from __future__ import annotations

import re

import pytest
import torch
import triton

from sparsefill.gpu import Variant
from sparsefill.kernels import triton as backend
from tests.triton.compile import SHARED_LIMITS, TARGETS, compile_for, report
from tests.triton.layers import (
    DIMS,
    LISTS,
    MILLION,
    SHIPPED,
    attend_report,
    compiled,
    compiled_estimates,
    meta_index,
)
from tools.triton_table import TABLE, line, row_of

MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
NVIDIA = [target for target in TARGETS if target.startswith("sm_")]
WITH_DESCRIPTORS = ["sm_90", "sm_100"]
SPILLED = {  # bytes, on one of the Triton versions: one register, stored and loaded once
    ("sm_80", 128, "lines"): 8,  # 3.6.0
}


@pytest.mark.parametrize("lists", SHIPPED)
@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("target", TARGETS)
def test_no_register_spills_and_shared_memory_suffices(target: str, d: int, lists: str):
    _, own = attend_report(target, lists, d)
    spilled = SPILLED.get((target, d, lists), 0)
    assert own.stack <= spilled
    assert own.instructions["LDL"] + own.instructions["STL"] <= spilled // 4
    assert own.shared <= SHARED_LIMITS[target]
    table = TABLE.read_text("utf-8")
    if f"Triton {triton.__version__}" in table:
        assert row_of(target, d, lists) in table, "run python -m tools.triton_table"


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("target", TARGETS)
def test_products_run_on_matrix_units(target: str, d: int):
    _, own = attend_report(target, "lines", d)
    used = sum(n for name, n in own.instructions.items() if name.startswith(MATRIX[target]))
    assert used > 0


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("target", WITH_DESCRIPTORS)
def test_pointers_asked_for_do_not_spill_either(target: str, d: int):
    _, own = attend_report(target, "lines", d, variant="pointers")
    assert own.stack == 0
    assert own.instructions["UTMALDG"] == 0


@pytest.mark.parametrize("d", [d for d in DIMS if d <= 128])
@pytest.mark.parametrize("target", WITH_DESCRIPTORS)
def test_tiles_are_loaded_by_descriptors(target: str, d: int):
    _, own = attend_report(target, "lines", d)
    assert own.instructions["UTMALDG"] > 0


@pytest.mark.parametrize("target", NVIDIA)
def test_loads_are_wide(target: str):
    _, own = attend_report(target, "lines", variant="pointers")
    assert own.instructions["LDGSTS.E.BYPASS.128"] > 0
    assert not own.instructions["LDG.E.U16"] + own.instructions["LDG.E.U8"]


@pytest.mark.parametrize("lists", SHIPPED)
@pytest.mark.parametrize("variant", ["pointers", "descriptors"])
@pytest.mark.parametrize("target", NVIDIA)
def test_whole_tiles_are_pipelined(target: str, variant: Variant, lists: str):
    """Copies of later tiles are under way before the loop begins, and two deep inside."""
    if variant == "descriptors" and target not in WITH_DESCRIPTORS:
        return
    launch, _ = attend_report(target, lists, variant=variant)
    code = launch.kernel.asm["ttgir"]
    copy = "async_tma_copy_global" if variant == "descriptors" else "async_copy_global_to_local"
    before_loop = code.split("scf.for")[:-1]
    ahead = max(before.count(copy) for before in before_loop)
    if variant == "descriptors":
        assert ahead >= 2 * 2 * 2  # two tiles, of keys and of values, in two parts
    else:
        assert ahead
        waits = [int(n) for n in re.findall(r"async_wait.*num = (\d+)", code)]
        assert max(waits) >= 2


@pytest.mark.parametrize("d", [64, 96, 128])
def test_softmax_rows_stay_within_a_warp(d: int):
    launch, _ = attend_report("sm_80", "lines", d)
    layouts = re.findall(r"#mma.*warpsPerCTA = \[(\d+), (\d+)\]", launch.kernel.asm["ttgir"])
    assert layouts
    assert all(columns == "1" for _, columns in layouts)


@pytest.mark.parametrize("target", TARGETS)
def test_a_head_dim_of_96_needs_less_memory_than_128(target: str):
    (_, narrow), (_, wide) = (attend_report(target, "blocks", d) for d in (96, 128))
    assert narrow.shared < wide.shared


def test_a_head_dim_of_96_costs_three_quarters_of_128():
    (_, narrow), (_, wide) = (attend_report("sm_80", "blocks", d) for d in (96, 128))
    assert narrow.instructions["HMMA"] == 0.75 * wide.instructions["HMMA"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_every_maths_compiles(target: str, dtype: torch.dtype, softcap: float | None):
    _, own = attend_report(target, "mixed", 128, dtype, softcap=softcap)
    assert own.stack == 0


def test_a_million_tokens_need_three_launches_and_little_memory():
    launches = compiled("sm_90", "lines", heads_last=True)
    names = [launch.name for launch in launches]
    assert names == ["plan_rows", "plan_covered", "attend_kernel"]
    assert launches[-1].grid == (32 * MILLION // 64,)
    index = meta_index(b=1, x=32, n=MILLION, **LISTS["lines"])
    with compile_for("sm_90"):
        plan = backend.make_plan(index)
    assert plan.rows.nbytes + plan.covered.nbytes < 12 * 2**20


@pytest.mark.parametrize(("lists", "n"), [("few-lines", 2**18 - 96), ("one-line", 2**18 - 63)])
def test_new_lengths_and_budgets_compile_nothing_new(lists: str, n: int):
    """Whether they are multiples of 16, or 1, or not."""
    first, second = compiled("sm_80", "lines"), compiled("sm_80", lists, n=n)
    assert [launch.kernel.hash for launch in first] == [launch.kernel.hash for launch in second]


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("target", TARGETS)
def test_estimates_do_not_spill_and_shared_memory_suffices(target: str, d: int):
    table = TABLE.read_text("utf-8")
    for launch in compiled_estimates(target, d):
        own = report(launch)
        assert own.stack == 0, launch.name
        assert own.instructions["LDL"] + own.instructions["STL"] == 0, launch.name
        assert own.shared <= SHARED_LIMITS[target], launch.name
        if f"Triton {triton.__version__}" in table:
            row = line(target, launch.name, str(d), "", own)
            assert row in table, "run python -m tools.triton_table"


@pytest.mark.parametrize("target", TARGETS)
def test_products_of_estimates_run_on_matrix_units(target: str):
    own = {launch.name: report(launch).instructions for launch in compiled_estimates(target)}
    for name in ("probe_weights", "line_sums", "score_blocks"):
        used = sum(n for code, n in own[name].items() if code.startswith(MATRIX[target]))
        assert used > 0, name


def test_estimates_take_few_launches():
    names = [launch.name for launch in compiled_estimates("sm_90")]
    assert names == [
        *("probe_weights", "line_sums", "keep_largest", "merge_slashes"),
        *("pool", "pool", "score_blocks", "keep_largest", "list_tiles"),
    ]


@pytest.mark.parametrize(("probe", "block"), [(64, 64), (100, 128)])
def test_new_lengths_compile_no_new_estimates(probe: int, block: int):
    """Nor do further strips, but for the sums of lines, which they add to."""
    first = {launch.kernel.hash for launch in compiled_estimates("sm_80")}
    second = compiled_estimates("sm_80", n=2**18 - 63, probe=probe, block=block)
    new = [launch.name for launch in second if launch.kernel.hash not in first]
    assert new == ["line_sums"] * (probe > 64)
