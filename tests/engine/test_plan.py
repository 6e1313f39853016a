"""The memory that is expected: what it consists of, what it chooses, what it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsefill import BlockTopK, InputError, Interleaved, VerticalSlash
from sparsefill.engine import plan as planning
from sparsefill.engine.plan import CHUNKS, NAMES, ORDERS, plan_prefill
from sparsefill.engine.store import POLICIES, ROOM
from tests.support.models import tiny_model

TOKENS = 100_000
WAYS = [(kv, order) for kv in POLICIES for order in ORDERS if (kv, order) != ("drop", "chunks")]


@pytest.fixture(autouse=True)
def _a_process_that_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_process_bytes", lambda weights: planning.PROCESS)


def test_the_parts_of_a_known_model():
    """The tiny Llama: 2 layers, hidden 64, 4 heads on 2 of 16, MLP 96, float32."""
    plan = plan_prefill(tiny_model("llama-3"), 2, TOKENS, kv="int8", chunk=1024, logits_to_keep=3)
    assert plan.embeddings == plan.residual == 2 * TOKENS * 64 * 4
    assert plan.waiting == 2 * TOKENS * (64 + 4 * 16) * 4
    assert plan.rotary == 2 * TOKENS * (2 * 16 * 4 + 8)
    assert plan.work == 2 * (TOKENS + ROOM) * 2 * 2 * 16 * 4
    assert plan.kept == 2 * 2 * TOKENS * 2 * 2 * (16 + 4)
    assert plan.logits == 2 * 3 * 128 * 4
    assert plan.peak == sum(plan.parts.values())
    assert plan.rows()[-1] == ("peak", plan.peak)
    assert [name for name, _ in plan.rows()[:-1]] == list(NAMES.values())


def test_policies_and_orders_cost_what_they_keep():
    model = tiny_model("llama-3", num_hidden_layers=8)
    peaks = {way: plan_prefill(model, 1, TOKENS, kv=way[0], order=way[1]).peak for way in WAYS}
    for order in ORDERS:
        assert peaks["disk", order] < peaks["int8", order] < peaks["keep", order]
    for kv in ("keep", "int8", "host", "disk"):
        assert peaks[kv, "chunks"] < peaks[kv, "layers"]
    assert peaks["drop", "layers"] == peaks["disk", "layers"]


def test_indices_count():
    model = tiny_model("llama-3")
    plain = plan_prefill(model, 1, TOKENS)
    for pattern in (VerticalSlash(), BlockTopK(blocks=100)):
        assert plan_prefill(model, 1, TOKENS, patterns=[pattern] * 8).index > plain.index == 0


def test_parts_of_interleaved_heads_count():
    model = tiny_model("llama-3")
    plain, split = (
        plan_prefill(model, 1, TOKENS, chunk=1024, patterns=own) for own in ([], [Interleaved()])
    )
    at_once = 16384 * 4 * 16 * 4  # bytes of the queries that attend together
    assert split.transient - plain.transient == 3 * at_once


def test_the_largest_chunk_that_fits_is_chosen():
    host = tiny_model("llama-3", intermediate_size=320)  # a chunk of 8192 fills 32 MiB
    accelerator = tiny_model("llama-3", intermediate_size=4096).to("meta")
    for model, most in ((host, 8192), (accelerator, 8192)):
        for chunk in (own for own in CHUNKS if own <= most):
            own = plan_prefill(model, 1, TOKENS, chunk=chunk).peak
            chosen = plan_prefill(model, 1, TOKENS, max_memory=own)
            assert chosen.chunk >= chunk
            assert chosen.peak <= own
            for larger in (c for c in CHUNKS if chosen.chunk < c <= most):
                assert plan_prefill(model, 1, TOKENS, chunk=larger).peak > own
        assert plan_prefill(model, 1, TOKENS, max_memory=1 << 40).chunk == most
        assert plan_prefill(model, 1, TOKENS).chunk == 8192
    assert plan_prefill(host, 2, TOKENS).chunk == 4096
    wide = tiny_model("llama-3", intermediate_size=50_000)
    assert plan_prefill(wide, 1, TOKENS).chunk == 512


def test_what_does_not_fit_names_what_would():
    model = tiny_model("llama-3", num_hidden_layers=8)
    least = plan_prefill(model, 1, TOKENS, chunk=512)
    limit = plan_prefill(model, 1, TOKENS, kv="int8", order="chunks", chunk=512).peak
    assert limit < least.peak
    with pytest.raises(InputError) as refused:
        plan_prefill(model, 1, TOKENS, max_memory=limit)
    assert "kv='int8' with order='chunks'" in str(refused.value)
    assert "kv='keep' with order='layers'," not in str(refused.value)
    with pytest.raises(InputError, match=r"the least is \d.* pass fewer tokens or more memory"):
        plan_prefill(model, 1, TOKENS, max_memory=10 << 20)
    with pytest.raises(InputError, match="chunks of 32768, got max_memory"):
        plan_prefill(model, 1, TOKENS, chunk=32768, max_memory=limit)


def test_what_the_machine_lacks_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model("llama-3")
    monkeypatch.setattr(planning, "MEMORY", tmp_path / "meminfo")
    assert plan_prefill(model, 1, TOKENS).peak > 100 << 20  # unknown: no limit
    planning.MEMORY.write_text("MemTotal: 24000000 kB\nMemAvailable: 100000 kB\n", "ascii")
    with pytest.raises(InputError, match=r"got \d+\.\d\d GiB of free memory; (these|the least)"):
        plan_prefill(model, 1, 10 * TOKENS)
    assert plan_prefill(model, 1, 10 * TOKENS, max_memory=64 << 30)  # the user knows better


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"kv": "float4"}, "kv must be one of keep, .*, got 'float4'"),
        ({"order": "heads"}, "order must be one of layers, chunks, got 'heads'"),
        ({"kv": "drop", "order": "chunks"}, "got kv='drop'; pass another kv, or order='layers'"),
        ({"max_memory": 0}, "above 0, got 0; pass None"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(wrong: dict, why: str):
    with pytest.raises(InputError, match=why):
        plan_prefill(tiny_model("llama-3"), 1, TOKENS, **wrong)


MEASURE = """
import json, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from sparsefill import AShape, prefill
from sparsefill.environment import peak_bytes
torch.set_num_threads(1)
heads = dict(num_attention_heads=8, num_key_value_heads=4)
sizes = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=2, vocab_size=1000)
model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
read = prefill(
    model, torch.ones(1, 65536, dtype=torch.long), AShape(sink=4, window=128), kv=sys.argv[1],
    order=sys.argv[2],
)
print(json.dumps([read.plan.peak, peak_bytes()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident memory as Linux does")
@pytest.mark.parametrize(("kv", "order"), [("keep", "layers"), ("int8", "chunks")])
def test_the_peak_is_within_15_percent(kv: str, order: str):
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, kv, order],
        env=there,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    expected, measured = json.loads(done.stdout)
    assert 0.85 < expected / measured < 1.15


def test_a_chunk_may_be_longer_than_it_was_asked_for():
    model = tiny_model("llama-3")
    asked = plan_prefill(model, 1, TOKENS, chunk=512)
    assert plan_prefill(model, 1, TOKENS, chunk=512, least=60_000).transient > asked.transient
    assert plan_prefill(model, 1, TOKENS, chunk=512, step=60_000).transient > asked.transient


@pytest.mark.parametrize(("family", "fused"), [("phi3", True), ("llama-3", False)])
def test_fused_projections_count(family: str, fused: bool):
    model = tiny_model(family)
    assert (planning._Sizes.of(model, 1, 64, 1, (), least=1, step=64).fused > 0) == fused


def test_files_that_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("llama-3")
    plan = plan_prefill(model, 1, TOKENS, kv="disk")
    planning.check_files(model, plan, tmp_path)
    free = type(planning.shutil.disk_usage(tmp_path))(10**9, 10**9, 10**6)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(InputError, match=r"save_kv needs 0\.\d\d GiB in .*, got 0\.00 GiB free"):
        planning.check_files(model, plan, tmp_path)
    planning.check_files(model, plan, None)
    monkeypatch.setattr(planning, "memory_at_hand", lambda device: 10**6)
    accelerator, hosted = (
        tiny_model("llama-3").to("meta"),
        plan_prefill(model, 1, TOKENS, kv="host", max_memory=1 << 40),
    )
    with pytest.raises(InputError, match=r"kv='host' needs 0\.\d\d GiB of host memory"):
        planning.check_files(accelerator, hosted, None)


def test_a_container_may_have_less_than_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    host = torch.device("cpu")
    monkeypatch.setattr(planning, "LIMIT", tmp_path / "memory.max")
    whole = planning.memory_at_hand(host)
    if whole is None:
        return  # another system
    planning.LIMIT.write_text("max\n", "ascii")
    assert planning.memory_at_hand(host) != 1 << 20
    planning.LIMIT.write_text("1048576\n", "ascii")
    assert planning.memory_at_hand(host) == 1 << 20
