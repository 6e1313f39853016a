"""Dynamic sparse attention for reading long prompts fast.

Three stages, each usable alone: a *pattern* says which family of cells a head keeps,
`estimate` finds the cells of this input as a `SparseIndex`, `attend` computes them.
`sparse_attention` is all three. `prefill` reads a whole prompt with a model.
"""

from typing import TYPE_CHECKING, Any

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
    InfLLM,
    Interleaved,
    Pattern,
    TriShape,
    VerticalSlash,
)

if TYPE_CHECKING:
    from sparsefill.engine import engine_prefill, prefill

__version__ = "0.1.0.dev0"

__all__ = [
    "AShape",
    "Attended",
    "BlockTopK",
    "Dense",
    "FixedSlash",
    "InfLLM",
    "InputError",
    "Interleaved",
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
    "engine_prefill",
    "estimate",
    "prefill",
    "sparse_attention",
]


def __getattr__(name: str) -> Any:
    """Import the prefill engine when it is asked for, not before."""
    if name in ("engine_prefill", "prefill"):
        from sparsefill import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
