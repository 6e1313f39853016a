"""Dynamic sparse attention for reading long prompts fast.

Three stages, each usable alone: a *pattern* says which family of cells a head keeps,
`estimate` finds the cells of this input as a `SparseIndex`, `attend` computes them.
`sparse_attention` is all three.
"""

from sparsefill.attention import sparse_attention
from sparsefill.errors import (
    InputError,
    PatternError,
    ProfileError,
    ShapeError,
    SparsefillError,
    UnsupportedError,
)
from sparsefill.estimate import estimate
from sparsefill.index import SparseIndex
from sparsefill.kernels import Attended, attend
from sparsefill.patterns import (
    AShape,
    BlockTopK,
    Dense,
    FixedSlash,
    Pattern,
    TriShape,
    VerticalSlash,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "AShape",
    "Attended",
    "BlockTopK",
    "Dense",
    "FixedSlash",
    "InputError",
    "Pattern",
    "PatternError",
    "ProfileError",
    "ShapeError",
    "SparseIndex",
    "SparsefillError",
    "TriShape",
    "UnsupportedError",
    "VerticalSlash",
    "attend",
    "estimate",
    "sparse_attention",
]
