"""What was read before a kill is not read again, and the logits are those of one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsefill import AShape, Dense, InputError, prefill
from sparsefill.engine.saved import Saved
from sparsefill.patterns import Pattern
from tests.engine.test_decode import greedily
from tests.support.models import prompt, tiny_model

N, LAYERS, CHUNKS = 400, 3, 4
PATTERN = AShape(sink=3, window=70)
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.engine.test_resume import read
order, kv, step, folder = sys.argv[1:]

def kill(done, total):
    if done == int(step):
        os.kill(os.getpid(), signal.SIGKILL)

read(folder, order=order, kv=kv, on_progress=kill)
"""


def model_of(**options: Any) -> Any:
    return tiny_model("llama-3", num_hidden_layers=LAYERS, **options)


def read(folder: str | Path | None, model: Any = None, pattern: Pattern = PATTERN, **options: Any):
    settings: dict[str, Any] = {"chunk": 128, "min_length": 1, "save_kv": folder, **options}
    ids = settings.pop("ids", prompt(N))
    return prefill(model_of() if model is None else model, ids, pattern, **settings)


class StoppedError(Exception):
    """Ends a prefill as if the process had been killed: nothing more is written."""


def stop_at(step: int):
    def stop(done: int, total: int) -> None:
        if done == step:
            raise StoppedError

    return stop


def count_forwards(model: Any) -> list[int]:
    """Count how many chunks pass the MLP of each layer."""
    counts = [0] * LAYERS
    for number, layer in enumerate(model.model.layers):

        def note(module: Any, args: Any, number: int = number) -> None:
            counts[number] += 1

        layer.mlp.register_forward_pre_hook(note)
    return counts


@pytest.mark.parametrize(
    ("order", "kv", "step"),
    [("layers", "disk", 20), ("chunks", "int8", 2)],
)
def test_kill_and_resume(order: str, kv: str, step: int, tmp_path: Path):
    command = [sys.executable, "-c", KILLED, order, kv, str(step), str(tmp_path)]
    # pytest made this process import from here; the other one has to be told
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=there, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    check_resumed(tmp_path, order, kv)


def check_resumed(folder: Path, order: str, kv: str) -> list[int]:
    """Resume, compare with one run, and return how many chunks passed each layer."""
    model = model_of()
    counts = count_forwards(model)
    found = read(folder, model, order=order, kv=kv, resume=True)
    repeated = list(counts)
    whole = folder.parent / f"{folder.name}-whole"
    expected = read(whole, order=order, kv=kv)
    assert torch.equal(found.logits, expected.logits)
    if kv != "drop":
        tokens = greedily(model, expected.cache, expected.logits, 8)
        assert greedily(model, found.cache, found.logits, 8) == tokens
    return repeated


BY_LAYERS = 2 * CHUNKS  # steps of a layer


@pytest.mark.parametrize("step", [1, 8, 9, 15, 17, 24])
@pytest.mark.parametrize("kv", ["keep", "drop"])
def test_by_layers_at_most_one_is_repeated(kv: str, step: int, tmp_path: Path):
    folder = tmp_path / "saved"
    with pytest.raises(StoppedError):
        read(folder, kv=kv, on_progress=stop_at(step))
    counts = check_resumed(folder, "layers", kv)
    done = (step - 1) // BY_LAYERS  # a step is told before its layer is saved
    one = 1 if done else 0  # of one token, to see what layers return
    assert counts == [one + (0 if layer < done else CHUNKS) for layer in range(LAYERS)]


def test_the_run_records_only_what_was_read_now(tmp_path: Path):
    with pytest.raises(StoppedError):
        read(tmp_path, on_progress=stop_at(BY_LAYERS + 1))
    found = read(tmp_path, resume=True)
    assert [call.layer for call in found.run.calls] == [1, 2]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("kv", ["keep", "int8", "host", "disk"])
def test_by_chunks_none_is_repeated(kv: str, step: int, tmp_path: Path):
    folder = tmp_path / "saved"
    with pytest.raises(StoppedError):
        read(folder, kv=kv, order="chunks", on_progress=stop_at(step))
    counts = check_resumed(folder, "chunks", kv)
    assert counts == [max(1, CHUNKS - step)] * LAYERS


@pytest.mark.parametrize("kv", ["keep", "int8", "host", "disk"])
def test_by_layers_every_policy_resumes(kv: str, tmp_path: Path):
    folder = tmp_path / "saved"
    with pytest.raises(StoppedError):
        read(folder, kv=kv, on_progress=stop_at(2 * BY_LAYERS + 3))
    check_resumed(folder, "layers", kv)


@pytest.mark.parametrize("family", ["gemma3", "phi3", "glm4", "longrope"])
@pytest.mark.parametrize("order", ["layers", "chunks"])
def test_other_families_resume(family: str, order: str, tmp_path: Path):
    model = tiny_model(family).bfloat16()
    expected = read(tmp_path / "whole", model, order=order)
    stop = stop_at(BY_LAYERS + 5 if order == "layers" else 2)
    with pytest.raises(StoppedError):
        read(tmp_path / "saved", model, order=order, on_progress=stop)
    found = read(tmp_path / "saved", model, order=order, resume=True)
    assert torch.equal(found.logits, expected.logits)


def test_a_finished_prefill_resumes_too(tmp_path: Path):
    for order in ("layers", "chunks"):
        whole = read(tmp_path / order, order=order)
        again = read(tmp_path / order, order=order, resume=True)
        assert torch.equal(whole.logits, again.logits)


def test_resuming_takes_the_chunk_of_the_earlier_run(tmp_path: Path):
    read(tmp_path, chunk=192)
    assert read(tmp_path, chunk=None, resume=True).plan.chunk == 192


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"ids": prompt(N, seed=1)}, "prompt differ"),
        ({"ids": prompt(N + 1)}, "prompt, shape, bounds differ"),
        ({"pattern": Dense()}, "patterns differ"),
        ({"order": "chunks"}, "order differ"),
        ({"kv": "int8"}, r"kv differ \(kv: .* there, int8 now\)"),
        ({"chunk": 200}, "bounds, chunk differ"),
        ({"min_length": 2}, "min_length differ"),
        ({"backend": "torch"}, "backend differ"),
        ({"model": {"rope_theta": 10_000.0}}, "architecture, config differ"),
        ({"model": {"intermediate_size": 64}}, "model, config differ"),
        ({"model": {"rms_norm_eps": 1e-2}}, r"config differ \(only their hashes"),
        ({"model": {"hidden_act": "gelu"}}, "config differ"),
    ],
    ids=lambda own: own if isinstance(own, str) else "-".join(own),
)
def test_another_prefill_is_refused(changed: dict[str, Any], why: str, tmp_path: Path):
    read(tmp_path)
    before = (tmp_path / "prefill.json").read_bytes()
    if "model" in changed:
        changed = {"model": model_of(**changed["model"])}
    with pytest.raises(InputError, match=f"holds another prefill: {why}"):
        read(tmp_path, resume=True, **changed)
    assert (tmp_path / "prefill.json").read_bytes() == before


def test_a_single_changed_weight_is_another_model(tmp_path: Path):
    read(tmp_path)
    model = model_of()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[-1, -1] += 1
    with pytest.raises(InputError, match="holds another prefill: model differ"):
        read(tmp_path, model, resume=True)


def test_a_prefill_is_not_overwritten(tmp_path: Path):
    read(tmp_path)
    with pytest.raises(InputError, match="already holds a prefill; pass resume"):
        read(tmp_path)


def test_a_folder_without_a_prefill_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no prefill to resume"):
        read(tmp_path / "nowhere", resume=True)


def damage(text: str, **changed: Any) -> str:
    return json.dumps({**json.loads(text), **changed})


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: damage(text, schema=2),
        lambda text: damage(text, done=-1),
        lambda text: damage(text, done="2"),
        lambda text: damage(text, done=7),
        lambda text: damage(text, done=1),  # of two layers' heads
        lambda text: damage(text, settings=None),
        lambda text: damage(text, settings={}),
        lambda text: damage(text, heads=[{}]),
        lambda text: damage(text, heads=[{"k": [1, 2, 0], "v": [1, 2, 16]}] * 2),
        lambda text: "\0" * len(text),
    ],
)
def test_a_damaged_manifest_is_refused(broken, tmp_path: Path):
    read(tmp_path)
    manifest = tmp_path / "prefill.json"
    manifest.write_text(broken(manifest.read_text("utf-8")), "utf-8")
    with pytest.raises(InputError, match=r"prefill.json is damaged"):
        read(tmp_path, resume=True)


@pytest.mark.parametrize("name", ["layer-1.k", "layer-0.v", "hidden-0"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_file_is_refused(name: str, how: str, tmp_path: Path):
    read(tmp_path)
    path = tmp_path / name
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=rf"{name} must be a file of \d+ bytes"):
        read(tmp_path, resume=True)


def test_a_folder_is_one_processs_at_a_time(tmp_path: Path):
    held = Saved(tmp_path / "held", resume=False)
    with pytest.raises(InputError, match=r"another process reads a prompt into .*held"):
        read(tmp_path / "held")
    held.close()
    read(tmp_path / "held")


def test_other_files_are_not_overwritten(tmp_path: Path):
    (tmp_path / "layer-0.k").write_text("precious", "utf-8")
    with pytest.raises(InputError, match=r"a folder of its own, got .* with layer-0\.k"):
        read(tmp_path)
    assert (tmp_path / "layer-0.k").read_text("utf-8") == "precious"
    with pytest.raises(InputError, match="must be a folder to write to"):
        read(tmp_path / "layer-0.k")


def test_a_forward_of_another_library_is_put_back(tmp_path: Path):
    model = model_of()
    with pytest.raises(StoppedError):
        read(tmp_path, model, on_progress=stop_at(2 * CHUNKS + 1))
    layer = model.model.layers[0]
    plain, calls = layer.forward, []

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    layer.forward = own
    read(tmp_path, model, resume=True)
    assert layer.forward is own
    assert len(calls) == 1  # what it returns was looked at; then it was skipped


def test_a_folder_stays_where_it_was_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    model = model_of()

    def leave(done: int, total: int) -> None:
        os.chdir(elsewhere)

    done = read(Path("kept"), model, kv="disk", on_progress=leave)
    assert not list(elsewhere.iterdir())
    assert done.cache is not None
    assert len(greedily(model, done.cache, done.logits, 2)[0]) == 2
