"""Importing sparsefill is quiet, loads nothing optional, and needs nothing optional."""

from __future__ import annotations

import json
import subprocess
import sys

OPTIONAL = (
    "transformers",
    "triton",
    "vllm",
    "prometheus_client",
    "lm_eval",
    "matplotlib",
    "typer",
    "rich",
    "gguf",
    "greenlet",
)

OBSERVE = """
import json, logging, sys, threading, warnings
import torch, jaxtyping, numpy

def state():
    return [
        str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled(),
        torch.initial_seed(), len(warnings.filters), len(logging.root.handlers),
        logging.root.level, threading.active_count(), torch.cuda.is_initialized(),
    ]

before, modules = state(), set(sys.modules)
import sparsefill
changed = state() != before
loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - modules})
sys.stdout.flush()
open(sys.argv[1], "w").write(json.dumps({"changed": changed, "loaded": loaded}))
"""

HIDE = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
import torch
from sparsefill import *
q = torch.randn(1, 2, 100, 32)
assert sparse_attention(q, q, q, VerticalSlash(verticals=5, slashes=5)).isfinite().all()
try:
    prefill(torch.nn.Linear(1, 1), torch.ones(1, 1, dtype=torch.long))
except UnsupportedError as error:
    assert "pip install 'sparsefill[transformers]'" in str(error)
else:
    raise AssertionError
"""

VLLM = "import sparsefill.integrations.vllm"
COMMAND_LINE = """
import sys
sys.modules.update(typer=None)
from sparsefill.cli import main
main()
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_importing_prints_nothing_loads_nothing_optional_and_changes_nothing(tmp_path):
    seen = tmp_path / "seen.json"
    done = run(OBSERVE, str(seen))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    observed = json.loads(seen.read_text())
    assert "sparsefill" in observed["loaded"]
    assert not set(observed["loaded"]) & set(OPTIONAL)
    assert not observed["changed"]


def test_works_where_nothing_optional_is_installed():
    done = run(HIDE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_vllm_loads_in_all_of_its_processes_is_light(tmp_path):
    seen = tmp_path / "seen.json"
    done = run(OBSERVE.replace("import sparsefill\n", f"{VLLM}\n"), str(seen))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    observed = json.loads(seen.read_text())
    assert not set(observed["loaded"]) & set(OPTIONAL)
    assert not observed["changed"]


def test_the_command_line_names_what_it_lacks():
    done = run(COMMAND_LINE)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "needs typer" in done.stderr
    assert "pip install" in done.stderr
