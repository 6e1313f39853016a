"""The Hopper kernel: its own source emulated in many orders, and compiled; no GPU is needed."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefill import Attended, SparseIndex, estimate
from sparsefill.gpu import HEAD_DIMS_ON_HOPPER, maths_of
from sparsefill.kernels.triton import hopper, hopper_kernel, hopper_ring
from tests.kernels.test_backends import Case, case_inputs, measurable
from tests.support.closeness import assert_attended
from tests.support.inputs import PATTERNS, Qkv, random_qkv, with_garbage
from tests.support.strategies import Shape, random_index, shapes
from tests.triton.compile import SHARED_LIMITS, Launch, Report
from tests.triton.emulator import Emulator
from tests.triton.gluon_values import FaultError
from tests.triton.layers import MILLION, SHIPPED, attend_report
from tests.triton.plans import plan_of

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
SOURCES = (hopper_ring, hopper_kernel)
BASE = Case("mixed", h=6, n=200, dtype="bf16")  # one head of each pattern
CASES = [
    *(Case(p, n=n, dtype=t) for p in PATTERNS for n, t in ((333, "bf16"), (128, "f16"))),
    *(BASE._replace(h=h, g=g, shared=s) for h, g in ((2, 2), (8, 1)) for s in (False, True)),
    *(BASE._replace(n=n, m=m) for n, m in ((65, 190), (200, 77), (64, 129), (127, 400))),
    *(BASE._replace(n=n, b=1 + 5 // n) for n in (1, 63, 64, 65, 129, 192)),
    *(BASE._replace(d=128, dtype=t) for t in DTYPES),
    *(BASE._replace(d=d, softcap=2.0) for d in HEAD_DIMS_ON_HOPPER),
]


def attend(
    qkv: Qkv,
    index: SparseIndex,
    seed: int,
    *,
    planted: Sequence[ModuleType] = (),
    stages: int | None = None,
    **maths: Any,
) -> Attended:
    """Attend in one random order of everything that may happen in any."""
    d = qkv.q.shape[-1]
    options = {"scale": d**-0.5, "softcap": None} | maths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hopper, "launch", Emulator((*SOURCES, *planted), "hopper_kernel", seed))
        patch.setitem(hopper.STAGES, d, stages or hopper.STAGES[d])
        factors, capped = maths_of(**options), options["softcap"] is not None
        return Attended(*hopper.attend_on_hopper(*qkv, index, plan_of(index), factors, capped))


# ---- values ----


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stays_within_the_error_budget(case: Case):
    qkv, index = case_inputs(case)
    for seed, stages in enumerate((None, 3)):
        got = attend(qkv, index, seed, stages=stages, softcap=case.softcap)
        assert_attended(got, qkv, index, softcap=case.softcap)


@settings(max_examples=20)
@given(
    shape=shapes(longest=300).map(measurable),
    shared=st.booleans(),
    further=st.booleans(),
    d=st.sampled_from(HEAD_DIMS_ON_HOPPER),
    dtype=st.sampled_from([*DTYPES]),
    seed=st.integers(0, 2**20),
)
def test_any_index_stays_within_the_error_budget(
    shape: Shape, shared: bool, further: bool, d: int, dtype: str, seed: int
):
    """Ragged batches full of NaN, chunks, and tiles that stand anywhere beside columns."""
    qkv = shape._replace(d=d).qkv(DTYPES[dtype])
    index = random_index(shape, x=shape.g if shared else shape.h, further=further)
    assert_attended(attend(qkv, index, seed), qkv.map(torch.nan_to_num), index)


def test_columns_inside_tiles_count_once():
    for seed, (qkv, clean, index) in enumerate(problems()):
        wide, known = (x.map(lambda t: torch.cat([t, t], dim=-1)) for x in (qkv, clean))
        assert_attended(attend(wide, index, seed), known, index)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 4.0])
def test_any_scale(scale: float):
    qkv, index = case_inputs(BASE._replace(b=2))
    assert_attended(attend(qkv, index, 0, scale=scale), qkv, index, scale=scale)


@pytest.mark.parametrize(
    "name", ["heads-last", "with-gaps", "one-key-for-all", "odd-strides-of-one"]
)
def test_reads_any_strides(name: str):
    qkv, index = case_inputs(BASE._replace(b=2, n=130))
    if name == "one-key-for-all":
        qkv = qkv._replace(k=qkv.k[:, :, :1].expand_as(qkv.k), v=qkv.v[:, :1].expand_as(qkv.v))
    elif name == "heads-last":
        qkv = qkv.map(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2))
    elif name == "odd-strides-of-one":  # a sequence, and a KV head
        qkv, index = case_inputs(BASE._replace(g=1, n=130))
        qkv = qkv._replace(k=qkv.k.as_strided(qkv.k.shape, (7, 9, *qkv.k.stride()[2:])))
    elif name == "with-gaps":
        wide = qkv.map(lambda t: torch.nn.functional.pad(t, (16, 16), value=torch.nan))
        qkv = wide.map(lambda t: t[..., 16:-16])
    assert_attended(attend(qkv, index, 0), qkv, index)


# ---- the emulator finds what is wrong ----

AWAIT_V = "    mbarrier.wait(v_full.index(slot), phase)\n    acc = warpgroup_mma"
AWAIT_K = "    mbarrier.wait(k_full.index(slot), phase)\n    scores = warpgroup_mma"
SCORES = "    scores = warpgroup_mma_wait(0, deps=[scores])\n"
ACC = "    acc = warpgroup_mma_wait(0, deps=[acc])\n"
RELEASE_K = "    mbarrier.arrive(k_empty.index(slot), count=1)\n"
RELEASE_V = "    mbarrier.arrive(v_empty.index(slot), count=1)\n"
SKIP_V = "    mbarrier.wait(v_full.index(slot), phase)\n" + RELEASE_V
SKIP_K = "    mbarrier.wait(k_full.index(slot), phase)\n" + RELEASE_K
LAST_COLUMNS = """        async_copy.wait_group(0)
        tell_gathered((turn - 1) % STAGES, ring)
"""
BUGS = {  # what is replaced, by what
    # order of events
    "V is not awaited": (AWAIT_V, AWAIT_V.partition("\n")[2]),
    "K is not awaited": (AWAIT_K, AWAIT_K.partition("\n")[2]),
    "scores are used before they are there": (SCORES, ""),
    "sums are used before they are there": (ACC, ""),
    "K is released while it is read": (SCORES + RELEASE_K, RELEASE_K + SCORES),
    "V is released while it is read": (ACC + RELEASE_V, RELEASE_V + ACC),
    "V is never released": (ACC + RELEASE_V, ACC),
    "one consumer empties K": ("k_empty.index(slot), count=2", "k_empty.index(slot), count=1"),
    "one consumer empties V": ("v_empty.index(slot), count=2", "v_empty.index(slot), count=1"),
    "a slot needs two copies": (
        "init(k_full.index(slot), count=1",
        "init(k_full.index(slot), count=2",
    ),
    "slots of the other are not released": (SKIP_V, ""),
    "slots of the other are not awaited": (SKIP_K, RELEASE_K),
    "the ring never turns": ("(turn // STAGES) & 1", "(turn // STAGES) & 0"),
    "K is not known to be empty": (
        "            mbarrier.wait(k_empty.index(slot), phase ^ 1)\n",
        "",
    ),
    "gathered V is not known to be empty": (
        "    mbarrier.wait(v_empty.index(slot), phase ^ 1)\n    v_rows",
        "    v_rows",
    ),
    "half of the bytes": (
        "mbarrier.expect(v_full.index(slot), BYTES)",
        "mbarrier.expect(v_full.index(slot), BYTES // 2)",
    ),
    "Q's bytes": ("2 * TILE * D * 2", "TILE * D * 2"),
    "no fence between proxies": ("    fence_async_shared()", "    pass"),
    "columns are told too early": ("async_copy.wait_group(1)", "async_copy.wait_group(2)"),
    "edge tiles are told too early": ("            async_copy.wait_group(0)\n", ""),
    "the last columns are not told": ("    if columns > 0:\n" + LAST_COLUMNS, ""),
    "a step is not counted": (
        "            release_slot(slot, phase, ring)\n        turn += 1",
        "            release_slot(slot, phase, ring)",
    ),
    "the slot after the next": ("return turn % STAGES,", "return (turn + 1) % (STAGES + 1),"),
    # values
    "padding keys are copied as tiles": ("start + TILE <= keys", "start < keys + TILE"),
    "keys before the first": ("(start < 0) | ", ""),
    "keys after the query": ("start > last_whole", "start > last_whole + 64"),
    "one list for both row blocks": (
        "TILE, slash_ptr, slashes1, 0)",
        "TILE, slash_ptr, slashes1, TILE)",
    ),
    "columns in slash tiles": ("(own_end - 1 - key) % 32", "(own_end - key) % 32"),
    "columns that another tile covers": ("covered = in_slash_tile |", "covered ="),
    "columns in further tiles": ("key < before + TILE", "key < before"),
    "the same columns again": ("            key = following\n", ""),
    "columns of the other row block": ("if c < own_columns", "if c < columns // 2"),
    "padding queries": ("(row < queries) & (total > 0.0)", "total > 0.0"),
    "rows past the last": ("mask=(row < n)[:, None]", "mask=(row < n + 1)[:, None]"),
    "another KV head": ("kv_head * R + program % R", "kv_head + G * (program % R)"),
    "sums keep their old top": ("total = total * alpha + ", "total = total + "),
    "the largest is not kept": ("raised = gl.maximum(top, gl.max(scores, 1))", "raised = top"),
}


@cache
def problems() -> list[tuple[Qkv, Qkv, SparseIndex]]:
    """Make inputs in which every bug of the table shows; half of them are padded with NaN."""
    lengths = torch.tensor([[200, 100], [200, 173]])
    named = dict(zip(("query_lengths", "key_lengths"), lengths, strict=True))
    made = []
    for seed, (anywhere, x) in enumerate(itertools.product((True, False), (4, 2))):
        clean = random_qkv(b=2, h=4, g=2, n=200, d=64, dtype=torch.float16, seed=seed)
        if anywhere:
            index = random_index(Shape(2, 4, 2, 200, 200, 64, *lengths, seed=seed), x=x)
        else:
            patterns = [*PATTERNS.values()][-x:]
            index = estimate(patterns, clean.q[:, :: 4 // x], clean.k, **named)
        qkv = clean if seed in (0, 3) else with_garbage(clean, *lengths)
        made.append((qkv, clean, with_many_columns(index, seed)))
    return made


def with_many_columns(index: SparseIndex, seed: int) -> SparseIndex:
    """Replace the columns by two or three tiles of them."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(index.m, generator=generator)[:150] for _ in range(index.b * index.x)]
    columns = torch.stack(chosen).sort().values.int().view(index.b, index.x, 150)
    counts = torch.full((index.b, index.x), 150, dtype=torch.int32)
    return replace(index, column_indices=columns, column_counts=counts)


def judge(seeds: Iterable[int], *planted: ModuleType) -> None:
    """Raise if something is wrong in some problems, each in an order of its own."""
    for seed in seeds:
        qkv, clean, index = problems()[seed % len(problems())]
        assert_attended(attend(qkv, index, seed, planted=planted, stages=3), clean, index)


def plant(name: str, folder: Path) -> ModuleType:
    """Make one of the two sources wrong."""
    right, wrong = BUGS[name]
    texts = [Path(str(module.__file__)).read_text("utf-8") for module in SOURCES]
    [text] = [text for text in texts if right in text]
    path = folder / "planted.py"
    path.write_text(text.replace(right, wrong), "utf-8")
    spec = importlib.util.spec_from_file_location("planted", path)
    assert spec is not None
    assert spec.loader is not None
    planted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planted)
    return planted


@pytest.mark.parametrize("first", [0, 4])
def test_nothing_is_found_where_nothing_is_wrong(first: int):
    judge(range(first, first + 4))


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught(name: str, tmp_path: Path):
    planted = plant(name, tmp_path)
    with pytest.raises(AssertionError):
        judge(range(4), planted)


def test_a_ring_of_one_slot_deadlocks():
    """A slot that is gathered is told only when the next one is."""
    qkv, _, index = problems()[0]
    with pytest.raises(FaultError, match="wait for ever"):
        attend(qkv, index, 0, stages=1)


# ---- compiled ----


def compiled(lists: str, d: int, *arguments: Any, **options: Any) -> tuple[Launch, Report]:
    """Compile a layer of Llama-3-8B's heads for a Hopper GPU that is not here."""
    return attend_report("sm_90", lists, d, *arguments, variant="hopper", **options)


@pytest.mark.parametrize(
    ("lists", "dtype", "softcap"),
    [*((lists, "bf16", None) for lists in SHIPPED), ("mixed", "f16", 30.0)],
)
@pytest.mark.parametrize("d", HEAD_DIMS_ON_HOPPER)
def test_uses_what_hopper_has_and_spills_nothing(
    d: int, lists: str, dtype: str, softcap: float | None
):
    _, own = compiled(lists, d, DTYPES[dtype], softcap=softcap)
    has = own.instructions
    assert own.stack == 0
    assert has["LDL"] + has["STL"] == 0
    assert own.shared <= SHARED_LIMITS["sm_90"]
    assert own.warps == 12
    products = 2 * 2 * {"blocks": 1, "lines": 2, "mixed": 3}[lists]  # two consumers, QK and PV
    assert has["HGMMA"] == products // 2 * (d + 64) // 16
    assert has["WARPGROUP.DEPBAR.LE"] == products  # steps of a product do not wait for each other
    assert has["UTMALDG"] >= 4  # Q of two row blocks, K and V
    assert has["USETMAXREG"] >= 3
    assert has["LDGSTS.E.BYPASS.128"] == has["LDGSTS"] > 0
    assert not has["LDG.E.U16"] + has["LDG.E.U8"]


def test_a_million_tokens_are_one_launch():
    launch, _ = compiled("lines", 128)
    assert launch.grid == (32 * MILLION // 128,)


@pytest.mark.parametrize("d", HEAD_DIMS_ON_HOPPER)
def test_new_lengths_and_budgets_compile_nothing_new(d: int):
    launch, _ = compiled("lines", d)
    other, _ = compiled("few-lines", d, n=MILLION // 4 - 64 * 7)
    assert launch.kernel.hash == other.kernel.hash


@pytest.mark.parametrize("name", ["k_rows", "v_rows", "place"])
def test_rows_far_away_are_reached_by_64_bit_offsets(name: str):
    """Row strides are widened before they meet a position: of K, of V, of the output."""
    launch, _ = compiled("mixed", 128, heads_last=True)
    code = launch.kernel.asm["ttgir"]
    assert re.search(rf"%{name}\w* = arith.extsi %\w+ : i32 to i64", code)
    wide = re.search(rf"%{name}\w* = arith.muli .* : tensor<64xi(\d+)", code)
    assert wide is not None
    assert wide[1] == "64"


def test_threads_meet_before_one_of_them_arrives_for_all():
    """What the emulator takes for granted: in the code, between a wait and an arrival."""
    launch, _ = compiled("mixed", 128)
    code = launch.kernel.asm["ptx"]
    before = re.split(r"mbarrier\.arrive\.shared", code)[:-1]
    assert len(before) > 10
    for part in before:
        ended = max(part.rfind(end) for end in ("wgmma.wait_group", "cp.async.wait_group", "fence"))
        assert part.rfind("bar.sync") > ended
