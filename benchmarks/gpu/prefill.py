"""A million tokens end to end: Llama-3-8B's shape with random weights, read by the engine.

Weights are drawn, so that nothing need be downloaded: times and memory are those of the
model, what its heads keep is not. Dense is the stock model with SDPA, measured as far as it
fits and extrapolated from there; rows say so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from benchmarks.cases import run_case
from benchmarks.gpu.check import VARIANTS, Check
from benchmarks.session import Session
from sparsefill.errors import UnsupportedError

DENSE = (32768, 65536, 131072)  # three lengths are the fewest to extrapolate from
LARGER = 262144  # may be too much for the stock model; before the longest, for the better fit
LONGEST = 1048576
SECONDS = 15.0  # of timed runs of one function; a reading that takes longer is not repeated
NEEDED = ("transformers", "greenlet", "tokenizers", "typer")  # beyond what the kernels need


def time_prefill(check: Check, lengths: Sequence[int], *, dense_up_to: int) -> None:
    """Read prompts sparsely with the engine, and densely up to a length, and append rows.

    The engine running out of memory is an error like any other.

    Raises:
        UnsupportedError: there is no model, a package is missing, or dense does not fit.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(f"a whole model needs {', '.join(NEEDED)}, got no {missing[0]}")
    if check.model is None:
        raise UnsupportedError("a whole model takes too long on a CPU; pass a small --model")
    from benchmarks.cases.prefill import Engine, Request

    session = Session(
        ledger=check.ledger,
        asked=(VARIANTS[0],),
        repeats=3,
        max_seconds=SECONDS,
        seed=check.seed,
        environment=check.environment,
    )
    request = Request(
        lengths=lengths,
        model=check.model,
        dtype="bf16",
        recall=True,
        dense_up_to=dense_up_to,
        engine=Engine(kv="drop"),
        device=check.device.type,
    )
    run_case("prefill", request, session)
