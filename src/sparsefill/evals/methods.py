"""The methods of the paper's tables: full attention, MInference, its ablations, the baselines.

All read the prompt by the same kernels and decode densely. Settings are those of Jiang et al.
2024, section 4 (arXiv:2407.02490).
"""

from __future__ import annotations

from sparsefill.errors import InputError
from sparsefill.evals.lengths import parse_length
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

    `minference@4k` reads in chunks of 4,096 tokens; so does any other method.

    Args:
        profile: what `minference` and its ablation read by.

    Raises:
        InputError: no such method, or none that reads in chunks.

    Example:
        >>> from sparsefill.profile import Architecture
        >>> shape = Architecture(layers=1, heads=2, kv_heads=1, head_dim=64)
        >>> method_of("streaming-llm", Profile.uniform(Dense(), shape)).cells
        AShape(sink=1024, window=4096)
    """
    of, at, tokens = name.partition("@")
    try:
        chunk = parse_length(tokens) if at else None
    except InputError:
        raise InputError(
            f"--method {of}@CHUNK must name tokens such as 4096 or 4k, got {name!r}"
        ) from None
    if of in ("minference", "static"):
        return Method(name=name, cells=profile, static=of == "static", chunk=chunk)
    if of in PATTERNS:
        return Method(name=name, cells=PATTERNS[of], chunk=chunk)
    try:
        return Method(name=name, cells=parse_pattern(of), chunk=chunk)
    except InputError as error:
        raise InputError(
            f"--method must be one of {', '.join(names())}, or a pattern ({error}), each with"
            " @CHUNK behind it or without"
        ) from None


def names() -> list[str]:
    """List the methods that have names of their own."""
    return [FULL, "minference", "static", *(name for name in PATTERNS if name != FULL)]
