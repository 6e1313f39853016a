"""The unit of work that patterns, indices and kernels agree on."""

TILE = 64  # queries in a row block and keys in a tile: one row of matrix-unit tiles
