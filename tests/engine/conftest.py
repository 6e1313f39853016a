"""Tiny models, on one thread: waiting for a second one costs more than it brings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sparsefill.engine import chunks


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def attending(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let few queries attend together, so that short prompts take several groups of chunks."""
    most = getattr(request, "param", 400)
    monkeypatch.setattr(chunks, "ATTENDING", most)
    return most
