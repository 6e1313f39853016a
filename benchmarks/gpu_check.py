"""The GPU check: right first, then how fast. `python -m benchmarks.gpu_check --out DIR`.

Needs torch, Triton, numpy and jaxtyping, nothing compiled, and no package index; to read a
whole model also transformers, greenlet and typer, which is skipped without them. Works against
a clock, the most telling parts first, and appends each row as soon as it is known: a run that
is cut short still tells.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.arguments import Shape, parse_lengths, parse_shapes
from benchmarks.gpu.attend import time_attend
from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.check import LLAMA_3_8B, Check, DeviceLostError, variants
from benchmarks.gpu.estimate import time_estimate
from benchmarks.gpu.prefill import DENSE, LARGER, LONGEST, time_prefill
from benchmarks.gpu.table import failures, lay_out
from benchmarks.gpu.values import (
    TABLE_SECONDS,
    check_rest,
    check_table,
    check_timed,
    table_cases,
)
from benchmarks.gpu.watch import check_memory, check_races
from benchmarks.rows import Ledger
from sparsefill.estimate import KERNELS
from sparsefill.kernels import BACKENDS

LENGTHS = (8192, 131072, 1048576, 32768, 524288)  # in the order of what they tell
MODEL = "random:llama-3-8b-1048k"
TELLING = 3  # lengths that come before the table of values and the slow tools
Part = tuple[str, Callable[[], None]]


def main() -> None:
    """Run what the time allows; exit code 1 if one of our kernels failed or was wrong."""
    given = _arguments()
    if given.device == "cpu":
        interpret()
    check = Check(
        ledger=Ledger(given.out / "gpu_check.jsonl", again=True),
        device=torch.device(given.device),
        until=time.monotonic() + given.seconds,
        shape=given.heads,
        model=given.model or (MODEL if given.device == "cuda" else None),
        repeats=given.repeats,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the table is printed
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # eager judges
    try:
        run_parts(check, parts(check, given.lengths))
    finally:
        text = lay_out(check.rows)
        (given.out / "gpu_check.txt").write_text(text + "\n", encoding="utf-8")
        print(text)
    judged = any(row.case == "values" and row.done for row in check.rows)
    sys.exit(not judged or bool(failures(check.rows)))


def parts(check: Check, lengths: Sequence[int]) -> Iterator[Part]:
    """List what there is to do, the cheapest and most telling first."""
    yield "values, as timed", partial(check_timed, check)
    yield "ceilings", partial(measure_ceilings, check)
    for n in lengths[:TELLING]:
        yield f"attend, n={n}", partial(time_attend, check, n)
        yield f"estimate, n={n}", partial(time_estimate, check, n)
    yield f"prefill, n={DENSE[-1]}", partial(time_prefill, check, DENSE, dense_up_to=DENSE[-1])
    yield f"prefill, n={LARGER}", partial(time_prefill, check, [LARGER], dense_up_to=LARGER)
    yield f"prefill, n={LONGEST}", partial(time_prefill, check, [LONGEST], dense_up_to=DENSE[-1])
    table = table_cases()
    yield "values, table", partial(check_table, check, table, TABLE_SECONDS)
    yield "memory", partial(check_memory, check)
    for n in lengths[TELLING:]:
        yield f"attend, n={n}", partial(time_attend, check, n)
        yield f"estimate, n={n}", partial(time_estimate, check, n)
    yield "consan", partial(check_races, check)
    yield "values, rest", partial(check_rest, check, table)


def run_parts(check: Check, listed: Iterator[Part]) -> None:
    """Do one part after the other while there is time and a device."""
    for name, do in listed:
        if check.left <= 0:
            return
        print(f"{check.left:4.0f} s left: {name}", file=sys.stderr, flush=True)
        case, _, length = name.partition(", n=")
        try:
            with check.attempt(case, next(variants()), "all", check.problem(int(length or 0))):
                do()
        except DeviceLostError as error:
            print(f"the device is lost, no more can be told: {error}", file=sys.stderr)
            return
        if check.device.type == "cuda":
            gc.collect()  # the next layer may need all of the memory
            torch.cuda.empty_cache()


def interpret() -> None:
    """Let our kernels serve tensors on the CPU: Triton's interpreter runs them there.

    Those that attend, that is: torch estimates for them. The interpreter computes garbage in
    bfloat16 without the guard that the tests have, and no Gluon.
    """
    from tests.triton import guard

    guard.install()
    for name in set(variants()) - {"triton-hopper"}:
        BACKENDS[name] = replace(BACKENDS[name], refusal=lambda q: None)
    KERNELS.pop("triton", None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_check.jsonl")
    parser.add_argument("--seconds", type=float, default=440, help="begin nothing new after that")
    parser.add_argument("--lengths", type=_lengths, default=LENGTHS, help="such as 8k,128k")
    parser.add_argument("--device", default="cuda", help="cpu: in Triton's interpreter")
    parser.add_argument("--heads", type=_heads, default=LLAMA_3_8B, help="such as 32x8x128")
    parser.add_argument("--model", help="read end to end; random:llama-3-8b-1048k on a GPU")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "error: no GPU that torch can use; pass --device cpu to try the script\n")
    if given.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.exit(
            2, "error: kernels run on a CPU in Triton's interpreter; set TRITON_INTERPRET=1\n"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def _lengths(text: str) -> list[int]:
    return [n for item in text.split(",") for n in parse_lengths(item)]  # in the order typed


def _heads(text: str) -> Shape:
    [shape] = parse_shapes(text)
    return shape


if __name__ == "__main__":
    main()
