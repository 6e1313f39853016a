"""The commands and their options; what they do lives one file per command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from sparsefill.errors import SparsefillError

app = typer.Typer(
    help="Dynamic sparse attention: language models read long prompts fast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MethodOption = Annotated[
    str,
    typer.Option(
        help="minference (a profile: per-head patterns), dense, or one pattern for all heads,"
        " such as a-shape, tri-shape, vertical-slash, block-topk, interleaved, infllm or"
        " a-shape:sink=64,window=512"
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="Hugging Face id, folder or GGUF file; the embedded model if left out"),
]
ProfileOption = Annotated[
    str | None, typer.Option(help="profile for minference: a file, or a shipped name")
]
BackendOption = Annotated[str, typer.Option(help="auto, cpu, triton, torch or reference")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that comes with the model")
]


@contextmanager
def clear_errors(remedy: str = "pass fewer --tokens or a smaller model") -> Iterator[None]:
    """Turn what the user can mend into one message and exit code 2.

    Args:
        remedy: what to do when memory runs out.
    """
    try:
        yield
    except (SparsefillError, OSError) as error:
        message = str(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        message = f"out of memory ({reason}); {remedy}"
    else:
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error:", "bold red"), " ", message))
    raise typer.Exit(2)


@app.command()
def info() -> None:
    """Show what is installed, what the machine is, and which backend would be used."""
    from sparsefill.cli.info import show_info

    with clear_errors():
        show_info(Console(markup=False))


@app.command()
def draw(
    pattern: Annotated[
        str | None, typer.Argument(help="such as vertical-slash or a-shape:window=256")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="draw which pattern each head of this profile uses instead")
    ] = None,
    indices: Annotated[
        bool, typer.Option("--indices", help="draw the tiles and columns that a kernel reads")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option(min=1, max=8192, help="length to draw; 1024, or 2048 of indices")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="write a .png or .svg instead of drawing here")
    ] = None,
) -> None:
    """Draw which cells a pattern keeps on a toy head, or which pattern each head uses."""
    from sparsefill.cli.draw import draw_what

    with clear_errors():
        draw_what(
            Console(markup=False),
            pattern=pattern,
            profile=profile,
            indices=indices,
            tokens=tokens,
            out=out,
        )


profile_app = typer.Typer(
    help="Show, check, import and export profiles: which pattern each head of a model uses.",
    no_args_is_help=True,
)
app.add_typer(profile_app, name="profile")
ProfileArgument = Annotated[str, typer.Argument(help="a file, or the name of a shipped profile")]
ArchitectureModel = Annotated[
    str | None, typer.Option(help="model whose architecture counts: id, folder or GGUF file")
]


@profile_app.command("show")
def profile_show(profile: ProfileArgument) -> None:
    """Show what a profile is for, where it comes from and which patterns it uses."""
    from sparsefill.cli.profile import show_profile

    with clear_errors():
        show_profile(Console(markup=False), profile)


@profile_app.command("check")
def profile_check(profile: ProfileArgument, model: ArchitectureModel = None) -> None:
    """Check that a profile is valid, and that it fits a model."""
    from sparsefill.cli.profile import check_profile

    with clear_errors():
        check_profile(Console(markup=False), profile, model=model)


@profile_app.command("import")
def profile_import(
    original: Annotated[Path, typer.Argument(help="JSON config of the original MInference")],
    out: Annotated[Path, typer.Option(help="profile to write")],
    model: ArchitectureModel = None,
    kv_heads: Annotated[int | None, typer.Option(help="KV heads, without --model")] = None,
    head_dim: Annotated[int | None, typer.Option(help="width of a head, without --model")] = None,
    rope_base: Annotated[
        float | None, typer.Option(help="base of the rotary embedding, if known, without --model")
    ] = None,
) -> None:
    """Turn a config of the original MInference into a profile, scores included."""
    from sparsefill.cli.profile import Shape, import_profile

    with clear_errors():
        shape = Shape(model=model, kv_heads=kv_heads, head_dim=head_dim, rope_base=rope_base)
        import_profile(Console(markup=False), original, shape=shape, out=out)


@profile_app.command("export")
def profile_export(
    profile: ProfileArgument, out: Annotated[Path, typer.Option(help="config to write")]
) -> None:
    """Write a profile as a config of the original MInference."""
    from sparsefill.cli.profile import export_profile

    with clear_errors():
        export_profile(Console(markup=False), profile, out=out)


@app.command()
def prefill(
    model: ModelOption = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="text to read; the novel that ships with us if left out")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="read this many first tokens of it")] = 8192,
    method: MethodOption = "minference",
    profile: ProfileOption = None,
    static: Annotated[
        Path | None, typer.Option(help="a text whose cells to use, whatever the prompt holds")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="dense, or none; default: dense, but none with the prefill engine, because dense"
            " reads in one piece"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for report.json and the pictures")
    ] = None,
    backend: BackendOption = "auto",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    min_length: Annotated[
        int | None,
        typer.Option(min=1, help="stay dense below this many keys; default: where faster"),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=0, help="tokens to generate after it")] = 24,
    kv: Annotated[
        str | None,
        typer.Option(
            help="keys and values: keep, int8, host, disk or drop. This and the next five options"
            " read with the prefill engine, in chunks"
        ),
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="layers: all chunks layer by layer, or chunks: one by one")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            help="tokens of a chunk; chosen to be fast and to fit --max-memory if left out"
        ),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="such as 8GiB: choose the chunk to fit, or refuse")
    ] = None,
    save_kv: Annotated[
        Path | None, typer.Option(help="folder that keeps what was read, to resume from")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with what --save-kv holds")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="make warnings errors")] = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Read a long prompt sparsely, and show what it saved and what it cost."""
    from sparsefill.cli.engine import EngineOptions
    from sparsefill.cli.prefill import Request, run_prefill

    with clear_errors():
        run_prefill(
            Console(markup=False),
            Request(
                model=model,
                prompt_file=prompt_file,
                tokens=tokens,
                method=method,
                profile=profile,
                static=static,
                compare=compare,
                out=out,
                backend=backend,
                dtype=dtype,
                device=device,
                min_length=min_length,
                new_tokens=new_tokens,
                strict=strict,
                trust_remote_code=trust_remote_code,
                engine=EngineOptions(
                    kv=kv,
                    order=order,
                    chunk=chunk,
                    max_memory=max_memory,
                    save_kv=save_kv,
                    resume=resume,
                ),
            ),
        )


@app.command()
def search(
    out: Annotated[Path, typer.Option(help="profile to write, a .json")],
    model: ModelOption = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help="a text file; synthetic: key-value retrieval; novel: Northanger Abbey. May be"
            " repeated; novel and synthetic if left out"
        ),
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(min=256, help="length of each prompt; may be repeated")
    ] = None,
    budget: Annotated[
        float, typer.Option(help="cost in the kernel, as a share of dense attention's")
    ] = 0.3,
    objective: Annotated[
        str, typer.Option(help="output: least error of the output; recall: most mass kept")
    ] = "output",
    budgets: Annotated[
        str, typer.Option(help="model: cost goes where it saves most; head: the same for each")
    ] = "model",
    combine: Annotated[
        str, typer.Option(help="what counts of several prompts: mean, or the worst")
    ] = "mean",
    slashes: Annotated[
        str, typer.Option(help="online: diagonals are found on each prompt; fixed: found now")
    ] = "online",
    report: Annotated[
        Path | None, typer.Option(help="folder for report.json, the check on held-out text")
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="a text file, or synthetic; the novel that ships with us if left out"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the synthetic prompts")] = 0,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Find the pattern of every head of a model, and write them as a profile."""
    from sparsefill.cli.search import Request, run_search

    with clear_errors():
        run_search(
            Console(markup=False),
            Request(
                out=out,
                model=model,
                prompts=prompts,
                tokens=tokens or [8192],
                budget=budget,
                objective=objective,
                budgets=budgets,
                combine=combine,
                slashes=slashes,
                report=report,
                held_out=held_out,
                seed=seed,
                backend=backend,
                device=device,
                trust_remote_code=trust_remote_code,
            ),
        )


@app.command("eval")
def evaluate(
    tasks: Annotated[
        list[str],
        typer.Argument(
            help="ruler, infinitebench, needle, copying, perplexity, fidelity, or one task of"
            " them, such as ruler/vt"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder of the run; one that is there goes on")],
    model: ModelOption = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="full, minference, static, streaming-llm, dilated, strided, infllm, or one pattern"
            " for all heads; minference@4k reads in chunks of 4096 tokens, as servers do;"
            " minference+snapkv=4k decodes with 4096 keys of each head; may be repeated; full and"
            " minference if left out"
        ),
    ] = None,
    profile: ProfileOption = None,
    lengths: Annotated[
        str,
        typer.Option(help="tokens of prompt and answer, such as 4k,1m; 1k:100k:20 is 20 of them"),
    ] = "4096",
    samples: Annotated[int, typer.Option(min=1, help="of each task and length")] = 25,
    template: Annotated[
        str, typer.Option(help="base: prompts as they are; chat: in the model's chat template")
    ] = "base",
    haystack: Annotated[
        Path | None,
        typer.Option(
            help="text to hide needles in: a file, or a folder of *.txt; two novels if left out"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="folder of the files that benchmarks publish")
    ] = None,
    rules: Annotated[
        str, typer.Option(help="of InfiniteBench: official, or minference, those of its copy")
    ] = "official",
    one_layout: Annotated[
        bool,
        typer.Option("--one-layout", help="lay RULER's samples of a task out alike, as NVIDIA's"),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="of the samples")] = 42,
    recall: Annotated[
        bool, typer.Option("--recall", help="also measure the attention mass kept (slow)")
    ] = False,
    min_length: Annotated[
        int, typer.Option(min=1, help="keys below which layers stay dense, whatever the method")
    ] = 1,
    dtype: DtypeOption = "auto",
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Measure what sparse attention costs in answers; a run that was stopped goes on."""
    from sparsefill.cli.eval import Request, run_eval
    from sparsefill.evals.lengths import parse_lengths

    with clear_errors(remedy="pass shorter --lengths or a smaller model"):
        run_eval(
            Console(markup=False),
            Request(
                tasks=tasks,
                out=out,
                model=model,
                methods=method or ("full", "minference"),
                profile=profile,
                lengths=parse_lengths(lengths),
                samples=samples,
                template=template,
                haystack=haystack,
                data=data,
                rules=rules,
                one_layout=one_layout,
                seed=seed,
                recall=recall,
                min_length=min_length,
                dtype=dtype,
                backend=backend,
                device=device,
                trust_remote_code=trust_remote_code,
            ),
        )


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="folders of evaluation runs, put together", metavar="DIR..."),
    ],
    out: Annotated[Path, typer.Option(help="folder for report.html, summary.csv and figures")],
    against: Annotated[
        str | None, typer.Option(help="compare methods with this one; full attention if left out")
    ] = None,
    times: Annotated[
        bool,
        typer.Option(
            "--times/--no-times",
            help="tell times; without them, reports of equal runs are the same byte for byte",
        ),
    ] = True,
    answers: Annotated[
        int, typer.Option(min=0, help="samples of each task and length whose answers are shown")
    ] = 25,
) -> None:
    """Make one page, figures and CSV of evaluation runs."""
    from sparsefill.cli.report import run_report

    with clear_errors():
        run_report(
            Console(markup=False),
            folders,
            out=out,
            against=against,
            times=times,
            answers=answers,
        )
