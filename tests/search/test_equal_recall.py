"""The benchmark of density at equal recall: what it interpolates, and a run on a tiny model."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.equal_recall import FOUND, crossing, main
from tests.support.tiny import save_tiny_llama


def point(density: float, recall: float) -> dict[str, float]:
    return {"density": density, "recall": recall, "cost": 2 * density, "output_error": 1 - recall}


def test_where_recall_crosses_the_target():
    found = crossing("method", [point(0.4, 0.9), point(0.1, 0.5), point(0.2, 0.7)], 0.8)
    assert found.density == pytest.approx(0.3)
    assert found.cost == pytest.approx(0.6)
    assert found.output_error == pytest.approx(0.2)
    assert crossing("method", [point(0.1, 0.5), point(0.4, 0.7)], 0.8).density is None
    assert crossing("method", [point(0.1, 0.9), point(0.4, 0.95)], 0.8).density == 0.1


def test_a_run_and_the_same_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save_tiny_llama(tmp_path / "tiny")
    written = []
    for _ in range(2):  # the second goes on with the scores of the first
        main(out=Path("out.json"), lengths="640", recall=0.9, model="tiny", held_out=None)
        written.append(Path("out.json").read_text("utf-8"))
    assert written[0] == written[1]
    (length,) = json.loads(written[0])["lengths"]
    assert length["held_out"]["tokens"] == 640
    methods = {one["method"]: one for one in length["methods"]}
    families = {"a-shape only", "vertical-slash only", "block-topk only"}
    assert set(methods) == families | set(FOUND)
    for one in methods.values():
        densities = [p["density"] for p in one["points"]]
        assert len(densities) >= 2
        assert all(low < high for low, high in pairwise([0, *densities]))
        assert densities[-1] <= 1
        recalls = [p["recall"] for p in one["points"]]
        assert recalls == sorted(recalls)
