"""How a prompt is cut: chunks that pass the model at once, groups of them that attend at once."""

from __future__ import annotations

from collections.abc import Sequence

ATTENDING = 16384  # queries that attend at once, in as many chunks as that takes


def chunks_of(tokens: int, chunk: int, *, least: int, step: int) -> list[tuple[int, int]]:
    """Cut a prompt into chunks.

    Args:
        least: tokens that the last chunk needs; it takes those of the one before if it must.
        step: all chunks but the last are multiples of it.

    Example:
        >>> chunks_of(1000, 256, least=64, step=64)
        [(0, 256), (256, 512), (512, 768), (768, 1000)]
        >>> chunks_of(1000, 320, least=64, step=64)
        [(0, 320), (320, 640), (640, 1000)]
    """
    size = max(step, chunk // step * step)
    firsts = list(range(0, tokens, size))
    while len(firsts) > 1 and tokens - firsts[-1] < least:
        firsts.pop()
    return list(zip(firsts, [*firsts[1:], tokens], strict=True))


def groups_of(bounds: Sequence[tuple[int, int]]) -> list[slice]:
    """Say which chunks attend together: as many as there are in `ATTENDING` tokens.

    Example:
        >>> groups_of([(0, 8192), (8192, 16384), (16384, 24576)])
        [slice(0, 2, None), slice(2, 3, None)]
    """
    size = max(1, ATTENDING // bounds[0][1])
    return [slice(i, min(i + size, len(bounds))) for i in range(0, len(bounds), size)]
