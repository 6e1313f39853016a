"""vLLM in processes of its own, one engine at a time: `make test-vllm`."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
LENGTHS = (40, 700, 30, 1300, 200)
MISSING = importlib.util.find_spec("vllm") is None
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_NO_USAGE_STATS": "1",
}


class Skipped(pytest.File):
    """A file that this environment cannot run."""

    def collect(self) -> NoReturn:
        pytest.skip("vLLM is not installed: make test-vllm")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Skipped | None:
    return Skipped.from_parent(parent, path=module_path) if MISSING else None


def environment(**more: str) -> dict[str, str]:
    """Name the commands of this environment first, and the tests' own modules."""
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **ENVIRONMENT, "PATH": commands, "PYTHONPATH": str(ROOT), **more}


def run_child(module: str, *arguments: object, **more: str) -> str:
    """Run a module of the tests in a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.vllm.{module}", *map(str, arguments)],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def prompts() -> list[list[list[int]]]:
    """Make five prompts that are read together, then one that begins as the longest does."""
    drawn = random.Random(0)
    first = [[drawn.randrange(3, 258) for _ in range(n)] for n in LENGTHS]
    return [first, [first[3] + [drawn.randrange(3, 258) for _ in range(300)]]]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What an engine answered.

    Args:
        answers: of each prompt, its tokens and their log-probabilities.
        metrics: what the plugin counted, as Prometheus reads it.
        told: the plugin's lines in the log.
    """

    answers: list[dict[str, Any]]
    metrics: str
    told: list[str]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    run_child("save_model", folder)
    return folder


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def stock(model: Path, scratch: Path) -> Ran:
    """Answer the prompts by vLLM as it comes."""
    return generate(scratch, model, prompts(), None)


def generate(
    scratch: Path,
    model: Path,
    rounds: list[list[list[int]]],
    options: dict[str, Any] | None,
    *,
    environment: dict[str, str] | None = None,
    **engine: Any,
) -> Ran:
    """Answer rounds of prompts in an engine; without options it is vLLM as it comes."""
    usual: dict[str, Any] = {
        "model": str(model),
        "dtype": "float32",
        "max_model_len": 2048,
        "max_num_batched_tokens": 512,
        "enforce_eager": True,
        "seed": 0,
    }
    if options is not None:
        usual |= {"attention_backend": "CUSTOM", "additional_config": {"sparsefill": options}}
    job, result = scratch / "job.json", scratch / "result.json"
    result.unlink(missing_ok=True)
    job.write_text(json.dumps({"engine": usual | engine, "rounds": rounds, "tokens": 16}))
    log = run_child("generate", job, result, **(environment or {}))
    return Ran(**json.loads(result.read_text()), told=told_in(log))


def told_in(log: str) -> list[str]:
    """Return what the plugin said in a log, without what vLLM puts before it."""
    return re.findall(r"\] (sparsefill(?:| cannot start): .*)", log)
