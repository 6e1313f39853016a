"""What reports say about the machine and the installation."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsefill import environment
from sparsefill.environment import cpu_features, describe_environment, fast_bfloat16, peak_bytes

KEYS = {
    "versions": dict,
    "platform": str,
    "cpu": str,
    "cpu_features": list,
    "threads": int,
    "memory_bytes": int,
    "accelerators": list,
}
CPUINFO = {  # as Linux writes it on x86, on Arm, and where nothing is known
    "x86": (
        "model name\t: Fast CPU\nflags\t\t: fpu avx2 fma smap amx_bf16\n",
        ["avx2", "fma", "amx_bf16"],
    ),
    "arm": ("processor\t: 0\nFeatures\t: fp asimd bf16\n", ["asimd", "bf16"]),
}


def test_description_is_plain_data():
    described = describe_environment()
    assert json.loads(json.dumps(described)) == described
    assert described.keys() == KEYS.keys()
    assert all(isinstance(described[name], kind) for name, kind in KEYS.items())
    assert described["cpu"]
    assert described["threads"] == torch.get_num_threads()
    assert described["memory_bytes"] > peak_bytes()


def test_versions():
    versions = describe_environment()["versions"]
    assert versions["python"] == platform.python_version()
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"sparsefill", "numpy", "transformers", "triton"} < versions.keys()


def test_a_package_that_is_missing_is_not_an_error(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise environment.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "version", missing)
    assert environment.versions()["triton"] == "not installed"


@pytest.mark.parametrize(("text", "features"), CPUINFO.values(), ids=CPUINFO)
def test_cpu_features(
    text: str, features: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cpuinfo").write_text(text, "utf-8")
    monkeypatch.setattr(environment, "Path", lambda _: tmp_path / "cpuinfo")
    assert cpu_features() == features
    assert fast_bfloat16("cpu") == ("amx_bf16" in features)
    assert describe_environment()["cpu"]


def test_without_cpuinfo_torch_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "Path", lambda _: tmp_path / "nowhere")
    assert cpu_features() == [torch.backends.cpu.get_cpu_capability().lower()]
    assert describe_environment()["cpu"]


def test_accelerators_have_bfloat16():
    assert fast_bfloat16("cuda")


def test_accelerators(monkeypatch: pytest.MonkeyPatch):
    class Properties:
        name, major, minor, total_memory = "Fast GPU", 9, 0, 2**36

    def properties(number: int) -> Any:
        return Properties

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    gpu = {"name": "Fast GPU", "capability": "9.0", "memory_bytes": 2**36}
    assert environment.accelerators() == [gpu, gpu]


def test_peak_grows_or_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = peak_bytes()
    assert before > 2**20
    held = torch.ones(2**26)  # 256 MiB
    during = peak_bytes()
    assert during >= max(before, held.nbytes)
    del held
    assert peak_bytes() >= during - 2**20  # Linux counts pages in batches, one for each CPU


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident memory as Linux does")
def test_the_peak_is_that_of_this_process_and_not_of_who_started_it():
    held = bytearray(600 << 20)
    held[::4096] = b"x" * len(held[::4096])
    code = "from sparsefill.environment import peak_bytes\nprint(peak_bytes())"
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=there, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert 10 << 20 < int(done.stdout) < 550 << 20
    assert len(held) == 600 << 20
