"""The command: `python -m benchmarks.run CASE`, and `show` and `plot` for what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.arguments import (
    DTYPES,
    parse_densities,
    parse_lengths,
    parse_names,
    parse_shapes,
)
from benchmarks.cases import run_case
from benchmarks.problem import Grid
from benchmarks.rows import Ledger, default_path, environment, read_rows
from benchmarks.session import Session
from benchmarks.table import rows_table
from sparsefill.cli.app import clear_errors
from sparsefill.cli.inputs import resolve_device
from sparsefill.errors import InputError

app = typer.Typer(
    help="Benchmarks of sparsefill; benchmarks/README.md says how they are made and read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Lengths = Annotated[str, typer.Option(help="such as 16384, 64:8192 (doubling) or 8k,32k")]
Shapes = Annotated[str, typer.Option(help="query heads x KV heads x head dimension, ...")]
Dtypes = Annotated[str, typer.Option(help=", ".join(DTYPES))]
Densities = Annotated[str, typer.Option(help="shares of the causal cells, such as 1,0.2,0.05")]
Patterns = Annotated[
    list[str] | None,
    typer.Option(
        "--pattern",
        help="repeatable: vertical-slash or block-topk (both if left out; budget searched for each"
        " density), or a pattern with its budget, such as vertical-slash:verticals=500,slashes=200",
    ),
]
DenseUpTo = Annotated[int | None, typer.Option(min=1, help="extrapolate dense beyond this length")]
SHORTER = "pass shorter --lengths"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that all cases have."""

    backends: Annotated[str, typer.Option(help="such as auto, or torch,reference")] = "auto"
    out: Annotated[
        Path | None,
        typer.Option(help="JSON lines to append to; benchmarks/results/... if left out"),
    ] = None
    again: Annotated[
        bool, typer.Option("--again", help="measure rows that are there once more")
    ] = False
    repeats: Annotated[int, typer.Option(min=1, help="timed rounds")] = 5
    max_seconds: Annotated[
        float,
        typer.Option(min=0, help="of timed runs per function; fewer rounds, but one at least"),
    ] = 60.0
    threads: Annotated[int | None, typer.Option(min=1, help="torch's own choice if left out")] = (
        None
    )
    seed: Annotated[int, typer.Option(min=0, help="of inputs, indices and samples")] = 0


def case(name: str, **defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a command of a function that turns a case's own options into its request.

    Args:
        defaults: of the options in `Settings`, where the case has better ones.
    """
    hints = get_type_hints(Settings, include_extras=True)
    shared = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=hints[field.name],
        )
        for field in fields(Settings)
    ]

    def register(read: Callable[..., Any]) -> Callable[..., Any]:
        own = signature(read, eval_str=True).parameters

        def command(**options: Any) -> None:
            with clear_errors(SHORTER):
                request = read(**{name: options.pop(name) for name in own})
                run(name, request, Settings(**options))

        command.__doc__ = read.__doc__
        command.__signature__ = Signature([*own.values(), *shared])  # pyright: ignore[reportFunctionMemberAccess]
        app.command(name)(command)
        return read

    return register


def read_grid(lengths: str, shapes: str, dtypes: str) -> Grid:
    """Read the options that say what problems there are."""
    return Grid(
        lengths=parse_lengths(lengths),
        shapes=parse_shapes(shapes),
        dtypes=parse_names(dtypes, "--dtypes", tuple(DTYPES)),
    )


@case("attend")
def attend(
    lengths: Lengths = "4096,16384",
    shapes: Shapes = "9x3x64",
    dtypes: Dtypes = "bf16",
    densities: Densities = "1,0.2,0.05",
    patterns: Annotated[
        str, typer.Option(help="block, shared-block, vertical-slash, dense")
    ] = "block",
    flex: Annotated[bool, typer.Option("--flex", help="also time FlexAttention")] = False,
) -> Any:
    """Time kernels on random indices of known density."""
    from benchmarks.cases.attend import Request
    from benchmarks.indices import PATTERNS

    return Request(
        grid=read_grid(lengths, shapes, dtypes),
        densities=parse_densities(densities),
        patterns=parse_names(patterns, "--patterns", tuple(PATTERNS)),
        flex=flex,
    )


@case("estimate")
def estimate(
    lengths: Lengths = "4096,16384",
    shapes: Shapes = "9x3x64",
    dtypes: Dtypes = "bf16",
    densities: Densities = "0.05",
    pattern: Patterns = None,
) -> Any:
    """Time finding the cells, and attending to them, on inputs with planted lines."""
    from benchmarks.budget import SEARCHED
    from benchmarks.cases.estimate import Request

    return Request(
        grid=read_grid(lengths, shapes, dtypes),
        densities=parse_densities(densities),
        patterns=tuple(dict.fromkeys(pattern or SEARCHED)),
    )


@case("break_even", repeats=21, max_seconds=20.0)
def break_even(
    lengths: Lengths = "64:8192",
    shapes: Shapes = "9x3x64",
    dtypes: Dtypes = "bf16",
    densities: Densities = "0.3,0.1",
    pattern: Patterns = None,
) -> Any:
    """Find from which length on estimate and attend together beat dense attention."""
    return estimate(lengths, shapes, dtypes, densities, pattern)


@case("patterns")
def patterns(
    lengths: Lengths = "1024:131072",
    shapes: Shapes = "32x8x128",
    dtypes: Dtypes = "bf16",
    dense_up_to: DenseUpTo = None,
) -> Any:
    """Time each pattern with the paper's budget, by length, beside dense attention (Figure 3)."""
    from benchmarks.cases.patterns import Request

    return Request(
        grid=read_grid(lengths, shapes, dtypes),
        densities=(),
        dense=True,
        dense_up_to=dense_up_to,
    )


@case("prefill", max_seconds=300.0)
def prefill(
    lengths: Lengths = "1024:8192",
    model: Annotated[
        str | None,
        typer.Option(help="id, folder, GGUF file or random:NAME; the embedded one if left out"),
    ] = None,
    method: Annotated[str, typer.Option(help="minference, or one pattern")] = "minference",
    dtype: Annotated[str, typer.Option(help=f"auto, {', '.join(DTYPES)}")] = "auto",
    recall: Annotated[bool, typer.Option("--recall", help="measure recall as well")] = False,
    dense_up_to: Annotated[
        int | None, typer.Option(min=0, help="extrapolate dense beyond this length; 0: no dense")
    ] = None,
    min_length: Annotated[
        int | None, typer.Option(min=1, help="stay dense below this many keys")
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="natural: novels; tiled: 600 tokens, repeated; or a text file")
    ] = "natural",
    kv: Annotated[
        str | None, typer.Option(help="read with the engine; keep, int8, host or drop")
    ] = None,
    order: Annotated[str, typer.Option(help="of the engine: layers or chunks")] = "layers",
    chunk: Annotated[int | None, typer.Option(min=64, help="of the engine, in tokens")] = None,
    max_memory: Annotated[str | None, typer.Option(help="of the engine, such as 16GiB")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> Any:
    """Time a model up to its first token, by prompt length, sparse and stock."""
    try:
        from benchmarks.cases.prefill import Engine, Request
        from sparsefill.cli.engine import parse_size
    except ModuleNotFoundError as error:
        raise InputError(
            f"prefill needs {error.name}, got none; run: pip install 'sparsefill[demo]'"
        ) from None

    names = parse_names(dtype, "--dtype", ("auto", *DTYPES))
    if len(names) > 1:
        raise InputError(f"--dtype must be one of auto, {', '.join(DTYPES)}, got {dtype!r}")
    limit = None if max_memory is None else parse_size(max_memory)
    if kv is None and (chunk, limit, order) != (None, None, "layers"):
        raise InputError("--order, --chunk and --max-memory are the engine's; pass --kv as well")
    if kv == "disk":
        raise InputError("--kv disk needs a folder that outlives the run; pass keep, int8 or host")
    return Request(
        lengths=parse_lengths(lengths),
        model=model,
        method=method,
        dtype=None if names == ["auto"] else names[0],
        recall=recall,
        dense_up_to=dense_up_to,
        min_length=min_length,
        prompt=prompt,
        engine=None if kv is None else Engine(kv=kv, order=order, chunk=chunk, max_memory=limit),
        device=resolve_device(device),
    )


@case("calibrate", backends="cpu,torch", max_seconds=20.0)
def calibrate(
    lengths: Lengths = "4096,16384",
    shapes: Shapes = "9x3x64",
    dtypes: Dtypes = "bf16,fp32",
) -> Any:
    """Measure the constants of the cost model, beside those in sparsefill/cost.py."""
    return read_grid(lengths, shapes, dtypes)


@app.command()
def show(file: Annotated[Path, typer.Argument(help="JSON lines that a run wrote")]) -> None:
    """Print the rows of a file as a table."""
    with clear_errors(SHORTER):
        rows = list(read_rows(file))
        Console(markup=False, width=200).print(rows_table(rows, str(file)))


@app.command()
def plot(
    files: Annotated[list[Path], typer.Argument(help="JSON lines that runs wrote")],
    out: Annotated[Path, typer.Option(help="folder for the SVG files")] = Path("docs/figures"),
) -> None:
    """Draw speed-up by density and by length."""
    with clear_errors(SHORTER):
        from benchmarks.plot import draw_rows

        rows = [row for file in files for row in read_rows(file)]
        for path in draw_rows(rows, out):
            Console(markup=False).print(f"wrote {path}", soft_wrap=True)


def run(case: str, request: Any, settings: Settings) -> None:
    """Run a case with a progress bar on stderr."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    found = environment()
    ledger = Ledger(settings.out or default_path(found), again=settings.again)
    before = len(ledger.rows)
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(case, total=None)
        session = Session(
            ledger=ledger,
            asked=tuple(name.strip() for name in settings.backends.split(",") if name.strip()),
            repeats=settings.repeats,
            max_seconds=settings.max_seconds,
            seed=settings.seed,
            tell=console.print,
            plan=lambda work: progress.update(task, total=work),
            advance=lambda work: progress.advance(task, work),
            environment=found,
        )
        if not session.asked:
            raise InputError("--backends must name a backend, got none; pass auto")
        run_case(case, request, session)
    written = ledger.rows[before:]
    if written:
        Console(markup=False, width=200).print(rows_table(written, str(ledger.path)))
    console.print(f"{len(written)} new rows in {ledger.path}")


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.run")
