"""Decoding with some of the keys: SnapKV (Li et al. 2024, arXiv:2404.14469), by `kvpress`.

The prompt is read as without. Then every layer keeps, for each of its key heads, the keys that
its last queries attend to most, those queries' own among them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import transformers
from packaging.requirements import Requirement
from torch import nn

from sparsefill.errors import UnsupportedError

WINDOW, POOLED = 32, 5  # queries that choose, and neighbours that share a score: MInference's


@contextmanager
def keeping(model: nn.Module, keys: int | None, tokens: int) -> Iterator[None]:
    """Have the cache of one prompt hold some keys alone, once each layer has read it.

    Args:
        keys: of each head; all when None.
        tokens: of the prompt.

    Raises:
        UnsupportedError: `kvpress` is not installed, or not for this release of transformers.
    """
    if keys is None or tokens <= keys:
        yield
        return
    require_press()
    press = importlib.import_module("kvpress").SnapKVPress
    share = (keys + 0.5) / tokens  # of which kvpress takes the whole part
    with press(compression_ratio=1 - share, window_size=WINDOW, kernel_size=POOLED)(model):
        yield


def require_press() -> None:
    """Check that prompts can be read with `keeping`.

    Raises:
        UnsupportedError: `kvpress` is not installed, or not for this release of transformers.
    """
    try:
        needs = [Requirement(line) for line in requires("kvpress") or ()]
    except PackageNotFoundError as error:
        raise UnsupportedError(
            "a method with +snapkv needs kvpress; run: pip install 'sparsefill[snapkv]'"
        ) from error
    ours = transformers.__version__
    for need in needs:
        if need.name == "transformers" and not need.specifier.contains(ours, prereleases=True):
            raise UnsupportedError(
                f"kvpress {version('kvpress')} needs transformers{need.specifier}, got {ours}; run:"
                " pip install 'sparsefill[snapkv]'"
            )


def require_kept(cache: Any, keys: int) -> None:
    """Check that a cache holds so many keys in every layer: models that kvpress skips do not.

    Raises:
        UnsupportedError: some layer holds more or fewer.
    """
    held = [layer.keys.shape[2] for layer in getattr(cache, "layers", ())]
    if not held or set(held) != {keys}:
        raise UnsupportedError(
            f"SnapKV should leave {keys} keys in each layer, got {sorted({*held})}; this kind of"
            " model or cache is not supported"
        )
