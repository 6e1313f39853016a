"""What several processes count is added up, and nothing is left where nobody counts."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from sparsefill.integrations.vllm import metrics
from sparsefill.integrations.vllm.metrics import FOLDER, Counts, Totals


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path / "counts"))
    return tmp_path / "counts"


def shown() -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(Totals())
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_counts_of_all_processes_are_added_up(folder, monkeypatch):
    for process, densities in ((11, [0.25, None]), (12, [0.5])):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        counts = Counts()
        for density in densities:
            counts.add(density=density, recall=None if density != 0.5 else 0.9)
    assert sorted(path.name for path in folder.iterdir()) == ["11.json", "12.json"]
    assert shown() == {
        'sparsefill:prompts_total{path="sparse"}': 2,
        'sparsefill:prompts_total{path="dense"}': 1,
        "sparsefill:density_count": 2,
        "sparsefill:density_sum": 0.75,
        "sparsefill:recall_count": 1,
        "sparsefill:recall_sum": 0.9,
    }


def test_a_count_replaces_the_one_before(folder):
    counts = Counts()
    for _ in range(3):
        counts.add(density=0.5, recall=None)
    [file] = folder.iterdir()
    assert json.loads(file.read_text())["prompts_sparse"] == 3


def test_nothing_is_made_before_anything_is_counted(folder):
    Counts()
    assert not folder.exists()
    assert shown() == {}
    assert not folder.exists()


def test_only_its_owner_sees_the_folder(folder):
    Counts().add(density=None, recall=None)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_count_that_is_being_written_is_not_read(folder):
    Counts().add(density=None, recall=None)
    (folder / ".9.json.half").write_text('{"prompts_sp')
    assert shown()['sparsefill:prompts_total{path="dense"}'] == 1


def test_serving_names_a_folder_once_and_makes_none(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(metrics, "_serving", False)
    registry = CollectorRegistry()
    monkeypatch.setattr("prometheus_client.REGISTRY", registry)
    kept = []
    monkeypatch.setattr("atexit.register", lambda *call, **_: kept.append(call))
    metrics.serve()
    named = os.environ[FOLDER]
    metrics.serve()  # vLLM may load its plugins twice
    assert os.environ[FOLDER] == named
    assert len(kept) == 1
    assert not Path(named).exists()
    assert generate_latest(registry) == b""


def test_a_folder_that_cannot_be_written_ends_the_counting_alone(folder, caplog):
    folder.write_text("a file stands there")
    counts = Counts()
    with caplog.at_level(logging.WARNING, "vllm"):
        for _ in range(3):
            counts.add(density=0.5, recall=None)
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith("sparsefill: /metrics lacks prompts: ")
    assert str(folder) in told
    folder.unlink()
    counts.add(density=0.5, recall=None)
    assert shown()['sparsefill:prompts_total{path="sparse"}'] == 4
