"""Texts that come with the package."""

import lzma
from importlib import resources


def novel() -> str:
    """Return *Persuasion* by Jane Austen, the prompt of demos and benchmarks."""
    packed = resources.files(__name__) / "persuasion.txt.xz"
    return lzma.decompress(packed.read_bytes()).decode("utf-8")
