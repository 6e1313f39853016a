"""Texts that come with the package."""

import lzma
from importlib import resources
from typing import Literal


def novel(name: Literal["persuasion", "northanger-abbey"] = "persuasion") -> str:
    """Return a novel by Jane Austen, in the public domain.

    *Persuasion* is the prompt of demos and benchmarks, and what a search is checked on;
    *Northanger Abbey* is what it calibrates on.
    """
    packed = resources.files(__name__) / f"{name}.txt.xz"
    return lzma.decompress(packed.read_bytes()).decode("utf-8")
