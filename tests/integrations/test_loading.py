"""Loading a directory or a GGUF file: nothing is unpickled or run, nothing is made up."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from sparsefill import InputError
from sparsefill.integrations.transformers.loading import load_model, position_limit
from tests.support.models import logits_of
from tests.support.tiny import PROSE, cut, save_tiny_gguf, save_tiny_llama, tiny_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the tiny model as a directory, and beside it as `tiny.gguf`."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_gguf(folder / "tiny.gguf")
    return save_tiny_llama(folder / "tiny")


@pytest.fixture
def mine(tiny: Path, tmp_path: Path) -> Path:
    """Copy the directory, to break something in it."""
    return shutil.copytree(tiny, tmp_path / "mine")


def answer(spec: Path | str) -> torch.Tensor:
    model, tokenizer, _ = load_model(str(spec))
    return logits_of(model, tokenizer(PROSE, return_tensors="pt").input_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_directory(tiny: Path, dtype: torch.dtype):
    loaded = load_model(str(tiny), dtype=dtype)
    assert loaded.name == str(tiny)
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    assert position_limit(loaded.model) == 4096
    assert loaded.tokenizer(PROSE).input_ids == tiny_tokenizer()(PROSE).input_ids
    weights = load_file(tiny / WEIGHTS)
    assert all(
        torch.equal(tensor, weights[name].to(dtype))
        for name, tensor in loaded.model.state_dict().items()
    )


@pytest.mark.parametrize("inside", [False, True], ids=["path", "bare-name"])
def test_a_gguf_file(tiny: Path, inside: bool, monkeypatch: pytest.MonkeyPatch):
    path = tiny.with_name("tiny.gguf")
    if inside:
        monkeypatch.chdir(path.parent)
    assert torch.equal(answer(path.name if inside else path), answer(tiny))


@pytest.mark.parametrize("name", ["tiny", "tiny.gguf"])
def test_loading_says_nothing(tiny: Path, name: str, capfd: pytest.CaptureFixture[str]):
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    load_model(str(tiny.with_name(name)))
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == level
    assert transformers_logging.is_progress_bar_enabled() == bars


class Trap:
    """Leave a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("unpickled",)


def test_nothing_is_unpickled(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (mine / WEIGHTS).unlink()
    torch.save({"model.norm.weight": Trap()}, mine / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_model(str(mine))
    assert not Path("unpickled").exists()


def test_code_of_a_model_is_not_run(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = json.loads((mine / "config.json").read_text("utf-8"))
    config["model_type"] = "homemade"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (mine / "config.json").write_text(json.dumps(config), "utf-8")
    (mine / "own.py").write_text("import os\nos.mkdir('executed')\n", "utf-8")
    with pytest.raises(InputError, match=r"trust[_-]remote[_-]code"):
        load_model(str(mine))
    assert not Path("executed").exists()


@pytest.mark.parametrize("trust", [False, True])
def test_trust_is_passed_on(tiny: Path, trust: bool, monkeypatch: pytest.MonkeyPatch):
    told = []
    for name in ("AutoTokenizer", "AutoModelForCausalLM"):
        kind = getattr(transformers, name)

        def note(*args: Any, load: Any = kind.from_pretrained, **options: Any) -> Any:
            told.append(options["trust_remote_code"])
            return load(*args, **options)

        monkeypatch.setattr(kind, "from_pretrained", note)
    load_model(str(tiny), trust_remote_code=trust)
    assert told == [trust, trust]


def without(path: Path, name: str) -> None:
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})


def cropped(path: Path, name: str) -> None:
    weights = load_file(path)
    weights[name] = weights[name][1:].clone()
    save_file(weights, path, metadata={"format": "pt"})


LAYER = "model.layers.1.self_attn.q_proj.weight"
BROKEN: dict[str, Callable[[Path], object]] = {
    "no-config": lambda mine: (mine / "config.json").unlink(),
    "bad-config": lambda mine: cut(mine / "config.json"),
    "unknown-type": lambda mine: (mine / "config.json").write_text('{"model_type": "abacus"}'),
    "no-weights": lambda mine: (mine / WEIGHTS).unlink(),
    "cut-weights": lambda mine: cut(mine / WEIGHTS),
    "missing-weight": lambda mine: without(mine / WEIGHTS, LAYER),
    "misshapen-weight": lambda mine: cropped(mine / WEIGHTS, LAYER),
    "no-tokenizer": lambda mine: [file.unlink() for file in mine.glob("tokenizer*")],
    "bad-tokenizer": lambda mine: cut(mine / "tokenizer.json"),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_broken_directory_is_refused(mine: Path, damage: Callable[[Path], object]):
    damage(mine)
    with pytest.raises(InputError, match=str(mine)) as refused:
        load_model(str(mine))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("keep", [None, 0, 100, 50_000], ids=str)
def test_a_broken_gguf_file_is_refused(tiny: Path, tmp_path: Path, keep: int | None):
    path = tmp_path / "mine.gguf"
    if keep is not None:
        path.write_bytes(tiny.with_name("tiny.gguf").read_bytes()[:keep])
    with pytest.raises(InputError, match=str(path)):
        load_model(str(path))
