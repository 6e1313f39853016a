"""The methods of the paper's tables: full attention, MInference, its ablations, the baselines.

All read the prompt by the same kernels and decode with all keys, unless SnapKV drops some. Settings
are those of Jiang et al. 2024, section 4 (arXiv:2407.02490).
"""

from __future__ import annotations

from sparsefill.errors import InputError
from sparsefill.evals.lengths import parse_length, short_length
from sparsefill.patterns import AShape, Dense, InfLLM, Interleaved, Pattern, parse_pattern
from sparsefill.profile import Profile
from sparsefill.reader import Method

FULL = "full"
KEYS = 4096  # that SnapKV keeps, as in MInference's repository

PATTERNS: dict[str, Pattern] = {
    FULL: Dense(),
    "streaming-llm": AShape(sink=1024, window=4096),
    "dilated": Interleaved(sink=1024, even=8192, odd=0),
    "strided": Interleaved(sink=1024, even=2048, odd=6144),
    "infllm": InfLLM(sink=128, window=8192),
}


def method_of(name: str, profile: Profile) -> Method:
    """Build a method from its name: one of the paper's, or a pattern for all heads.

    `minference@4k` reads in chunks of 4,096 tokens, and `minference+snapkv` decodes with 4,096
    keys of each head (`+snapkv=1k` with 1,024); so does any other method.

    Args:
        profile: what `minference` and its ablation read by.

    Raises:
        InputError: no such method, or none that reads in chunks.

    Example:
        >>> from sparsefill.profile import Architecture
        >>> shape = Architecture(layers=1, heads=2, kv_heads=1, head_dim=64)
        >>> method = method_of("streaming-llm@4096", Profile.uniform(Dense(), shape))
        >>> method.name, method.cells, method.chunk
        ('streaming-llm@4k', AShape(sink=1024, window=4096), 4096)
    """
    of, snapkv, kept = name.partition("+snapkv")
    of, at, tokens = of.partition("@")
    try:
        chunk = parse_length(tokens) if at else None
        keys = KEYS if snapkv and not kept else None
        if kept:
            keys = parse_length(kept[1:] if kept[0] == "=" else "")
    except InputError:
        raise InputError(
            f"--method {of}@CHUNK or {of}+snapkv=KEYS must name tokens such as 4096 or 4k, got"
            f" {name!r}"
        ) from None
    called = of + (f"@{short_length(chunk)}" if chunk else "")
    if keys is not None:
        called += "+snapkv" + (f"={short_length(keys)}" if keys != KEYS else "")
    cells = profile if of in ("minference", "static") else _pattern_of(of)
    return Method(name=called, cells=cells, static=of == "static", chunk=chunk, keys=keys)


def _pattern_of(name: str) -> Pattern:
    if name in PATTERNS:
        return PATTERNS[name]
    try:
        return parse_pattern(name)
    except InputError as error:
        raise InputError(
            f"--method must be one of {', '.join(names())}, or a pattern ({error}), each with"
            " @CHUNK or +snapkv behind it or without"
        ) from None


def names() -> list[str]:
    """List the methods that have names of their own."""
    return [FULL, "minference", "static", *(name for name in PATTERNS if name != FULL)]
