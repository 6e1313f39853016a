"""The unit of work that patterns, indices and kernels agree on."""

TILE = 64  # queries in a row block and keys in a tile: one row of matrix-unit tiles


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
