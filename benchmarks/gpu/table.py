"""The rows of a GPU check as text: times, then what failed, then the figures aimed at.

Plain text, since a bare machine has no package for tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.rows import Row

HEADER = (
    "case            n backend             pattern                        kept  recall"
    "         ms   +-ms  TFLOP/s  limit   speed-up  prop.  share"
)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A figure to reach, and which row says whether it was reached."""

    text: str
    case: str
    n: int
    pattern: str
    target: float | None
    value: Callable[[Row], float | None]
    reached: Callable[[float], bool]

    def verdict(self, rows: Sequence[Row]) -> str:
        """Compare with the default kernels' row."""
        place = self.case, self.n, self.pattern, self.target
        for row in rows:
            at = row.case, row.n, row.pattern, row.target_density
            value = self.value(row)
            if at == place and row.backend == "triton" and value is not None:
                word = "reached" if self.reached(value) else "MISSED"
                against = f", against {row.baseline}" if row.baseline else ""
                kept = f"density {_percent(row.density)}, recall {_percent(row.recall)}"
                return f"{self.text}: {value:.3g} ({kept}{against}): {word}"
        return f"{self.text}: not measured"


AIMS = (
    Aim(
        text="share of density-proportional speed, block 5 % at 128K, at least 0.75",
        case="attend",
        n=2**17,
        pattern="block",
        target=0.05,
        value=lambda row: row.proportional,
        reached=lambda value: value >= 0.75,
    ),
    Aim(
        text="speed-up of vertical-slash (1000, 6096) at 1M, more than 13",
        case="attend",
        n=2**20,
        pattern="vertical-slash 1000+6096",
        target=None,
        value=lambda row: row.speedup,
        reached=lambda value: value > 13,
    ),
    *(
        Aim(
            text=f"estimate / attend of {pattern} 5 % at 128K, below 0.1",
            case="estimate",
            n=2**17,
            pattern=pattern,
            target=0.05,
            value=lambda row: row.share,
            reached=lambda value: value < 0.1,
        )
        for pattern in ("block-topk", "vertical-slash")
    ),
    Aim(
        text="seconds of a prefill of 1M tokens, Llama-3-8B's shape, under 60",
        case="prefill",
        n=2**20,
        pattern="minference",
        target=None,
        value=lambda row: row.median_s,
        reached=lambda value: value < 60,
    ),
    Aim(
        text="speed-up of that, at least 10",
        case="prefill",
        n=2**20,
        pattern="minference",
        target=None,
        value=lambda row: row.speedup,
        reached=lambda value: value >= 10,
    ),
)


def lay_out(rows: Sequence[Row]) -> str:
    """Lay all rows out, one line each; what is wrong and what was aimed at come last."""
    values = [row for row in rows if row.case == "values" and not row.skipped]
    right = sum(row.done for row in values)
    return "\n".join(
        [
            HEADER,
            *(_line(row) for row in rows if row.median_s is not None),
            *(f"{row.case} clean" for row in rows if row.done and row.case in ("memory", "consan")),
            *(f"skipped {_name(row)}: {row.skipped}" for row in rows if row.skipped),
            *(f"FAILED {_name(row)}: {row.error}" for row in rows if row.error),
            f"values: {right} of {len(values)} within the error budget",
            *(aim.verdict(rows) for aim in AIMS),
        ]
    )


def failures(rows: Sequence[Row]) -> list[Row]:
    """Return what is wrong with our own kernels; a peer's failure is not ours."""
    return [row for row in rows if row.error and "triton" in row.backend]


def _line(row: Row) -> str:
    assert row.median_s is not None
    limit = (row.work or {}).get("of_limit")
    cells = (
        f"{row.case:8}{row.n:9} {row.backend:19} {_pattern(row):29}",
        f"{_percent(row.density):>6} {_percent(row.recall):>7}",
        f"{row.median_s * 1e3:10.3f} {(row.iqr_s or 0) * 1e3:6.3f}",
        f"{'' if row.tflops is None else f'{row.tflops:.0f}':>8} {_percent(limit):>6}",
        f"{'' if row.speedup is None else f'{row.speedup:.2f}x':>10}",
        f"{'' if row.proportional is None else f'{row.proportional:.2f}':>6}",
        f"{_percent(row.share):>6}",
        _memory(row),
    )
    return " ".join(cells).rstrip()


def _memory(row: Row) -> str:
    """Say how much memory a prefill took, and how much the engine expected."""
    if row.case != "prefill" or row.peak_bytes is None:
        return ""
    planned = "" if row.planned_bytes is None else f" of {row.planned_bytes / 2**30:.1f} planned"
    return f" peak {row.peak_bytes / 2**30:.1f} GiB{planned}"


def _pattern(row: Row) -> str:
    target = row.target_density
    return row.pattern if target in (None, 1.0) else f"{row.pattern} {target:.0%}"


def _name(row: Row) -> str:
    shape = f"n={row.n} {row.h}x{row.g}x{row.d} {row.dtype}"
    return f"{row.case} {row.backend} {_pattern(row)} {shape}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
