"""Write docs/triton-kernels.md: what compilers make of every Triton kernel that ships.

    python -m tools.triton_table

No GPU is needed. Registers are of a thread; shared memory is of a block.
"""

from __future__ import annotations

from pathlib import Path

import triton

from sparsefill.gpu import HEAD_DIMS_ON_HOPPER, Variant
from tests.triton.compile import SHARED_LIMITS, TARGETS, Report, report
from tests.triton.layers import DIMS, SHIPPED, attend_report, compiled, compiled_estimates

TABLE = Path(__file__).parents[1] / "docs" / "triton-kernels.md"
HEAD = """# The Triton kernels, compiled

What Triton {version} makes of each kernel in bfloat16, 32 query heads on 8 KV heads, one million
tokens; written by `python -m tools.triton_table`, checked by `make test-triton`. *Lists* says what
an index may hold: `lines` slash tiles and columns, `blocks` tiles for each row block, `mixed` both.
Nothing here has run on a GPU.

| target | kernel | head dim | lists | warps | registers | spilled bytes | shared memory | of |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Compile everything and write the table."""
    rows = [row_of(target, d, lists) for target in TARGETS for d in DIMS for lists in SHIPPED]
    rows += [row_of("sm_90", d, lists, "hopper") for d in HEAD_DIMS_ON_HOPPER for lists in SHIPPED]
    plans = [
        line(target, launch.name, "", lists, report(launch))
        for target in TARGETS
        for lists in SHIPPED
        for launch in compiled(target, lists)[:-1]
    ]
    estimates = [
        line(target, launch.name, str(d), "", report(launch))
        for target in TARGETS
        for d in DIMS
        for launch in compiled_estimates(target, d)
    ]
    TABLE.parent.mkdir(exist_ok=True)
    every = dict.fromkeys(rows + plans + estimates)  # some kernels are the same for all
    TABLE.write_text(HEAD.format(version=triton.__version__) + "\n".join(every) + "\n", "utf-8")
    print(f"wrote {TABLE}")


def row_of(target: str, d: int, lists: str, variant: Variant | None = None) -> str:
    """Describe the attend kernel of one specialisation."""
    launch, own = attend_report(target, lists, d, variant=variant)
    return line(target, launch.name, str(d), lists, own)


def line(target: str, name: str, d: str, lists: str, own: Report) -> str:
    """Lay out one row."""
    cells = (target, f"`{name}`", d, lists, own.warps, own.registers, own.stack, own.shared)
    return "| " + " | ".join(map(str, (*cells, SHARED_LIMITS[target]))) + " |"


if __name__ == "__main__":
    main()
