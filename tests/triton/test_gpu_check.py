"""The GPU check runs to its end, on small problems in Triton's interpreter."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.arguments import Shape
from benchmarks.fit import EXTRAPOLATED
from benchmarks.gate import GateError, check_result
from benchmarks.gpu import attend, ceilings, estimate, limits, peers, prefill, table, values, watch
from benchmarks.gpu.check import Check, DeviceLostError, variants
from benchmarks.indices import PATTERNS, adjacent_index, dense_index, top_block_index
from benchmarks.peers import flex_blocks, sdpa
from benchmarks.problem import Problem, Qkv, random_inputs
from benchmarks.rows import Ledger, Row, read_rows
from benchmarks.table import rows_table
from sparsefill import abi, native
from sparsefill.density import density
from sparsefill.errors import UnsupportedError
from sparsefill.estimate import KERNELS
from sparsefill.integrations.transformers import random_weights
from sparsefill.kernels import BACKENDS
from sparsefill.kernels import attend as attend_cells
from sparsefill.kernels import triton as kernels
from sparsefill.tile import TILE
from tests.support.table import CASES, Case

SHAPE = Shape(4, 2, 16)
CPU = torch.device("cpu")
SMALL = {  # what is built for tests, by module and name
    attend: {
        "DENSITIES": (0.3,),
        "BUDGETS": {"lines": lambda problem, seed: adjacent_index(problem, 9, 70, seed)},
        "LONGEST_FLEX": 0,
    },
    estimate: {"LONGEST_SEARCH": 0, "TARGET": 0.3},
    ceilings: {"SIZE": 64, "COPIED": 4096},
    values: {"SIZES": ((65, 65),), "CASES": [Case("a-shape"), Case("dense", dtype="bf16")]},
}


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Check]:
    for module, changed in SMALL.items():
        for name, value in changed.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(peers, "DENSE", {"sdpa": lambda: sdpa})
    for name, backend in BACKENDS.items():  # both are put back when the test ends
        monkeypatch.setitem(BACKENDS, name, backend)
    estimating = dict(KERNELS)  # their order counts
    gpu_check.interpret()
    yield Check(
        ledger=Ledger(tmp_path / "gpu_check.jsonl"),
        device=CPU,
        until=time.monotonic() + 250,
        shape=SHAPE,
        repeats=1,
    )
    KERNELS.clear()
    KERNELS.update(estimating)


def by(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


def test_values_are_judged(check: Check):
    values.judge(check, "triton", Case("mixed", h=6, n=65, m=90, dtype="f16", softcap=2.0))
    [row] = check.rows
    assert row.done
    assert (row.case, row.n, row.h, row.dtype) == ("values", 65, 6, "fp16")
    assert row.parameters == {"b": 1, "m": 90, "shared": False, "softcap": 2.0}


def test_the_table_is_judged_as_far_as_time_goes(check: Check, monkeypatch: pytest.MonkeyPatch):
    judged: list[Case] = []
    monkeypatch.setattr(values, "judge", lambda check, backend, case: judged.append(case))
    every = values.table_cases()
    cases = list(every)
    check.until = time.monotonic() - 1
    values.check_rest(check, cases)
    assert cases == every
    assert f"{len(every)} more cases" in (check.rows[0].skipped or "")
    check.until = time.monotonic() + 100
    values.check_table(check, cases, 50)
    assert not cases
    assert judged == every
    values.check_rest(check, cases)
    assert len(check.rows) == 1


def test_the_table_is_that_of_the_tests():
    every = values.table_cases()
    assert every[0].pattern == "mixed"
    assert {case.dtype for case in every} == {"bf16", "f16"}
    assert {case._replace(dtype="") for case in every} == {c._replace(dtype="") for c in CASES}


def test_wrong_values_are_told(check: Check, monkeypatch: pytest.MonkeyPatch):
    spoil(monkeypatch, lambda out, lse: out[..., -1, :].mul_(1.5))
    values.judge(check, "triton", Case("mixed", n=65, b=2, dtype="f16"))
    [row] = check.rows
    assert "exceeds the budget" in (row.error or "")
    assert table.failures(check.rows) == [row]
    assert "0 of 1 within" in table.lay_out(check.rows)


def test_a_layer_is_timed(check: Check, monkeypatch: pytest.MonkeyPatch):
    for name in set(variants()) - {"triton"}:
        monkeypatch.delitem(BACKENDS, name)
    attend.time_attend(check, 192)
    rows = list(read_rows(check.ledger.path))
    assert rows == check.rows
    assert not [row for row in rows if not row.done]
    ours = by(rows, backend="triton")
    assert [row.pattern for row in ours] == [
        *("block", "vertical-slash", "a-shape", "shared-block", "lines", "dense"),
    ]
    [peer] = by(rows, backend="sdpa")
    for row in rows:
        assert row.case == "attend"
        assert row.median_s is not None
        assert row.density is not None
        assert row.recall is not None
        assert row.recall > 0.95 * row.density  # random keys: much the same
        assert row.baseline == "sdpa"
        assert row.speedup == pytest.approx((peer.median_s or 0) / row.median_s)
        assert row.proportional == pytest.approx((row.speedup or 0) * row.density)
        flops = check.problem(192).flops * row.density
        assert row.tflops == pytest.approx(flops / row.median_s / 1e12)
        assert row.work is not None
        assert row.work["flops"] == pytest.approx(flops)
        assert row.work["limit_s"] is None  # nothing is published for a CPU
    whole = ours[-1]
    assert (whole.density, whole.efficiency) == (1, 1)
    assert rows_table(rows, "shown").row_count == len(rows)
    assert "vertical-slash 30%" in table.lay_out(rows)


def test_a_wrong_row_of_a_timed_layer_is_found(check: Check, monkeypatch: pytest.MonkeyPatch):
    spoil(monkeypatch, lambda out, lse: out[0, -1, -1].add_(1.0))  # the last of its memory
    attend.time_attend(check, 128)
    ours = by(check.rows, backend="triton")
    assert ours
    assert all("GateError" in (row.error or "") and row.median_s is None for row in ours)
    assert by(check.rows, backend="sdpa")[0].done


def test_the_oracle_looks_at_the_ends_of_memory():
    problem = Problem(256, SHAPE, "bf16")
    qkv, index = random_inputs(problem, 0), dense_index(problem)
    right = attend_cells(*qkv, index, backend="torch")
    for head, row in ((0, 0), (SHAPE.h - 1, problem.n - 1)):
        out = right.out.clone()
        out[0, head, row] += 1
        with pytest.raises(GateError):
            check_result("x", out, right.lse, qkv, index)


def test_the_whole_method_is_timed(check: Check, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "TORCH_LENGTH", 128)
    monkeypatch.setattr(estimate, "LONGEST_SEARCH", 128)
    check.baselines[128] = ("sdpa", 2.0)
    estimate.time_estimate(check, 128)
    assert not [row for row in check.rows if not row.done]
    names = {(row.backend, row.pattern) for row in check.rows}
    for name in ("vertical-slash default", "block-topk", "vertical-slash"):
        assert {("triton", name), ("torch+triton", name)} <= names
    for row in check.rows:
        assert row.share == pytest.approx((row.estimate_s or 0) / (row.attend_s or 1))
        assert row.baseline == "sdpa"
        assert row.parameters is not None
        assert row.work is not None
        assert row.work["estimate_flops"]
        assert row.parameters["estimate"] == ("auto" if row.backend == "triton" else "torch")
        assert row.recall is not None
    [found] = by(check.rows, backend="triton", pattern="vertical-slash")
    assert (found.density or 0) < (found.recall or 0) < 1  # what was planted is found


def test_other_kernels_of_ours_are_tried(check: Check, monkeypatch: pytest.MonkeyPatch):
    same = BACKENDS["triton"]
    monkeypatch.setitem(BACKENDS, "triton-pointers", same)
    monkeypatch.setitem(BACKENDS, "triton-hopper", replace(same, refusal=lambda q: "needs Hopper"))
    monkeypatch.delitem(BACKENDS, "triton-descriptors")  # an installation without it
    attend.time_attend(check, 64)
    assert not by(check.rows, backend="triton-descriptors")
    other = by(check.rows, backend="triton-pointers")
    assert [row.pattern for row in other if row.done] == [
        *("block", "vertical-slash", "a-shape", "shared-block", "lines", "dense"),
    ]
    refused = by(check.rows, backend="triton-hopper")
    assert len(refused) == len(other)
    assert all("needs Hopper" in (row.skipped or "") for row in refused)
    assert not table.failures(check.rows)


def test_a_peer_that_is_missing_or_fails_is_a_row(check: Check, monkeypatch: pytest.MonkeyPatch):
    def grouped(qkv: Any) -> torch.Tensor:
        if qkv.q.shape[1] != qkv.k.shape[1]:
            raise RuntimeError("\nno groups\nof heads")
        return sdpa(qkv)

    def broken(qkv: Any) -> torch.Tensor:
        raise TypeError("no such argument")

    dense = {"fa3": peers.find_fa3, "ungrouped": lambda: grouped, "broken": lambda: broken}
    monkeypatch.setattr(peers, "DENSE", dense)
    monkeypatch.setattr(attend, "BUDGETS", {})
    attend.time_attend(check, 64)
    [missing] = by(check.rows, backend="fa3")
    assert "flash_attn_interface" in (missing.skipped or "")
    [failed], [repeated] = (by(check.rows, backend=f"ungrouped{s}") for s in ("", "-repeated"))
    assert failed.error == "RuntimeError: no groups"
    assert repeated.done
    [gone] = by(check.rows, backend="broken")
    assert gone.error == "TypeError: no such argument"
    assert not table.failures(check.rows)
    assert all(row.baseline == "ungrouped-repeated" for row in check.rows if row.done)


def flash_attn_func(q: Any, k: Any, v: Any, *, causal: bool) -> Any:
    assert causal
    return heads_last(q, k, v), None  # some versions return the log-sum-exp as well


def flash_attn_varlen_func(q: Any, k: Any, v: Any, *, fa_version: int, **sizes: Any) -> Any:
    assert fa_version == 3
    assert sizes["cu_seqlens_q"].tolist() == [0, len(q)]
    assert sizes["max_seqlen_k"] == len(k)
    return heads_last(q[None], k[None], v[None])[0]


def heads_last(*tensors: torch.Tensor) -> torch.Tensor:
    q, k, v = (t.transpose(1, 2) for t in tensors)
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("flash_attn_interface", flash_attn_func),
        ("vllm_flash_attn.flash_attn_interface", flash_attn_varlen_func),
    ],
)
def test_flash_attention_3_is_called_right(
    module: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    there: Any = ModuleType(module)
    setattr(there, function.__name__, function)
    monkeypatch.setitem(sys.modules, module, there)
    problem = Problem(100, SHAPE, "fp32")
    qkv = random_inputs(problem, 0)
    check_result("fa3", peers.find_fa3()(qkv), None, qkv, dense_index(problem))


def test_flex_attends_to_the_cells_of_the_index(check: Check, monkeypatch: pytest.MonkeyPatch):
    def by_mask(*qkv: torch.Tensor, block_mask: Any, enable_gqa: bool, kernel_options: Any) -> Any:
        """Stand in for the compiled kernel: eager FlexAttention looks at no block."""
        assert kernel_options is None  # the tiles of a GPU
        blocks = block_mask.to_dense().bool()
        seen = blocks.repeat_interleave(TILE, 2).repeat_interleave(TILE, 3).tril()
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(*qkv, attn_mask=seen, enable_gqa=enable_gqa)

    monkeypatch.setattr(attend, "compile_flex", lambda: by_mask)
    problem = check.problem(320)
    blocks = {t: PATTERNS["block"](problem, t, 0) for t in (0.5, 0.2)}
    for cells in blocks.values():
        mask = flex_blocks(problem, cells).to_dense()[0].bool()
        kept = mask.repeat_interleave(TILE, 1).repeat_interleave(TILE, 2).tril()
        assert torch.equal(kept, cells.to_mask()[0])
    group = attend.Group(check, problem, random_inputs(problem, 0))
    attend.prove_flex(group, dict(blocks))
    group.finish()
    found = [(row.backend, row.target_density, row.error) for row in check.rows]
    assert found == [("flex", 0.5, None), ("flex", 0.2, None)]


def test_flex_that_cannot_be_compiled_is_a_row(check: Check, monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(attend, "compile_flex", fail)
    group = attend.Group(check, check.problem(64), random_inputs(check.problem(64), 0))
    attend.prove_flex(group, {})
    assert check.rows[0].error == "RuntimeError: no compiler"


def test_what_takes_too_long_is_not_tried(check: Check):
    check.known["slow"] = (1000, 2.0)
    check.until = time.monotonic() + 100
    assert attend.fits(check, "slow", check.problem(2000))  # 8 s
    assert not attend.fits(check, "slow", check.problem(4000))  # 32 s
    [row] = check.rows
    assert "32 s" in (row.skipped or "")


def test_published_rates_are_looked_up():
    assert limits.published_rates((9, 0), "NVIDIA H100 80GB HBM3") == limits.Rates(989e12, 3.35e12)
    assert limits.published_rates((9, 0), "NVIDIA H100 PCIe") == limits.Rates(756e12, 2.0e12)
    assert limits.published_rates((9, 0), "NVIDIA H200") == limits.Rates(989e12, 4.8e12)
    assert limits.published_rates((12, 0), "NVIDIA H100 of another kind") is None
    assert limits.rates_of(CPU) is None


def test_work_is_counted():
    problem = Problem(131072, Shape(32, 8, 128), "bf16")
    whole = limits.attend_work(problem, 1.0)
    assert whole.flops == pytest.approx(140.7e12, rel=1e-3)
    assert whole.bytes == 131072 * (2 * 2 * 40 * 128 + 4 * 32)
    rates = limits.Rates(flops=989e12, bytes=3.35e12)
    assert whole.least_seconds(rates) == pytest.approx(0.1423, rel=1e-3)
    fields = whole.fields(rates, 0.2846)
    assert fields["of_limit"] == pytest.approx(0.5, rel=1e-3)
    little = limits.attend_work(problem, 0.001)
    assert little.least_seconds(rates) == little.bytes / rates.bytes  # moving is the limit
    assert whole.least_seconds(None) is None


@pytest.mark.parametrize("pattern", ["block", "shared-block", "vertical-slash", "a-shape"])
def test_tiles_are_counted_for_every_query_head(pattern: str):
    problem = Problem(300, SHAPE, "bf16")
    cells = PATTERNS[pattern](problem, 0.3, 0)
    work = limits.attend_work(problem, float(density(cells).mean()), cells)
    place = [torch.tensor([0]) for _ in range(3)]
    keys = 0
    for head in range(SHAPE.h):
        for i in range(cells.row_blocks):
            place[1][0], place[2][0] = head * cells.x // SHAPE.h, i
            keys += cells.keys_of(*place).shape[1]
    exact = 4 * SHAPE.d * TILE * keys
    assert work.tile_flops is not None
    assert exact <= work.tile_flops <= 1.6 * exact  # covered columns, and keys that are not there
    assert work.tile_flops > work.flops


def test_a_budget_of_blocks_is_kept():
    index = top_block_index(Problem(640, SHAPE, "bf16"), 3, 0)
    assert index.row_ptr is not None
    assert index.row_ptr[0, -1].diff().tolist() == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    assert index.x == SHAPE.h


@pytest.mark.parametrize(
    ("script", "error", "skipped"),
    [
        ("exit 0", None, None),
        ("echo 1 problem; exit 9", "RuntimeError: exit code 9; it said last: 1 problem", None),
        ("/bin/sleep 100 & /bin/sleep 100", None, "did not end in 1 s"),
    ],
)
def test_kernels_are_watched(
    script: str,
    error: str | None,
    skipped: str | None,
    check: Check,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(watch, "TOOL_SECONDS", 1)
    watch.check_memory(check)
    [row] = check.rows
    assert (row.error, row.skipped) == (error, skipped)


def test_tools_that_cannot_run_are_skipped(check: Check, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(watch, "CUDA_TOOLS", "")
    watch.check_memory(check)
    watch.check_races(check)
    reasons = [row.skipped for row in check.rows]
    assert reasons == ["compute-sanitizer is not installed", "needs a GPU"]
    watch.judge_smallest("cpu")  # what they would watch


def test_every_tensor_is_made_on_the_device_asked_for(
    check: Check, monkeypatch: pytest.MonkeyPatch
):
    """One that is made without naming a device has no memory here, and fails."""
    monkeypatch.setattr(native, "library", lambda: None)  # it serves no tensor of a GPU
    monkeypatch.setattr(abi, "refusal", lambda *_: "not here")
    for name in variants():
        monkeypatch.setitem(BACKENDS, name, BACKENDS["torch"])
    monkeypatch.setattr(attend, "LONGEST_FLEX", 256)
    monkeypatch.setattr(attend, "compile_flex", lambda: lambda *qkv, **_: sdpa(Qkv(*qkv)))
    monkeypatch.setattr(estimate, "LONGEST_SEARCH", 256)
    with torch.device("meta"):
        attend.time_attend(check, 256)
        estimate.time_estimate(check, 256)
        ceilings.measure_ceilings(check)
    wrong = [row for row in check.rows if not row.done]
    assert [row.backend for row in wrong] == ["flex"]  # what stands in for it is dense
    assert "GateError" in (wrong[0].error or "")
    assert {row.case for row in check.rows} == {"attend", "estimate", "ceiling"}


def test_a_lost_device_ends_the_run(check: Check, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("illegal memory access")

    check.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(DeviceLostError), check.attempt("a", "b", "c", check.problem(1)):
        fail()
    done: list[str] = []
    listed = [("attend, n=64", fail), ("never", lambda: done.append("never"))]
    gpu_check.run_parts(check, iter(listed))
    assert not done
    assert [row.error for row in check.rows] == ["RuntimeError: illegal memory access"] * 2


def test_a_whole_model_is_read(check: Check, monkeypatch: pytest.MonkeyPatch):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 300}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    name, (factory, own, base) = "yi-9b-200k", random_weights.ARCHITECTURES["yi-9b-200k"]
    monkeypatch.setitem(random_weights.ARCHITECTURES, name, (factory, {**own, **sizes}, base))
    check.model = f"random:{name}"
    prefill.time_prefill(check, [64, 128, 192], dense_up_to=192)
    prefill.time_prefill(check, [256], dense_up_to=192)
    *_, sparse = by(check.rows, case="prefill", backend="triton")
    assert (sparse.n, sparse.baseline, sparse.reader) == (
        256,
        EXTRAPOLATED,
        "engine:kv=drop,order=layers",
    )
    assert sparse.density is not None
    assert sparse.peak_bytes
    assert len(by(check.rows, case="prefill", backend="sdpa")) == 3
    [line] = [line for line in table.lay_out(check.rows).splitlines() if " peak " in line][-1:]
    assert line.endswith(" planned")
    assert all(row.device == "cpu" for row in check.rows)
    monkeypatch.setattr(prefill, "NEEDED", ("transformers", "greenlet_of_another_name"))
    with pytest.raises(UnsupportedError, match="got no greenlet_of_another_name"):
        prefill.time_prefill(check, [64], dense_up_to=64)


def test_more_lengths_are_dense_before_the_longest_is_extrapolated(check: Check):
    names = [name for name, _ in gpu_check.parts(check, gpu_check.LENGTHS)]
    assert [name for name in names if "prefill" in name] == [
        "prefill, n=131072",
        "prefill, n=262144",
        "prefill, n=1048576",
    ]
    assert prefill.DENSE == (2**15, 2**16, 2**17)


@pytest.mark.parametrize("whose", ["engine", "stock"])
def test_whose_memory_was_too_little(check: Check, monkeypatch: pytest.MonkeyPatch, whose: str):
    from benchmarks.cases import prefill as case
    from benchmarks.cases.prefill import StockModelTooLargeError

    def full(*_: Any, **__: Any) -> None:
        if whose == "engine":
            raise torch.OutOfMemoryError("CUDA out of memory")
        raise StockModelTooLargeError("the stock model does not fit at 64 tokens")

    monkeypatch.setattr(case, "load_model", full)
    check.model = "random:yi-9b-200k"
    listed = [("prefill, n=64", lambda: prefill.time_prefill(check, [64], dense_up_to=64))]
    gpu_check.run_parts(check, iter(listed))
    [row] = check.rows
    assert (row.error is None) == (whose == "stock")
    assert (row.skipped is None) == (whose == "engine")
    assert table.failures(check.rows) == ([row] if whose == "engine" else [])


def test_nothing_begins_when_time_is_up(check: Check):
    check.until = time.monotonic() - 1
    gpu_check.run_parts(check, gpu_check.parts(check, [64]))
    assert not check.rows


def test_aims_are_told(check: Check):
    def verdict(**fields: Any) -> str:
        place = {"case": "attend", "backend": "triton", "pattern": "block", "target_density": 0.05}
        check.add(problem=check.problem(2**17), **place, density=0.05, **fields)
        return table.AIMS[0].verdict(check.rows)

    assert verdict(error="none") == f"{table.AIMS[0].text}: not measured"
    assert verdict(proportional=0.7).endswith("MISSED")
    check.ledger.rows.clear()
    assert verdict(proportional=0.8, baseline="fa3", recall=0.06).endswith(
        ": 0.8 (density 5.0%, recall 6.0%, against fa3): reached"
    )


def test_the_command(check: Check, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    out = check.ledger.path.parent
    arguments = ["--out", str(out), "--device", "cpu", "--lengths", "64", "--heads", "2x1x16"]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *arguments, "--repeats", "1"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as exit_code:
        gpu_check.main()
    assert exit_code.value.code == 0
    rows = list(read_rows(out / "gpu_check.jsonl"))
    assert {row.case for row in rows} == {
        *("values", "ceiling", "attend", "estimate", "memory", "consan", "prefill"),
    }
    assert [row.skipped for row in by(rows, case="prefill")] == [
        "a whole model takes too long on a CPU; pass a small --model"
    ] * 3
    text = (out / "gpu_check.txt").read_text("utf-8")
    assert text in capfd.readouterr().out
    judged = [row for row in rows if row.case == "values" and row.done]
    assert {row.backend for row in judged} == set(variants()) - {"triton-hopper"}
    assert f"{len(judged)} of {len(judged)} within the error budget" in text


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    """Let the kernels' results be changed before anybody sees them."""
    right = kernels.attend

    def wrong(*arguments: Any, **options: Any) -> Any:
        out, lse = right(*arguments, **options)
        change(out, lse)
        return out, lse

    monkeypatch.setattr(kernels, "attend", wrong)
