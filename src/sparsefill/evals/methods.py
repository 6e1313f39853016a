"""The methods of the paper's tables: full attention, MInference, its ablations, the baselines.

All read the prompt by the same kernels and decode densely. Settings are those of Jiang et al.
2024, section 4 (arXiv:2407.02490).
"""

from __future__ import annotations

from sparsefill.errors import InputError
from sparsefill.patterns import AShape, Dense, InfLLM, Interleaved, Pattern, parse_pattern
from sparsefill.profile import Profile
from sparsefill.reader import Method

FULL = "full"


PATTERNS: dict[str, Pattern] = {
    FULL: Dense(),
    "streaming-llm": AShape(sink=1024, window=4096),
    "dilated": Interleaved(sink=1024, even=8192, odd=0),
    "strided": Interleaved(sink=1024, even=2048, odd=6144),
    "infllm": InfLLM(sink=128, window=8192),
}


def method_of(name: str, profile: Profile) -> Method:
    """Build a method from its name: one of the paper's, or a pattern for all heads.

    Args:
        profile: what `minference` and its ablation read by.

    Raises:
        InputError: no such method.

    Example:
        >>> from sparsefill.profile import Architecture
        >>> shape = Architecture(layers=1, heads=2, kv_heads=1, head_dim=64)
        >>> method_of("streaming-llm", Profile.uniform(Dense(), shape)).cells
        AShape(sink=1024, window=4096)
    """
    if name in ("minference", "static"):
        return Method(name=name, cells=profile, static=name == "static")
    if name in PATTERNS:
        return Method(name=name, cells=PATTERNS[name])
    try:
        return Method(name=name, cells=parse_pattern(name))
    except InputError as error:
        raise InputError(
            f"--method must be one of {', '.join(names())}, or a pattern ({error})"
        ) from None


def names() -> list[str]:
    """List the methods that have names of their own."""
    return [FULL, "minference", "static", *(name for name in PATTERNS if name != FULL)]
