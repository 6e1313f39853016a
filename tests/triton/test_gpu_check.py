"""The GPU check runs to its end, on small problems in Triton's interpreter."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import Check
from sparsefill import SparseIndex
from sparsefill.density import density


@pytest.fixture
def check(tmp_path: Path) -> Check:
    until = time.monotonic() + 250
    cpu = torch.device("cpu")
    return Check(out=tmp_path, device=cpu, until=until, heads=(4, 2, 16), repeats=1)


def test_values_are_judged(check: Check):
    gpu_check.judge(check, n=65, m=190, d=64, dtype=torch.bfloat16, shared=True)


def test_wrong_values_are_told(check: Check, monkeypatch: pytest.MonkeyPatch):
    right = gpu_check.backend.attend

    def wrong(*arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = right(*arguments, **options)
        out[..., -1, :] *= 1.5
        return out, lse

    monkeypatch.setattr(gpu_check.backend, "attend", wrong)
    with check.refusals("values"):
        gpu_check.judge(check, n=65, m=65, d=64, dtype=torch.float16, shared=False)
    [row] = check.rows
    assert "exceeds the budget" in row["error"]
    assert "0 of 1 within" in gpu_check.table(check.rows)


def test_times_are_written_as_soon_as_they_are_known(check: Check, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_check, "VERTICAL_SLASH", ((9, 70),))
    monkeypatch.setattr(gpu_check, "A_SHAPE", gpu_check.AShape(sink=3, window=100))
    gpu_check.time_attend(check, 256)
    gpu_check.time_estimate(check, 256)
    lines = (check.out / "gpu_check.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    ours = [row for row in rows if row.get("backend") == "triton"]
    assert [row["pattern"] for row in ours][:3] == ["block 5%", "block 2%", "block 1%"]
    assert not [row for row in ours if "error" in row]
    assert {"vertical-slash 9+70", "a-shape", "dense"} < {row["pattern"] for row in ours}
    assert all(0 < row["density"] <= 1 and row["median_s"] > 0 for row in ours)
    assert {row["pattern"] for row in rows if row["case"] == "estimate"} == {
        "vertical-slash",
        "block-topk",
    }
    assert "TFLOP/s" in gpu_check.table(check.rows)


def kept(index: SparseIndex) -> float:
    return float(density(gpu_check.one_head(index)).mean())


@pytest.mark.parametrize("target", [0.05, 0.2, 1.0])
def test_blocks_have_the_density_asked_for(target: float):
    index = gpu_check.blocks(4096, 2, target, torch.device("cpu"))
    index.check_lists()
    assert kept(index) == pytest.approx(target, rel=0.5, abs=0.02)
    assert bool((density(index) == density(index)[0, 0]).all())


def test_lines_are_what_they_are_called():
    index = gpu_check.lines(1024, 2, 10, 128, torch.device("cpu"))
    mask = index.to_mask()
    assert int(mask[0, 0, -1].sum()) == pytest.approx(128 + 9, abs=2)
