"""The unit of work that patterns, indices and kernels agree on."""

TILE = 64  # queries in a row block and keys in a tile: one row of matrix-unit tiles


def causal_count(n: int, m: int) -> int:
    """Count the cells of `n` queries that stand at the last of `m` keys.

    Example:
        >>> causal_count(2, 3)
        5
    """
    return n * (m - n) + n * (n + 1) // 2


def sample_row_blocks(tokens: int, samples: int) -> list[int]:
    """Choose row blocks evenly over a prompt, each once.

    Example:
        >>> sample_row_blocks(64 * 12, 3)
        [2, 6, 10]
    """
    blocks = -(-tokens // TILE)
    samples = min(samples, blocks)
    chosen = (int((sample + 0.5) * blocks / samples) for sample in range(samples))
    return list(dict.fromkeys(chosen))


def sample_rows(n: int, samples: int) -> list[slice]:
    """Choose the queries of so many row blocks, evenly over `n` queries.

    Example:
        >>> sample_rows(150, 2)
        [slice(0, 64, None), slice(128, 150, None)]
    """
    firsts = (TILE * block for block in sample_row_blocks(n, samples))
    return [slice(first, min(first + TILE, n)) for first in firsts]
